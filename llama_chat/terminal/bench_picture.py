"""Terminal view of the ``bench`` report."""

from collections.abc import Mapping
from typing import Any

from rich.text import Text

from llama_chat.errors import counted
from llama_chat.terminal.page import draw_page, safe_text, shares
from llama_chat.terminal.tables import FittedTable

_PARTS = {
    "projections": "attention matrices",
    "attention": "attention",
    "feed_forward": "feed-forward",
    "output": "logits",
    "sampling": "sampling",
    "other": "other",
}
"""Displayed names of the parts of a token's time."""


def draw_bench(
    report: Mapping[str, Any], n_prompt: int, n_new: int, *, colored: bool, wrapped: bool = True
) -> str:
    """Draw a measurement.

    Args:
        report: what ``bench --json`` prints.
        n_prompt: tokens that were prefilled.
        n_new: tokens that were decoded.
        colored: whether to use colours.
        wrapped: whether it is at most as wide as the terminal, or lines are never broken.
    """
    used, bandwidth = report["bandwidth_used"], report["bandwidth_gb_s"]
    rows = [
        ("prefill", f"{report['prefill_tok_s']:,.0f} tokens/s", counted(n_prompt, "token")),
        (
            "decode",
            f"{report['decode_tok_s']:,.1f} tokens/s",
            f"{counted(n_new, 'token')} after them",
        ),
        ("loading", f"{report['load_s']:.2f} s", ""),
        ("first token", f"{report['ttft_s']:.3f} s", "after the prompt"),
        ("bandwidth", f"{used:.0%}", f"of {bandwidth:.1f} GB/s, read by decode"),
        ("peak memory", f"{report['peak_rss_mb']:,} MB", ""),
    ]
    speeds = FittedTable(
        [(label, Text(value, "bold"), Text(note, "dim")) for label, value, note in rows],
        right=(1,),
    )
    token: Mapping[str, float] = report["token_ms"]
    parts = ((_PARTS[name], f"{ms:.2f} ms", ms) for name, ms in token.items())
    title = Text("\n").join(
        [
            safe_text(report["model"], "bold cyan"),
            safe_text(f"{report['kernel']}, {counted(report['threads'], 'thread')}"),
        ]
    )
    return draw_page(
        title,
        {"Speed": speeds, f"One token, {sum(token.values()):.2f} ms": shares(parts)},
        colored=colored,
        wrapped=wrapped,
    )
