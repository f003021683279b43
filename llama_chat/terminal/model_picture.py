"""What ``inspect`` tells of a model, drawn for people."""

import io
import shutil
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from rich.bar import Bar
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from llama_chat.files import readable_size
from llama_chat.terminal.sanitizer import sanitize
from llama_chat.terminal.streams import one_line

_LEAST_WIDTH, _GREATEST_WIDTH = 40, 100
"""Columns between which the picture follows the terminal; wider bars say no more."""

_MAX_CONTROL_TOKENS = 8
"""Shown by name; a vocabulary may have hundreds, most of them reserved."""

_LAYER = (
    ("├ ", "attention_norm", ""),
    ("├ ", "attention", ""),
    ("│ ├ ", "wq", "query"),
    ("│ ├ ", "wk", "key"),
    ("│ ├ ", "wv", "value"),
    ("│ └ ", "wo", "output"),
    ("├ ", "ffn_norm", ""),
    ("└ ", "feed_forward", ""),
    ("  ├ ", "w1", "gate"),
    ("  ├ ", "w3", "up"),
    ("  └ ", "w2", "down"),
)
"""A layer as a tree: branches, name, and what it is."""

_FLOATS = ("F32", "F16", "BF16")

Report = Mapping[str, Any]
"""What ``cli.inspect.describe`` returns."""


def draw_model(report: Report, *, colored: bool, with_tensors: bool = False) -> str:
    """Draw a model, as wide as the terminal at most.

    Args:
        report: what is known of the model; nothing in it reaches the terminal as a control.
        colored: whether to use colours; without them it is plain text.
        with_tensors: whether to list every tensor.
    """
    page = io.StringIO()
    console = Console(
        file=page,
        width=min(max(shutil.get_terminal_size().columns, _LEAST_WIDTH), _GREATEST_WIDTH),
        force_terminal=colored,
        color_system="standard" if colored else None,
        no_color=not colored,
        highlight=False,
        markup=False,
        emoji=False,
    )
    console.print(_title(report))
    sections = [
        ("Architecture", _architecture(report)),
        ("Parameters", _parameters(report)),
        ("Stored as", _types(report)),
        (f"Memory, {_held(report)}", _memory(report)),
        ("Tokenizer", _tokenizer(report)),
        ("Template", _template(report)),
    ]
    if with_tensors:
        sections.append(("Tensors", _tensors(report)))
    for heading, body in sections:
        console.print("", Text(heading, "bold"), Padding(body, (0, 0, 0, 2)), sep="\n")
    return "\n".join(line.rstrip() for line in page.getvalue().split("\n"))


def _text(value: object, style: str = "") -> Text:
    """One line that is harmless, folded where it does not fit."""
    return Text(sanitize(one_line(str(value))), style, overflow="fold")


def _table(
    rows: Iterable[Sequence[RenderableType]],
    justify: Sequence[Literal["left", "right"]],
    *,
    rigid: int,
) -> Table:
    """A table without lines, whose columns from ``rigid`` on give way where it is narrow."""
    table = Table.grid(padding=(0, 2))
    for i, side in enumerate(justify):
        table.add_column(justify=side, no_wrap=i < rigid)
    for row in rows:
        table.add_row(*row)
    return table


def _title(report: Report) -> Text:
    facts = [report["format"], readable_size(report["stored_bytes"])]
    facts.append(f"{report['parameters']:,} parameters")
    lines = [_text(report["name"], "bold cyan"), _text(" · ".join(facts))]
    return Text("\n").join([*lines, _text(report["path"], "dim")])


def _architecture(report: Report) -> RenderableType:
    shape = report["architecture"]
    shapes = {tensor["name"]: tensor["shape"] for tensor in report["tensors"]}

    def row(branch: str, name: str, weight: str, what: str = "") -> tuple[Text, Text]:
        label = Text.assemble((branch, "dim"), name, (f" {what}", "dim"))
        return label, Text(" × ".join(f"{n:,}" for n in shapes.get(f"{weight}.weight", ())))

    rows = [row("", "embedding", "tok_embeddings")]
    rows.append((Text(f"{shape['n_layers']} × layer"), Text()))
    block = ""
    for branch, name, what in _LAYER:
        block = name if branch in ("├ ", "└ ") else block
        rows.append(
            row(branch, name, f"layers.0.{block if name == block else f'{block}.{name}'}", what)
        )
    rows.append(row("", "norm", "norm"))
    rows.append(row("", "output", "output", "tied" if shape["tie_embeddings"] else ""))
    heads = f"{shape['n_heads']} heads of {shape['head_dim']}"
    if shape["n_kv_heads"] != shape["n_heads"]:
        heads += f", {shape['n_kv_heads']} of keys and values"
    facts = [heads, f"context {shape['context_length']:,} tokens", f"rotary {report['rope']}"]
    return Group(_table(rows, ("left", "right"), rigid=2), *map(_text, facts))


