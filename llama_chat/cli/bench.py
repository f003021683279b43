"""``llama-chat bench``: speed of a model on this machine."""

import sys
import time
from typing import Annotated, Any

import typer

from llama_chat.cli.loading import load_model
from llama_chat.cli.options import takes_settings
from llama_chat.errors import UsageError
from llama_chat.settings.settings import Settings
from llama_chat.terminal import streams


@takes_settings
def bench(
    settings: Settings,
    prompt_tokens: Annotated[
        int, typer.Option(metavar="N", help="Tokens to prefill.", min=2)
    ] = 512,
    new_tokens: Annotated[int, typer.Option(metavar="N", help="Tokens to decode.", min=2)] = 64,
    rounds: Annotated[
        int, typer.Option(metavar="N", help="Rounds; the median is reported.", min=1)
    ] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Write one JSON object.")] = False,
) -> None:
    """Measure the speed of a model on this machine.

    It times the load, prefill and decode, and compares decode with the memory bandwidth measured
    here.
    """
    began = time.perf_counter()
    llama, _ = load_model(settings)
    load_s = time.perf_counter() - began
    if prompt_tokens + 2 * new_tokens > llama.context:
        raise UsageError(
            "--prompt-tokens and twice --new-tokens",
            f"together {prompt_tokens + 2 * new_tokens}, and the context is {llama.context}",
            "give less",
        )
    from llama_chat.generation.measuring import measure

    result = measure(llama.engine(), prompt_tokens, new_tokens, rounds)
    report: dict[str, Any] = {"model": llama.name, "load_s": round(load_s, 3), **result.as_dict()}
    if as_json:
        streams.write_json(report)
        return
    from llama_chat.terminal.bench_picture import draw_bench

    counts = prompt_tokens, new_tokens
    colored = streams.use_color(settings.color, sys.stdout)
    wrapped = streams.is_terminal(sys.stdout)
    streams.write_own(draw_bench(report, *counts, colored=colored, wrapped=wrapped))
