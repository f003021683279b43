"""Small models in every format, of which each number can be replaced by another one."""

import json
import struct
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import gguf

from tests.meta_folders import write_llama_3, write_mistral
from tests.model_files import (
    META,
    SMALL,
    edit_json,
    sentencepiece_model,
    write_gguf,
    write_huggingface,
    write_llama2c,
    write_meta,
)
from tests.vocabularies import piece_json, piece_tables

Value = int | float

_ONE = frozenset({1})
_BASES = frozenset({1, 2**31 - 1, 2**31, 2**32})
"""Rotary bases; the largest known is 5e10."""

POSSIBLE: Mapping[str, Set[Value]] = {
    "params.json norm_eps": _ONE,
    "params.json rope_theta": _BASES,
    "params.json vocab_size": frozenset({-1, 1}),  # the rows of the embedding count
    "params.json rope_scaling_factor": _ONE,
    "params.json sliding_window": _ONE,
    "params.json max_position_embeddings": _ONE,
    "tekken.json default_num_special_tokens": frozenset({0, 1}),
    "config.json vocab_size": _ONE,
    "llama.vocab_size": frozenset({0, 1}),
    "config.json rms_norm_eps": _ONE,
    "config.json rope_theta": _BASES,
    "config.json max_position_embeddings": _ONE,
    "config.json max_sequence_length": _ONE,
    "config.json sliding_window": _ONE,
    "config.json factor": _ONE,
    "config.json low_freq_factor": _ONE,
    "config.json original_max_position_embeddings": _ONE,
    "llama.context_length": _ONE,
    "llama.attention.layer_norm_rms_epsilon": _ONE,
    "llama.rope.freq_base": _BASES,
    "llama.rope.scaling.factor": frozenset({0, 1}),  # 0 for none
    "llama.rope.scale_linear": frozenset({0, 1}),
    "llama.rope.scaling.original_context_length": _ONE,
    "tokenizer.ggml.bos_token_id": frozenset({0, 1}),
    "tokenizer.ggml.eos_token_id": frozenset({0, 1}),
    "tokenizer.ggml.unknown_token_id": frozenset({0, 1}),
    "split.count": frozenset({0, 1}),
}
"""Extreme values that a model may have."""


@dataclass(frozen=True)
class Number:
    """A number in a file of a model."""

    name: str
    model: Path
    """Path of the model, for a command."""
    file: Path
    replaced: Callable[[Value], bytes]
    """Function that makes the file with another value; it raises ``struct.error`` if the format
    cannot state that."""

    def may_be(self, value: Value) -> bool:
        """Return True for a value with which the model may be loaded."""
        same = self.replaced(value) == self.file.read_bytes()
        return same or value in POSSIBLE.get(self.name, ())


def numbers(folder: Path) -> Iterator[Number]:
    """Write a model in each format, and yield every number in it."""
    yield from of_meta(folder / "meta")
    yield from of_llama_3(folder / "llama3")
    yield from of_mistral(folder / "tekken")
    for kind in ("linear", "dynamic", "llama3", "mistral"):
        yield from of_huggingface(folder / kind, kind)
    yield from of_gguf(folder / "one", {"llama__rope__scaling__factor": 2.0})
    yield from of_gguf(folder / "pieces", _PIECES)
    yield from of_gguf(folder / "parts", {}, tensors_a_file=12)
    yield from of_llama2c(folder / "llama2c")


def of_meta(folder: Path) -> Iterator[Number]:
    """Write a model, and yield the numbers in it."""
    write_meta(folder)
    file = folder / "params.json"
    edit_json(file, rope_theta=10000.0, ffn_dim_multiplier=1.0, vocab_size=META.vocab_size)
    for name in json.loads(file.read_text()):
        yield _json_number(folder, file, name)


def of_llama_3(folder: Path) -> Iterator[Number]:
    """Write a model as Meta does since Llama 3, and yield the numbers in it."""
    write_llama_3(folder, use_scaled_rope=True, rope_scaling_factor=8.0, rope_high_freq_factor=4.0)
    file = folder / "params.json"
    for name in ("rope_theta", "rope_scaling_factor", "rope_high_freq_factor"):
        yield _json_number(folder, file, name)


def of_mistral(folder: Path) -> Iterator[Number]:
    """Write a model as Mistral does, and yield the numbers in it."""
    write_mistral(folder, params={"sliding_window": 4096, "max_position_embeddings": 8192})
    file = folder / "params.json"
    for name in json.loads(file.read_text()):
        yield _json_number(folder, file, name)
    file = folder / "tekken.json"
    for name in ("default_vocab_size", "default_num_special_tokens"):
        yield _json_number(folder, file, "config", name)
    yield _json_number(folder, file, "vocab", 3, "rank")


