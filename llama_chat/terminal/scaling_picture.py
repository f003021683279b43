"""Terminal view of a model on several ranks or devices, for ``inspect``."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from llama_chat.errors import counted
from llama_chat.files import readable_size
from llama_chat.terminal.page import safe_text
from llama_chat.terminal.tables import FittedTable

_SIZES = ("weights", "cache", "buffers", "total")


def draw_scaling(report: Mapping[str, Any]) -> RenderableType:
    """Draw the report of ``loading.scaling.describe_ranks``."""
    rows: list[tuple[Text, ...]] = [
        tuple(Text(name, "dim") for name in ("rank", "heads", *_SIZES[:3], "together"))
    ]
    for sizes, alike in groupby(report["ranks"], lambda each: [each[name] for name in _SIZES]):
        ranks = list(alike)
        first, last = ranks[0]["rank"], ranks[-1]["rank"]
        heads = f"{ranks[0]['heads']} / {ranks[0]['kv_heads']}"
        cells = [str(first) if first == last else f"{first} to {last}", heads]
        style = "" if ranks[0]["fits"] else "red"
        rows.append(tuple(Text(cell, style) for cell in [*cells, *map(readable_size, sizes)]))
    memory = readable_size(report["memory_of_a_rank"])
    found, style = ("fits", "green") if report["fits"] else ("does not fit", "red")
    verdict = Text(f"{found}: {memory} for each rank", style)
    return Group(FittedTable(rows, right=range(1, 6)), verdict, *map(safe_text, _facts(report)))


def _facts(report: Mapping[str, Any]) -> list[str]:
    """Describe cache, communication and speed, a line each."""
    sent, prompt = report["bytes_per_token"], report["bytes_per_prompt_token"]
    facts = [
        f"cache of {counted(report['parallel'], 'sequence')} of {report['context']:,} tokens",
        f"exchanged: {readable_size(sent)} per token, {readable_size(prompt)} per prompt token, "
        f"in {report['collectives_per_pass']} collectives per pass",
    ]
    link = report["interconnect_gb_s"]
    rates = f"{report['bandwidth_gb_s']:g} GB/s of memory"
    rates += f" and {link:g} GB/s between ranks" if link else "; --interconnect counts that, too"
    facts.append(f"at most {_rate(report['most_tokens_per_s'])} tokens per second, by {rates}")
    if link:
        most = _rate(report["most_prompt_tokens_per_s"])
        facts.append(f"at most {most} prompt tokens per second between ranks")
    return facts


def _rate(per_second: float) -> str:
    """Format a rate with three digits or more."""
    return f"{per_second:,.0f}" if per_second >= 100 else f"{per_second:.3g}"


def draw_map(runs: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Draw the report of ``loading.scaling.describe_map``."""
    rows = []
    for run in runs:
        layers = f"layers {run['first_layer']} to {run['last_layer']}"
        rows.append((Text(run["device"]), Text(layers), Text(readable_size(run["weights"]))))
    return FittedTable(rows, right=(2,))
