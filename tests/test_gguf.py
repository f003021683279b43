"""Rotary scaling in GGUF files, and refusals of oversized, truncated and foreign ones."""

import os
import struct
import warnings
from itertools import pairwise
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from llama_chat.checkpoints.gguf import GGUFCheckpoint
from llama_chat.errors import ModelError
from llama_chat.library.layouts import identify
from llama_chat.loading.formats import load_tokenizer
from llama_chat.model.rope import FrequencyDivisors, LinearScaling, RopeScaling
from tests.memory_use import peak_and_error
from tests.model_files import SMALL, TOKENS, write_gguf

Q = gguf.GGMLQuantizationType
QUANTIZED = [Q.Q8_0, Q.Q4_0, Q.Q4_1]


def refused(path: Path, why: str) -> None:
    with pytest.raises(ModelError) as caught:
        load_tokenizer(GGUFCheckpoint.open(path))
    assert str(caught.value).isprintable()
    assert why in str(caught.value)


@pytest.mark.parametrize("kind", [Q.F32, Q.F16, Q.BF16, *QUANTIZED])
def test_reading_gives_no_warning(tmp_path: Path, kind: gguf.GGMLQuantizationType) -> None:
    write_gguf(tmp_path / "m.gguf", quantization=kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checkpoint = GGUFCheckpoint.open(tmp_path / "m.gguf")
        for name in checkpoint.tensors:
            checkpoint.read(name, torch.float32)


# --- Values that change what the model computes ------------------------------------------------

_SCALING = "llama__rope__scaling__"
_DIVISORS = tuple(1.0 + i / 4 for i in range(SMALL.head_dim // 2))

SCALED: list[tuple[dict[str, object], tuple[float, ...], RopeScaling | None]] = [
    ({}, (), None),
    ({_SCALING + "factor": 4.0}, (), LinearScaling(4.0)),  # without a type it is linear
    ({"llama__rope__scale_linear": 4.0}, (), LinearScaling(4.0)),  # the older name
    ({_SCALING + "type": "linear", _SCALING + "factor": 4.0}, (), LinearScaling(4.0)),
    ({_SCALING + "type": "linear", _SCALING + "factor": 1.0}, (), None),
    ({_SCALING + "type": "none", _SCALING + "factor": 4.0}, (), None),
    ({_SCALING + "factor": 0.0}, (), None),  # not set
    ({}, _DIVISORS, FrequencyDivisors(_DIVISORS)),
    ({_SCALING + "factor": 2.0}, _DIVISORS, FrequencyDivisors(tuple(2 * d for d in _DIVISORS))),
]


@pytest.mark.parametrize(("metadata", "divisors", "scaling"), SCALED)
def test_rotary_scaling_is_read(
    tmp_path: Path,
    metadata: dict[str, object],
    divisors: tuple[float, ...],
    scaling: RopeScaling | None,
) -> None:
    more = {"rope_freqs.weight": np.array(divisors, np.float32)} if divisors else {}
    write_gguf(tmp_path / "m.gguf", metadata=metadata, more_tensors=more)
    checkpoint = GGUFCheckpoint.open(tmp_path / "m.gguf")
    assert checkpoint.config.rope_scaling == scaling
    assert checkpoint.tensors.keys() == checkpoint.config.tensor_shapes().keys()


BAD_SCALING: list[tuple[dict[str, object], tuple[float, ...], str]] = [
    ({_SCALING + "type": "yarn", _SCALING + "factor": 4.0}, (), "rotary scaling is 'yarn'"),
    ({_SCALING + "type": "longrope"}, (), "rotary scaling is 'longrope'"),
    ({_SCALING + "factor": float("nan")}, (), "factor of the rotary scaling is nan"),
    ({_SCALING + "factor": -1.0}, (), "factor of the rotary scaling is -1.0"),
    ({}, (1.0, 2.0), "rope_freqs.weight does not fit heads of 16"),
    ({}, (0.0, *_DIVISORS[1:]), "divisor of the rotary scaling is 0.0"),
]


@pytest.mark.parametrize(("metadata", "divisors", "why"), BAD_SCALING)
def test_unsupported_rotary_scaling_is_refused(
    tmp_path: Path, metadata: dict[str, object], divisors: tuple[float, ...], why: str
) -> None:
    more = {"rope_freqs.weight": np.array(divisors, np.float32)} if divisors else {}
    write_gguf(tmp_path / "m.gguf", metadata=metadata, more_tensors=more)
    refused(tmp_path / "m.gguf", why)


FOREIGN = {
    "blk.0.attn_q.bias": "it has biases, which Llama 2 has not, as in tensor 'blk.0.attn_q.bias'",
    "blk.1.ffn_up.bias": "it has biases",
    "blk.0.ffn_gate_exps.weight": "it is a mixture of experts",
    "blk.0.ffn_gate_inp.weight": "it is a mixture of experts",
    "blk.0.ffn_up_shexp.weight": "it is a mixture of experts",
    "blk.0.ffn_down.7.weight": "it is a mixture of experts",
    "blk.0.attn_q_norm.weight": "belongs to no part of a Llama model",
    "output_norm.bias": "it has biases",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_tensors_that_llama_does_not_have_are_named(tmp_path: Path, name: str) -> None:
    write_gguf(tmp_path / "m.gguf", more_tensors={name: np.ones(64, np.float32)})
    refused(tmp_path / "m.gguf", FOREIGN[name])


def test_another_architecture_is_named_before_its_tensors(tmp_path: Path) -> None:
    metadata: dict[str, object] = {"general__architecture": "qwen2"}
    more = {"blk.0.attn_q.bias": np.zeros(64, np.float32)}
    write_gguf(tmp_path / "m.gguf", metadata=metadata, more_tensors=more)
    refused(tmp_path / "m.gguf", "its architecture is 'qwen2'")


def test_a_number_given_for_each_layer_must_be_the_same_for_all(tmp_path: Path) -> None:
    key = "llama__attention__head_count_kv"
    write_gguf(tmp_path / "same.gguf", metadata={key: [2, 2]})
    assert GGUFCheckpoint.open(tmp_path / "same.gguf").config.n_kv_heads == 2
    write_gguf(tmp_path / "other.gguf", metadata={key: [2, 4]})
    refused(tmp_path / "other.gguf", "head_count_kv differs between layers")


def test_a_flag_that_is_no_boolean_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", metadata={"tokenizer__ggml__add_bos_token": "false"})
    refused(tmp_path / "m.gguf", "neither true nor false")


def test_each_token_must_have_a_score(tmp_path: Path) -> None:
    key = "tokenizer__ggml__scores"
    write_gguf(tmp_path / "m.gguf", metadata={key: [0.5] * len(TOKENS)})
    GGUFCheckpoint.open(tmp_path / "m.gguf")
    write_gguf(tmp_path / "m.gguf", metadata={key: [0.5, 0.5]})
    refused(tmp_path / "m.gguf", "scores of another number")


def test_there_must_be_an_embedding_for_each_token(tmp_path: Path) -> None:
    vocabulary: dict[str, object] = {
        "tokenizer__ggml__tokens": [*TOKENS, "one more"],
        "tokenizer__ggml__token_type": [1] * (len(TOKENS) + 1),
    }
    write_gguf(tmp_path / "m.gguf", metadata=vocabulary)
    n_tokens = len(TOKENS)
    refused(tmp_path / "m.gguf", f"it has {n_tokens + 1} tokens and the model {n_tokens}")


# --- Oversized headers -------------------------------------------------------------------------

_ARRAY, _STRING, _BYTE = 9, 8, 0


def _header(rest: bytes, *, n_values: int = 0, n_tensors: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_values) + rest


def _list_of(element: int, count: int) -> bytes:
    return _text(b"k") + struct.pack("<IIQ", _ARRAY, element, count)


def _text(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


_MANY = 70_000
_VALUES = b"".join(_text(b"%d" % i) + struct.pack("<IB", _BYTE, 1) for i in range(_MANY))
_TENSORS = b"".join(_text(b"%d" % i) + struct.pack("<IQIQ", 1, 32, 0, 0) for i in range(_MANY))

ENDLESS: dict[str, tuple[bytes, str]] = {
    "numbers": (_header(_list_of(_BYTE, 2**30), n_values=1), "longer than that of any model"),
    "a few less numbers": (_header(_list_of(_BYTE, 2**24), n_values=1), "its lists are longer"),
    "texts": (_header(_list_of(_STRING, 2**27), n_values=1), "does not fit"),
    "texts that just fit": (_header(_list_of(_STRING, 2**22 - 9), n_values=1), "architecture is"),
    "lists": (_header(_list_of(_ARRAY, 2**26), n_values=1), "nested lists"),
    "one text": (
        _header(_text(b"k") + struct.pack("<IQ", _STRING, 2**30), n_values=1),
        "longer than that of any model",
    ),
    "values": (_header(_VALUES, n_values=_MANY), "more than 65536 metadata values"),
    "tensors": (_header(_TENSORS, n_tensors=_MANY), "more than 65536 tensors"),
}


@pytest.mark.parametrize("case", ENDLESS)
def test_an_oversized_header_costs_little_memory(case: str, tmp_path: Path) -> None:
    # Sparse files hold every byte that the header announces, and take no disk space.
    header, why = ENDLESS[case]
    path = tmp_path / "m.gguf"
    path.write_bytes(header)
    os.truncate(path, 2**30 + 1000)
    imports = "from pathlib import Path; from llama_chat.checkpoints.gguf import GGUFCheckpoint"
    peak, error = peak_and_error(imports, f"GGUFCheckpoint.open(Path({str(path)!r}))", tmp_path)
    assert error.isprintable()
    assert why in error
    assert peak < 300e6


def test_a_file_cut_off_in_any_section_is_refused(gguf_model: Path, tmp_path: Path) -> None:
    whole = gguf_model.read_bytes()
    metadata = whole.index(b"general.architecture")
    names = whole.index(b"token_embd.weight")
    data = len(whole) - GGUFCheckpoint.open(gguf_model).n_bytes
    sections = [0, 4, 8, 16, 24, metadata, names, data, len(whole)]
    assert sections == sorted(sections)
    path = tmp_path / "m.gguf"
    for begin, end in pairwise(sections):
        for length in {begin, begin + 1, (begin + end) // 2, end - 1}:
            path.write_bytes(whole[:length])
            refused(path, "")


def test_tensors_that_share_bytes_are_refused(tmp_path: Path) -> None:
    # Else a small file could take any amount of memory.
    tensors = b"".join(
        _text(name) + struct.pack("<IQIQ", 1, 32, 0, offset)
        for name, offset in ((b"a", 0), (b"b", 64))
    )
    (tmp_path / "m.gguf").write_bytes(_header(tensors, n_tensors=2) + bytes(512))
    refused(tmp_path / "m.gguf", "tensors 'a' and 'b' overlap")


def test_version_2_is_read_like_version_3(gguf_model: Path, tmp_path: Path) -> None:
    whole = bytearray(gguf_model.read_bytes())
    whole[4] = 2
    (tmp_path / "m.gguf").write_bytes(whole)
    second, third = GGUFCheckpoint.open(tmp_path / "m.gguf"), GGUFCheckpoint.open(gguf_model)
    assert second.config == third.config
    for name in third.tensors:
        assert second.read(name, torch.float32).equal(third.read(name, torch.float32))


def test_a_named_pipe_is_no_model(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.gguf")
    with pytest.raises(OSError, match="it is not a file"):
        identify(tmp_path / "m.gguf")


def test_a_blob_is_named_by_its_metadata(tmp_path: Path) -> None:
    blob = tmp_path / f"sha256-{'0' * 64}"
    write_gguf(blob, metadata={"general.name": "Tiny Llama"})
    assert GGUFCheckpoint.open(blob).name == "Tiny Llama"
    write_gguf(blob)
    assert GGUFCheckpoint.open(blob).name == blob.name
