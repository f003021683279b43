"""``llama-chat bench``: how fast this model runs on this machine."""

import json
import time
from typing import Annotated, Any

import typer

from llama_chat.cli.loading import load_model
from llama_chat.cli.options import takes_settings
from llama_chat.errors import UsageError
from llama_chat.settings import Settings
from llama_chat.terminal.streams import AnswerWriter


@takes_settings
def bench(
    settings: Settings,
    prompt_tokens: Annotated[int, typer.Option(help="Tokens to prefill.", min=2)] = 512,
    new_tokens: Annotated[int, typer.Option(help="Tokens to decode.", min=2)] = 64,
    rounds: Annotated[int, typer.Option(help="Rounds, of which the median counts.", min=1)] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Measure loading, prefill and decode against the memory bandwidth of this machine."""
    began = time.perf_counter()
    llama = load_model(settings)
    load_s = time.perf_counter() - began
    if prompt_tokens + new_tokens > llama.context:
        raise UsageError(
            "--prompt-tokens and --new-tokens",
            f"together {prompt_tokens + new_tokens}, and the context is {llama.context}",
            "give less",
        )
    from llama_chat.generation.measuring import measure

    result = measure(llama.engine(), prompt_tokens, new_tokens, rounds)
    report: dict[str, Any] = {"model": llama.name, "load_s": round(load_s, 3), **result.as_dict()}
    writer = AnswerWriter(raw=True)
    if as_json:
        writer.write(json.dumps(report, ensure_ascii=False) + "\n")
        return
    for label, value in (
        ("model", llama.name),
        ("kernel", f"{result.kernel}, {result.threads} threads"),
        ("loading", f"{load_s:.2f} s"),
        ("prefill", f"{result.prefill_tok_s:.0f} tokens/s ({prompt_tokens} tokens)"),
        ("first token", f"{result.ttft_s:.3f} s"),
        ("decode", f"{result.decode_tok_s:.1f} tokens/s ({new_tokens} tokens)"),
        (
            "bandwidth",
            f"{result.bandwidth_used:.0%} of {result.bandwidth_gb_s:.1f} GB/s read by decode",
        ),
        ("peak memory", f"{result.peak_rss_mb} MB"),
    ):
        writer.write(f"{label:<12} {value}\n")
