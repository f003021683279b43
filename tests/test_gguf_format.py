"""GGUF files read back exactly, and damaged ones are refused in one line."""

import contextlib
import dataclasses
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llama_chat.checkpoints.gguf import GGUFCheckpoint
from llama_chat.errors import ModelError
from llama_chat.loading.formats import load_tokenizer
from tests.model_files import SMALL, TOKENS, assert_refused, gguf_name, write_gguf

Q = gguf.GGMLQuantizationType


@pytest.mark.parametrize("kind", [Q.F32, Q.F16, Q.BF16, Q.Q8_0, Q.Q4_0, Q.Q4_1])
def test_gguf_weights_equal_those_of_the_gguf_library(
    tmp_path: Path, kind: gguf.GGMLQuantizationType
) -> None:
    stored = write_gguf(tmp_path / "m.gguf", quantization=kind)
    checkpoint = GGUFCheckpoint.open(tmp_path / "m.gguf")
    rounded_eps = float(np.float32(SMALL.norm_eps))
    assert checkpoint.config == dataclasses.replace(SMALL, norm_eps=rounded_eps)
    assert checkpoint.tensors["output.weight"].type == kind.name
    for name, weight in stored.items():
        ours = checkpoint.read(name, torch.float32).numpy()
        assert np.array_equal(ours, weight), name
        rounded = checkpoint.read(name, torch.bfloat16)
        assert rounded.equal(torch.from_numpy(weight.copy()).bfloat16())


def test_starter_weights_equal_those_of_the_gguf_library(starter_model: Path) -> None:
    checkpoint = GGUFCheckpoint.open(starter_model)
    reader = gguf.GGUFReader(starter_model)
    theirs = {tensor.name: tensor for tensor in reader.tensors}
    assert len(theirs) == len(checkpoint.tensors)
    for name in checkpoint.tensors:
        if not name.startswith("layers.") or name.startswith(("layers.0.", "layers.29.")):
            tensor = theirs[gguf_name(name)]
            expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            assert np.array_equal(checkpoint.read(name, torch.float32).numpy(), expected)


def test_gguf_floats_of_the_wanted_type_are_not_copied(gguf_model: Path) -> None:
    checkpoint = GGUFCheckpoint.open(gguf_model)
    for name in checkpoint.tensors:
        first = checkpoint.read(name, torch.float32)
        assert first.data_ptr() == checkpoint.read(name, torch.float32).data_ptr()


