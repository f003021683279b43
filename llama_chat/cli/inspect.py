"""``llama-chat inspect``: what a model is, without reading its weights."""

import json
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llama_chat.chat.templates import recognise
from llama_chat.cli.completing import models
from llama_chat.cli.options import takes_settings
from llama_chat.library import find_model
from llama_chat.settings import Settings
from llama_chat.terminal import streams
from llama_chat.terminal.streams import AnswerWriter

if TYPE_CHECKING:
    from llama_chat.checkpoints.base import Checkpoint
    from llama_chat.tokenizers.base import Tokenizer


@takes_settings
def inspect(
    settings: Settings,
    target: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="Path or name.", autocompletion=models),
    ] = None,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Describe a model: architecture, memory, tensors, template and tokenizer."""
    path = find_model(target or settings.text("model"))
    from llama_chat.llama import load_tokenizer, open_checkpoint, pick_devices, pick_dtype

    checkpoint = open_checkpoint(path)
    tokenizer = load_tokenizer(checkpoint)
    device = pick_devices(settings.text("device"))[0]
    dtype = pick_dtype(settings.text("dtype"), checkpoint.dtype, device)
    report = describe(checkpoint, tokenizer, str(dtype).removeprefix("torch."), dtype.itemsize)
    for line in checkpoint.warnings:
        streams.warn(line)
    writer = AnswerWriter(raw=as_json)
    if as_json:
        writer.write(json.dumps(report, ensure_ascii=False) + "\n")
    else:
        writer.write("".join(line + "\n" for line in _lines(report, with_tensors=tensors)))
    writer.finish()


def describe(
    checkpoint: "Checkpoint", tokenizer: "Tokenizer", dtype: str, element_size: int
) -> dict[str, Any]:
    """All that ``inspect`` tells of a model, as it goes into JSON."""
    config = checkpoint.config
    lengths = sorted({n for n in (1024, 4096) if n < config.context_length})
    weights = config.n_parameters * element_size
    return {
        "name": checkpoint.name,
        "path": str(checkpoint.path),
        "format": checkpoint.format,
        "architecture": asdict(config),
        "parameters": config.n_parameters,
        "stored_bytes": checkpoint.n_bytes,
        "dtype": dtype,
        "memory": {
            str(length): weights + config.kv_cache_bytes(length, element_size)
            for length in [*lengths, config.context_length]
        },
        "types": dict(Counter(info.type for info in checkpoint.tensors.values())),
        "tensors": [
            {"name": name, "shape": list(info.shape), "type": info.type, "bytes": info.n_bytes}
            for name, info in checkpoint.tensors.items()
        ],
        "template": recognise(checkpoint.chat_template, tokenizer),
        "tokenizer": {
            "kind": tokenizer.kind,
            "vocab_size": tokenizer.vocab_size,
            "bos_id": tokenizer.bos_id,
            "eos_id": tokenizer.eos_id,
            "add_bos": tokenizer.add_bos,
            "control_tokens": dict(tokenizer.control_ids),
        },
    }


def _lines(report: dict[str, Any], *, with_tensors: bool) -> list[str]:
    """The report for people, a fact a line."""
    shape, tokens = report["architecture"], report["tokenizer"]
    rows = [
        ("name", report["name"]),
        ("format", f"{report['format']}, {_size(report['stored_bytes'])}"),
        ("parameters", f"{report['parameters']:,}"),
        ("layers", f"{shape['n_layers']} of width {shape['dim']}, hidden {shape['hidden_dim']}"),
        (
            "attention",
            f"{shape['n_heads']} heads of {shape['head_dim']}, "
            f"{shape['n_kv_heads']} of keys and values",
        ),
        ("rotary base", f"{shape['rope_theta']:g}"),
        ("context", f"{shape['context_length']} tokens"),
        ("tensors", ", ".join(f"{n} × {kind}" for kind, n in report["types"].items())),
        *(
            (f"memory at {int(length):,}", f"{_size(size)} in {report['dtype']}")
            for length, size in report["memory"].items()
        ),
        ("template", report["template"] or "not known: choose one with --template"),
        ("tokenizer", f"{tokens['kind']}, {tokens['vocab_size']:,} tokens"),
        ("control", ", ".join(f"{text} {n}" for text, n in tokens["control_tokens"].items())),
    ]
    lines = [f"{label:<16} {streams.one_line(str(value))}" for label, value in rows]
    if with_tensors:
        lines += [
            f"{tensor['name']:<42} {'×'.join(map(str, tensor['shape'])):>14}  {tensor['type']}"
            for tensor in report["tensors"]
        ]
    return lines


def _size(n_bytes: int) -> str:
    """Bytes in the unit that people read."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6)):
        if n_bytes >= factor:
            return f"{n_bytes / factor:.1f} {unit}"
    return f"{n_bytes / 1000:.0f} KB"