def _parameters(report: Report) -> RenderableType:
    total = report["parameters"]
    rows = [
        (
            Text(_part(part)),
            Text(f"{count:,}"),
            Text(f"{count / total:.1%}"),
            Bar(total, 0, count, color="cyan"),
        )
        for part, count in report["parameters_by_part"].items()
        if count
    ]
    return _table(rows, ("left", "right", "right", "left"), rigid=3)


def _part(name: str) -> str:
    return name.replace("_", "-")


def _types(report: Report) -> RenderableType:
    rows = [
        (Text(_part(part)), _text(", ".join(f"{kind} × {n}" for kind, n in types.items())))
        for part, types in report["types_by_part"].items()
        if types
    ]
    return _table(rows, ("left", "left"), rigid=1)


def _held(report: Report) -> str:
    """How the weights lie in memory."""
    quantised = any(kind not in _FLOATS for kind in report["types"])
    match report["quantize"]:
        case "int8" | "int4" as packed:
            return f"packed to {packed}"
        case "stored" if quantised:
            return "packed as stored"
        case _:
            return f"in {report['dtype']}"


def _memory(report: Report) -> RenderableType:
    free, weights = report["available_memory"], report["weights_memory"]
    rows: list[tuple[Text, ...]] = [
        tuple(Text(name, "dim") for name in ("tokens", "weights", "cache", "together"))
    ]
    for length, total in report["memory"].items():
        cells = (weights, report["cache_memory"][length], total)
        style = "" if total <= free else "red"
        rows.append(
            (Text(f"{int(length):,}"), *(Text(readable_size(size), style) for size in cells))
        )
    whole = report["memory"][str(report["architecture"]["context_length"])]
    if report["fits"]:
        verdict = Text(f"fits: {readable_size(whole)} of {readable_size(free)} free", "green")
    elif report["fitting_context"]:
        tokens = f"{report['fitting_context']:,} tokens"
        verdict = Text(f"fits up to {tokens}: {readable_size(free)} free", "yellow")
    else:
        needed = f"the weights take {readable_size(weights)} of {readable_size(free)} free"
        verdict = Text(f"does not fit: {needed}", "red")
    return Group(_table(rows, ("right",) * 4, rigid=4), verdict)


def _tokenizer(report: Report) -> RenderableType:
    tokens = report["tokenizer"]
    control = tokens["control_tokens"]
    kind = f"{tokens['kind']}, {tokens['vocab_size']:,} tokens, {len(control):,} of them control"
    names = {token_id: name for name, token_id in control.items()}
    bos, eos = (
        "none" if token_id is None else f"{names.get(token_id, '')} {token_id}".strip()
        for token_id in (tokens["bos_id"], tokens["eos_id"])
    )
    if tokens["add_bos"]:
        bos += ", before every prompt"
    shown = [f"{name} {token_id}" for name, token_id in control.items()][:_MAX_CONTROL_TOKENS]
    if len(control) > len(shown):
        shown.append(f"… and {len(control) - len(shown):,} more")
    return Group(
        _text(kind),
        _text(f"BOS {bos}; EOS {eos}"),
        _text("control: " + ", ".join(shown), "dim"),
        _table(map(_sample, report["samples"]["texts"]), ("right", "left"), rigid=1),
    )


def _sample(sample: Report) -> tuple[Text, Text]:
    """How a text is split: the number of its tokens, and each of them."""
    line = Text(overflow="fold")
    for piece in sample["visible"]:
        line.append("│" if line else "", "cyan")
        line.append(sanitize(piece))
    return Text(f"{len(sample['visible'])}", "dim"), line


def _template(report: Report) -> RenderableType:
    if report["template"] is None:
        return _text("not known: choose one with --template")
    return Group(_text(report["template"]), _exchange(report["samples"]["chat"]))


def _exchange(segments: Iterable[Report]) -> Text:
    """A question and an answer as the model is shown them, with line ends and control tokens."""
    shown = Text(overflow="fold")
    for segment in segments:
        if segment["control"]:
            shown.append_text(_text(segment["text"], "magenta"))
            continue
        first, *rest = sanitize(segment["text"]).split("\n")
        shown.append(first)
        for line in rest:
            shown.append("⏎\n", "dim").append(line)
    shown.rstrip()
    return shown


def _tensors(report: Report) -> RenderableType:
    rows = [
        (
            _text(tensor["name"]),
            Text(" × ".join(map(str, tensor["shape"]))),
            _text(tensor["type"]),
            Text(readable_size(tensor["bytes"]), "dim"),
        )
        for tensor in report["tensors"]
    ]
    return _table(rows, ("left", "right", "left", "right"), rigid=0)
