"""Terminal view of the ``inspect`` report."""

from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from llama_chat.checkpoints.float_types import FLOATS
from llama_chat.errors import counted
from llama_chat.files import readable_size
from llama_chat.terminal.page import draw_page, safe_text, shares
from llama_chat.terminal.sanitizer import sanitize
from llama_chat.terminal.scaling_picture import draw_map, draw_scaling
from llama_chat.terminal.tables import FittedTable

_MAX_CONTROL_TOKENS = 8
"""Number of tokens listed; a vocabulary may have hundreds, most of them reserved."""

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
"""Tree of a layer: branch characters, name, and meaning."""

Report = Mapping[str, Any]
"""Report of ``cli.inspect.describe``."""


def draw_model(
    report: Report, *, colored: bool, wrapped: bool = True, with_tensors: bool = False
) -> str:
    """Draw a model.

    Args:
        report: description of the model; its control characters are replaced.
        colored: whether to use colours; without them it is plain text.
        wrapped: whether it is at most as wide as the terminal, or lines are never broken.
        with_tensors: whether to list every tensor.
    """
    sections = {
        "Architecture": _architecture(report),
        "Parameters": _parameters(report),
        "Stored as": _types(report),
        f"Memory, {_weight_format(report)}, computed by {report['kernel']}": _memory(report),
        "Tokenizer": _tokenizer(report),
        "Template": _template(report),
        "Generation": _generation(report),
    }
    if "device_map" in report:
        sections["Devices"] = draw_map(report["device_map"])
    if "scaling" in report:
        sections[f"On {counted(report['scaling']['world_size'], 'rank')}"] = draw_scaling(
            report["scaling"]
        )
    if with_tensors:
        sections["Tensors"] = _tensors(report)
    return draw_page(_title(report), sections, colored=colored, wrapped=wrapped)


def _title(report: Report) -> Text:
    facts = [report["format"], readable_size(report["stored_bytes"])]
    facts.append(f"{report['parameters']:,} parameters")
    lines = [safe_text(report["name"], "bold cyan"), safe_text(" · ".join(facts))]
    return Text("\n").join([*lines, safe_text(report["path"], "dim")])


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
    heads = f"{counted(shape['n_heads'], 'head')} of {shape['head_dim']}"
    if shape["n_kv_heads"] != shape["n_heads"]:
        heads += f", {shape['n_kv_heads']} of keys and values"
    facts = [
        heads,
        f"context {counted(shape['context_length'], 'token', ',')}",
        f"rotary {report['rope']}",
    ]
    return Group(FittedTable(rows, right=(1,)), *map(safe_text, facts))


def _parameters(report: Report) -> RenderableType:
    parts = report["parameters_by_part"].items()
    return shares((_part(part), f"{count:,}", count) for part, count in parts)


def _part(name: str) -> str:
    return name.replace("_", "-")


def _types(report: Report) -> RenderableType:
    rows = [
        (Text(_part(part)), safe_text(", ".join(f"{kind} × {n}" for kind, n in types.items())))
        for part, types in report["types_by_part"].items()
        if types
    ]
    return FittedTable(rows)


def _weight_format(report: Report) -> str:
    """Describe the format of the weights in memory."""
    quantized = any(kind not in FLOATS for kind in report["types"])
    match report["quantize"]:
        case "int8" | "int4" as packed:
            return f"packed to {packed}"
        case "stored" if quantized:
            return "packed as stored"
        case _:
            return f"in {report['dtype']}"


def _memory(report: Report) -> RenderableType:
    free, weights = report["available_memory"], report["weights_memory"]
    rows: list[tuple[Text, ...]] = [
        tuple(Text(name, "dim") for name in ("tokens", "weights", "cache", "buffers", "together"))
    ]
    for length, total in report["memory"].items():
        of_tokens = (report[f"{part}_memory"][length] for part in ("cache", "buffers"))
        cells = (weights, *of_tokens, total)
        style = "" if total <= free else "red"
        rows.append(
            (Text(f"{int(length):,}"), *(Text(readable_size(size), style) for size in cells))
        )
    whole = list(report["memory"].values())[-1]
    if report["fits"]:
        verdict = Text(f"fits: {readable_size(whole)} of {readable_size(free)} free", "green")
    elif report["fitting_context"]:
        tokens = counted(report["fitting_context"], "token", ",")
        verdict = Text(f"fits up to {tokens}: {readable_size(free)} free", "bold")
    else:
        least = readable_size(weights + min(report["buffers_memory"].values()))
        why = f"weights and buffers take {least} of {readable_size(free)} free"
        verdict = Text(f"does not fit: {why}", "red")
    return Group(FittedTable(rows, right=range(5)), verdict)


def _tokenizer(report: Report) -> RenderableType:
    tokens = report["tokenizer"]
    control = tokens["control_tokens"]
    size = counted(tokens["vocab_size"], "token", ",")
    kind = f"{tokens['kind']}, {size}, {len(control):,} of them control"
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
        safe_text(kind),
        safe_text(f"BOS {bos}; EOS {eos}"),
        safe_text("control: " + ", ".join(shown), "dim"),
        FittedTable(list(map(_sample, report["samples"]["texts"])), right=(0,)),
    )


def _sample(sample: Report) -> tuple[Text, Text]:
    """Draw the tokens of a text: their number, and each of them."""
    line = Text(overflow="fold")
    for piece in sample["visible"]:
        line.append("│" if line else "", "cyan")
        line.append(sanitize(piece))
    return Text(f"{len(sample['visible'])}", "dim"), line


def _template(report: Report) -> RenderableType:
    template = report["template"]
    rows: list[RenderableType] = []
    if template["name"] is not None:
        is_jinja = template["name"] == "jinja"
        how = "rendered by Jinja" if is_jinja else f"{template['name']}, rendered by llama-chat"
        rows.append(safe_text(how + (f", from {template['source']}" if template["source"] else "")))
    if template["note"]:
        rows.append(safe_text(template["note"], "bold"))
    if len(template["texts"]) > 1 and template["name"] is not None:
        rows.append(safe_text("--template-name: " + ", ".join(template["texts"]), "dim"))
    for number, dialog in enumerate(template["dialogs"], 1):
        rows += [Text(f"dialog {number}", "dim"), _exchange(dialog)]
    return Group(*rows)


def _generation(report: Report) -> RenderableType:
    """Draw the tokens that end a reply, and the suggested sampling, with their sources."""
    generation = report["generation"]
    rows = [
        (f"ends at {end['token']}", str(end["id"]), ", ".join(end["from"]))
        for end in generation["ends"]
    ]
    rows += [
        (name.replace("_", "-"), f"{value}", generation["sampling_from"])
        for name, value in generation["sampling"].items()
    ]
    cells = [(safe_text(name), safe_text(value), safe_text(by, "dim")) for name, value, by in rows]
    return FittedTable(cells, right=(1,))


def _exchange(segments: Iterable[Report]) -> Text:
    """Draw a dialog in the chat template, with line ends and control tokens."""
    shown = Text(overflow="fold")
    for segment in segments:
        if segment["control"]:
            shown.append_text(safe_text(segment["text"], "magenta"))
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
            safe_text(tensor["name"]),
            Text(" × ".join(map(str, tensor["shape"]))),
            safe_text(tensor["type"]),
            Text(readable_size(tensor["bytes"]), "dim"),
        )
        for tensor in report["tensors"]
    ]
    return FittedTable(rows, right=(1, 3), yielding={0: 1})
