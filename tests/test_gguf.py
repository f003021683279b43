"""What a GGUF file must not get away with: scaled positions, endless headers, half a file."""

import os
import struct
import tracemalloc
import warnings
from itertools import pairwise
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from llama_chat.checkpoints.gguf import GGUFCheckpoint, is_gguf
from llama_chat.checkpoints.gguf_blocks import SUPPORTED, dequantize
from llama_chat.errors import ModelError
from tests.model_files import TOKENS, write_gguf

Q = gguf.GGMLQuantizationType
QUANTIZED = [Q.Q8_0, Q.Q4_0, Q.Q4_1]


def refused(path: Path, why: str) -> None:
    with pytest.raises(ModelError) as caught:
        GGUFCheckpoint.open(path)
    assert str(caught.value).isprintable()
    assert why in str(caught.value)


@pytest.mark.parametrize("kind", QUANTIZED)
def test_every_bit_is_that_of_the_gguf_library_past_the_first_chunk(
    kind: gguf.GGMLQuantizationType,
) -> None:
    # More blocks than are unpacked at a time, and a last chunk that is not full.
    rows = np.random.default_rng(0).standard_normal((2**11 + 3, 2**11), np.float32)
    rows[::7] = 0  # a scale of 0 and weights of -0.0
    packed = gguf.quants.quantize(rows, kind)
    ours = dequantize(packed.reshape(-1), SUPPORTED[kind.value], torch.float32).numpy()
    theirs = gguf.quants.dequantize(packed, kind).astype(np.float32)
    assert np.array_equal(ours.view(np.uint32), theirs.reshape(-1).view(np.uint32))


@pytest.mark.parametrize("kind", [Q.F32, Q.F16, Q.BF16, *QUANTIZED])
def test_reading_gives_no_warning(tmp_path: Path, kind: gguf.GGMLQuantizationType) -> None:
    write_gguf(tmp_path / "m.gguf", quantization=kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checkpoint = GGUFCheckpoint.open(tmp_path / "m.gguf")
        for name in checkpoint.tensors:
            checkpoint.read(name, torch.float32)


# --- Values that change what the model computes ------------------------------------------------

SCALED: list[dict[str, object]] = [
    {"llama__rope__scaling__factor": 4.0},  # without a type it is linear
    {"llama__rope__scale_linear": 4.0},  # the older name
    {"llama__rope__scaling__type": "linear", "llama__rope__scaling__factor": 4.0},
    {"llama__rope__scaling__factor": float("nan")},
]
NOT_SCALED: list[dict[str, object]] = [
    {"llama__rope__scaling__type": "linear", "llama__rope__scaling__factor": 1.0},
    {"llama__rope__scaling__type": "none", "llama__rope__scaling__factor": 4.0},
    {"llama__rope__scaling__factor": 0.0},  # not set
]


@pytest.mark.parametrize("metadata", SCALED)
def test_scaled_positions_are_refused(tmp_path: Path, metadata: dict[str, object]) -> None:
    write_gguf(tmp_path / "m.gguf", metadata=metadata)
    refused(tmp_path / "m.gguf", "rotary scaling is 'linear'")


@pytest.mark.parametrize("metadata", NOT_SCALED)
def test_a_scaling_that_scales_nothing_is_fine(tmp_path: Path, metadata: dict[str, object]) -> None:
    write_gguf(tmp_path / "m.gguf", metadata=metadata)
    GGUFCheckpoint.open(tmp_path / "m.gguf")


def test_a_number_given_for_each_layer_must_be_the_same_for_all(tmp_path: Path) -> None:
    key = "llama__attention__head_count_kv"
    write_gguf(tmp_path / "same.gguf", metadata={key: [2, 2]})
    assert GGUFCheckpoint.open(tmp_path / "same.gguf").config.n_kv_heads == 2
    write_gguf(tmp_path / "other.gguf", metadata={key: [2, 4]})
    refused(tmp_path / "other.gguf", "head_count_kv differs between layers")


def test_a_flag_that_is_no_flag_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", metadata={"tokenizer__ggml__add_bos_token": "false"})
    refused(tmp_path / "m.gguf", "neither true nor false")


def test_scores_must_be_as_many_as_tokens(tmp_path: Path) -> None:
    key = "tokenizer__ggml__scores"
    write_gguf(tmp_path / "m.gguf", metadata={key: [0.5] * len(TOKENS)})
    GGUFCheckpoint.open(tmp_path / "m.gguf")
    write_gguf(tmp_path / "m.gguf", metadata={key: [0.5, 0.5]})
    refused(tmp_path / "m.gguf", "scores of another number")


# --- Headers without end -----------------------------------------------------------------------

_ARRAY, _STRING, _BYTE = 9, 8, 0


def _header(rest: bytes, *, n_values: int = 0, n_tensors: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_values) + rest


def _list_of(element: int, count: int) -> bytes:
    return _text(b"k") + struct.pack("<IIQ", _ARRAY, element, count)


def _text(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


_MANY = 200_000
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
def test_a_header_without_end_costs_little(case: str, tmp_path: Path) -> None:
    # The files hold every byte that the header speaks of, as holes that take no room on a disk.
    header, why = ENDLESS[case]
    path = tmp_path / "m.gguf"
    path.write_bytes(header)
    os.truncate(path, 2**30 + 1000)
    tracemalloc.start()
    refused(path, why)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
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


def test_a_named_pipe_is_no_model(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.gguf")
    assert not is_gguf(tmp_path / "m.gguf")