def of_huggingface(folder: Path, kind: str) -> Iterator[Number]:
    """Write a model with a kind of rotary scaling or attention, and yield the numbers in it."""
    write_huggingface(folder)
    file = folder / "config.json"
    config, scaling = _config(kind)
    edit_json(file, **config, rope_scaling=scaling or None, rope_parameters=None)
    for name in config:
        if isinstance(config[name], Value):
            yield _json_number(folder, file, name)
    for name in scaling:
        if isinstance(scaling[name], Value):
            yield _json_number(folder, file, "rope_scaling", name)
    if kind == "mistral":
        yield from _of_safetensors(folder)
        yield from _of_tokenizer_json(folder)


def _config(kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return numbers of a config that are all read, and those of its rotary scaling."""
    config: dict[str, Any] = {
        "model_type": "mistral" if kind == "mistral" else "llama",
        "hidden_size": META.dim,
        "num_attention_heads": META.n_heads,
        "num_hidden_layers": META.n_layers,
        "num_key_value_heads": META.n_kv_heads,
        "head_dim": META.head_dim,
        "intermediate_size": META.hidden_dim,
        "vocab_size": META.vocab_size,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "max_position_embeddings": 4096,
        "partial_rotary_factor": 1.0,
    }
    scaling: dict[str, Any] = {"rope_type": kind, "factor": 2.0}
    if kind == "linear":
        config["max_sequence_length"] = 8192
    elif kind == "llama3":
        scaling |= {"low_freq_factor": 2.0, "high_freq_factor": 4.0}
        scaling["original_max_position_embeddings"] = 2048
    elif kind == "mistral":
        config["sliding_window"], scaling = 2048, {}
    return config, scaling


def _json_number(model: Path, file: Path, *path: str | int) -> Number:
    document = json.loads(file.read_text())

    def replaced(value: Value) -> bytes:
        whole = json.loads(json.dumps(document))
        part = whole
        for step in path[:-1]:
            part = part[step]
        part[path[-1]] = value
        return json.dumps(whole).encode()

    file.write_text(json.dumps(document))
    return Number(f"{file.name} {path[-1]}", model, file, replaced)


def _of_safetensors(folder: Path) -> Iterator[Number]:
    file = folder / "model.safetensors"
    data = file.read_bytes()
    n_header = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + n_header])
    yield Number("length of the header", folder, file, partial(_packed, data, {0: "Q"}))

    def replaced(name: str, key: str, place: int, value: Value) -> bytes:
        changed = json.loads(json.dumps(header))
        changed[name][key][place] = value
        text = json.dumps(changed).encode()
        return len(text).to_bytes(8, "little") + text + data[8 + n_header :]

    name = "model.layers.0.mlp.up_proj.weight"
    for key in ("shape", "data_offsets"):
        for place in range(2):
            yield Number(f"{key} {place}", folder, file, partial(replaced, name, key, place))


def _of_tokenizer_json(folder: Path) -> Iterator[Number]:
    (folder / "tokenizer.model").unlink()
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(piece_json(sentencepiece_model())))
    yield _json_number(folder, file, "added_tokens", 0, "id")
    yield _json_number(folder, file, "model", "vocab", "▁t")


def _packed(data: bytes, layouts: Mapping[int, str], value: Value) -> bytes:
    """Overwrite bytes of ``data`` at the given offsets by ``value`` in a layout of ``struct``."""
    changed = bytearray(data)
    for at, layout in layouts.items():
        struct.pack_into(f"<{layout}", changed, at, value)
    return bytes(changed)


_TABLES = piece_tables(sentencepiece_model())
_PIECES: Mapping[str, object] = {
    "llama__rope__scale_linear": 2.0,
    "tokenizer__ggml__model": "llama",
    "tokenizer__ggml__tokens": _TABLES["tokens"],
    "tokenizer__ggml__scores": _TABLES["scores"],
    "tokenizer__ggml__token_type": _TABLES["types"],
    "tokenizer__ggml__unknown_token_id": 0,
}
"""Vocabulary of SentencePiece, with the older name of the rotary scaling."""


def of_gguf(
    folder: Path, more: Mapping[str, object] | None = None, tensors_a_file: int = 0
) -> Iterator[Number]:
    """Write a model of one file, or of several, and yield the numbers in it."""
    folder.mkdir()
    config = replace(SMALL, vocab_size=400)
    write_gguf(
        folder / "narrow.gguf",
        config,
        tensors_a_file=tensors_a_file,
        metadata={
            "llama__vocab_size": config.vocab_size,
            "llama__rope__dimension_count": SMALL.head_dim,
            "llama__rope__scaling__original_context_length": 2048,
            "llama__attention__value_length": SMALL.head_dim,
            "llama__expert_count": 0,
            "tokenizer__ggml__bos_token_id": 2,
            _ALIGNMENT.replace(".", "__"): 32,
            **({} if tensors_a_file else {"split__count": 1}),
            **(more or {}),
        },
    )
    for source in sorted(folder.glob("narrow*.gguf")):
        _widen(source, folder / source.name.replace("narrow", "m"))
        source.unlink()
    first, *others = sorted(folder.glob("m*.gguf"))
    yield from _of_gguf_file(first, first)
    for other in others[:1]:
        yield from _of_gguf_file(first, other)


_ALIGNMENT = "general.alignmenX"
"""Name under which the library writes an alignment of 64 bits; the last letter is put right."""

_WIDE = {
    gguf.GGUFValueType.UINT16: gguf.GGUFValueType.UINT64,
    gguf.GGUFValueType.INT32: gguf.GGUFValueType.UINT64,
    gguf.GGUFValueType.UINT32: gguf.GGUFValueType.UINT64,
    gguf.GGUFValueType.FLOAT32: gguf.GGUFValueType.FLOAT64,
}


def _widen(source: Path, target: Path) -> None:
    """Copy a file, with numbers of 64 bits."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama")
    writer.kv_data[0].clear()
    for field in reader.fields.values():
        if field.name.startswith("GGUF."):
            continue
        kind, *inner = field.types
        wide = _WIDE.get(kind, kind)
        writer.add_key_value(field.name, field.contents(), wide, inner[-1] if inner else None)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _of_gguf_file(model: Path, file: Path) -> Iterator[Number]:
    reader = gguf.GGUFReader(file)
    data = file.read_bytes().replace(_ALIGNMENT.encode(), b"general.alignment")
    file.write_bytes(data)

    def raw(name: str, at: int, layout: str = "Q") -> Number:
        return Number(name, model, file, partial(_packed, data, {at: layout}))

    yield raw("version", 4, "I")
    yield raw("number of tensors", 8)
    yield raw("number of values", 16)
    yield raw("length of a name", 24)
    for field in reader.fields.values():
        at = field.offset + 8 + len(field.name)
        if field.name.startswith("GGUF.") or not field.types:
            continue
        if field.types[0] == gguf.GGUFValueType.ARRAY:
            yield raw(f"length of {field.name}", at + 8)
        elif field.types[0] == gguf.GGUFValueType.STRING:
            yield raw(f"length of {field.name}", at + 4)
        else:
            yield Number(field.name, model, file, partial(_gguf_value, data, at))
        yield raw(f"type of {field.name}", at, "I")
    for tensor in reader.tensors[1:3]:
        at = tensor.field.offset + 8 + len(tensor.name)
        yield raw(f"dimensions of {tensor.name}", at, "I")
        for i in range(len(tensor.shape)):
            yield raw(f"dimension {i} of {tensor.name}", at + 4 + 8 * i)
        end = at + 4 + 8 * len(tensor.shape)
        yield raw(f"type of {tensor.name}", end, "I")
        yield raw(f"offset of {tensor.name}", end + 4)


def _gguf_value(data: bytes, at: int, value: Value) -> bytes:
    """Overwrite the type and the value of 64 bits at an offset."""
    kind = gguf.GGUFValueType
    if isinstance(value, float):
        return _packed(_packed(data, {at: "I"}, kind.FLOAT64), {at + 4: "d"}, value)
    chosen, layout = (kind.INT64, "q") if value < 0 else (kind.UINT64, "Q")
    return _packed(_packed(data, {at: "I"}, chosen), {at + 4: layout}, value)


def of_llama2c(folder: Path) -> Iterator[Number]:
    """Write a model, and yield the numbers in it."""
    model = folder / "m.bin"
    write_llama2c(model)
    data = model.read_bytes()
    names = ("dim", "hidden_dim", "layers", "heads", "kv heads", "vocabulary", "context")
    for i, name in enumerate(names):
        yield Number(name, model, model, partial(_packed, data, {4 * i: "i"}))