def test_gguf_without_output_ties_the_embedding(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", dataclasses.replace(SMALL, tie_embeddings=True))
    assert GGUFCheckpoint.open(tmp_path / "m.gguf").config.tie_embeddings


BAD_METADATA: dict[str, tuple[dict[str, object], str]] = {
    "architecture": ({"general__architecture": "mamba"}, "architecture is 'mamba'"),
    "no architecture": ({"general__architecture": None}, "general.architecture is missing"),
    "escape in a name": ({"general__architecture": "\x1b[31m"}, "architecture is"),
    "experts": ({"llama__expert_count": 8}, "mixture of experts"),
    "scaling": ({"llama__rope__scaling__type": "yarn"}, "rotary scaling is 'yarn'"),
    "no layers": ({"llama__block_count": None}, "llama.block_count is missing"),
    "layers 0": ({"llama__block_count": 0}, "n_layers is 0"),
    "layers 10^6": ({"llama__block_count": 10**6}, "1000000 layers"),
    "layers too few": ({"llama__block_count": 1}, "layers.1."),
    "layers a text": ({"llama__block_count": "2"}, "not a whole number"),
    "heads 0": ({"llama__attention__head_count": 0}, "head_count is 0"),
    "heads odd": ({"llama__attention__head_count": 5}, "n_heads 5"),
    "rope base 0": ({"llama__rope__freq_base": 0.0}, "rope_theta is 0.0"),
    "rope base NaN": ({"llama__rope__freq_base": float("nan")}, "rope_theta is nan"),
    "half rotated": ({"llama__rope__dimension_count": 8}, "only a part of each head"),
    "context 0": ({"llama__context_length": 0}, "context_length is 0"),
    "tokenizer": ({"tokenizer__ggml__model": "rwkv"}, "its tokenizer is 'rwkv'"),
    "pre-tokenizer": ({"tokenizer__ggml__pre": "kimi-k2"}, "'kimi-k2' is not supported"),
    "types": ({"tokenizer__ggml__token_type": [1, 1]}, "types of 2"),
    "tokens": ({"tokenizer__ggml__tokens": None}, "tokenizer.ggml.tokens is missing"),
    "merges": ({"tokenizer__ggml__merges": ["no such"]}, "is not of its tokens"),
    "bos": ({"tokenizer__ggml__bos_token_id": len(TOKENS)}, "past the vocabulary"),
    "eos": ({"tokenizer__ggml__eos_token_id": 999}, "past the vocabulary"),
    "bytes": (
        {
            "tokenizer__ggml__tokens": [f"t{i}" for i in range(len(TOKENS))],
            "tokenizer__ggml__merges": ["t1 t1"],
        },
        "",
    ),
    "alignment": ({"general__alignment": 13}, "alignment is 13"),
    "alignment 0": ({"general__alignment": 0}, "alignment is 0"),
}


@pytest.mark.parametrize("case", BAD_METADATA)
def test_bad_gguf_metadata_is_refused(case: str, tmp_path: Path) -> None:
    changes, why = BAD_METADATA[case]
    path = tmp_path / "m.gguf"
    write_gguf(path, metadata=changes)
    assert_refused(path, why)


def test_types_that_are_not_supported_are_named_with_those_that_are(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(_header(tensors=1, rest=_tensor([256, 4], Q.IQ2_XS)) + bytes(1024))
    assert_refused(path, "of type IQ2_XS", "take a file of F32, F16, BF16, Q4_0, Q4_1, Q5_0")


def _string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def _header(version: int = 3, tensors: int = 0, values: int = 0, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, values) + rest


def _tensor(dims: list[int], kind: int = 0, offset: int = 0) -> bytes:
    header = _string(b"token_embd.weight") + struct.pack("<I", len(dims))
    return header + b"".join(struct.pack("<Q", d) for d in dims) + struct.pack("<IQ", kind, offset)


_U32_ARRAY = struct.pack("<IIQ", 9, 4, 2**60)
_NESTED = struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 10_000

RAW_GGUF: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "it is empty"),
    "3 bytes": (b"GGU", "not a GGUF file"),
    "bad magic": (b"GGML" + bytes(60), "not a GGUF file"),
    "version 0": (_header(0), "version 0 is not known"),
    "version 1": (_header(1), "version 1 is not known"),
    "version 4": (_header(4), "version 4 is not known"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "2^60 tensors": (_header(tensors=2**60), "ends in the middle"),
    "2^60 values": (_header(values=2**60), "ends in the middle"),
    "key past the end": (_header(values=1, rest=struct.pack("<Q", 2**62)), "ends in the middle"),
    "key of length 0": (_header(values=1, rest=_string(b"") + bytes(8)), "is duplicate or empty"),
    "value type 13": (
        _header(values=1, rest=_string(b"k") + struct.pack("<I", 13)),
        "type of value",
    ),
    "array of 2^60": (_header(values=1, rest=_string(b"k") + _U32_ARRAY), "ends in the middle"),
    "strings 2^60": (
        _header(values=1, rest=_string(b"k") + struct.pack("<IIQ", 9, 8, 2**60)),
        "does not fit",
    ),
    "nested arrays": (_header(values=1, rest=_string(b"k") + _NESTED), "nested lists"),
    "key twice": (
        _header(values=2, rest=(_string(b"k") + struct.pack("<IB", 0, 1)) * 2),
        "is duplicate or empty",
    ),
    "5 dimensions": (_header(tensors=1, rest=_tensor([1] * 5)), "5 dimensions"),
    "dimension 0": (_header(tensors=1, rest=_tensor([0, 4])), "impossible dimensions"),
    "dimension 2^63": (_header(tensors=1, rest=_tensor([2**63])), "impossible dimensions"),
    "unknown type": (_header(tensors=1, rest=_tensor([32, 4], 99)), "type number 99"),
    "broken block": (_header(tensors=1, rest=_tensor([33, 4], 2)), "broken blocks"),
    "no data": (_header(tensors=1, rest=_tensor([32, 4])), "it ends before"),
    "unaligned": (_header(tensors=1, rest=_tensor([32, 4], 0, 3)), "not aligned"),
    "no architecture": (_header(), "general.architecture is missing"),
}


@pytest.mark.parametrize("case", RAW_GGUF)
def test_bad_gguf_headers_are_refused(case: str, tmp_path: Path) -> None:
    data, why = RAW_GGUF[case]
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    assert_refused(path, why)


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_damaged_gguf_is_read_or_refused(
    data: st.DataObject, gguf_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = gguf_model.read_bytes()
    header = len(whole) - GGUFCheckpoint.open(gguf_model).n_bytes
    damaged = bytearray(whole)
    if data.draw(st.booleans()):
        damaged = damaged[: data.draw(st.integers(0, len(whole) - 1))]
    else:
        for _ in range(data.draw(st.integers(1, 4))):
            damaged[data.draw(st.integers(0, header))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "m.gguf"
    path.write_bytes(damaged)
    with contextlib.suppress(ModelError):
        load_tokenizer(GGUFCheckpoint.open(path))
    path.unlink()
