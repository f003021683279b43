"""Every number format of GGUF: equal to the gguf library bit for bit, and packed without loss."""

import dataclasses
import mmap
import warnings
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from llama_chat.checkpoints.gguf import GGUFCheckpoint
from llama_chat.checkpoints.gguf_blocks import SUPPORTED, BlockType, dequantize, pack
from llama_chat.kernels import native, split_blocks
from llama_chat.kernels.matrix import NativeMatrix
from tests.model_files import SMALL, write_gguf

KINDS = {kind.name: kind for kind in SUPPORTED.values() if isinstance(kind, BlockType)}
PACKED_AS = {  # bits, group, has minima, has super-block scales, is IQ4
    "Q4_0": (4, 32, False, False, False),
    "Q4_1": (4, 32, True, False, False),
    "Q5_0": (5, 32, False, False, False),
    "Q5_1": (5, 32, True, False, False),
    "Q8_0": (8, 32, False, False, False),
    "Q2_K": (4, 16, True, True, False),
    "Q3_K": (4, 16, False, True, False),
    "Q4_K": (4, 32, True, True, False),
    "Q5_K": (5, 32, True, True, False),
    "Q6_K": (6, 16, False, True, False),
    "IQ4_NL": (4, 32, False, False, True),
    "IQ4_XS": (4, 32, False, True, True),
}


def random_blocks(
    kind: BlockType, n_blocks: int, largest: float, seed: int = 0
) -> NDArray[np.uint8]:
    """Make blocks of random bytes ``(bytes,)``, with scales and minima within ``largest``."""
    generator = np.random.default_rng(seed)
    data = generator.integers(0, 256, n_blocks * kind.n_bytes, dtype=np.uint8)
    blocks = data.view(kind.layout)
    for field in {"d", "m", "dmin"} & set(kind.layout.names or ()):
        blocks[field] = generator.uniform(-largest, largest, n_blocks)
    return data


def bits(numbers: NDArray[np.float32]) -> NDArray[np.uint32]:
    return numbers.reshape(-1).view(np.uint32)


def theirs(data: NDArray[np.uint8], kind: BlockType) -> NDArray[np.float32]:
    rows = data.reshape(-1, kind.n_bytes)
    found: NDArray[np.float32] = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[kind.name])
    return found


def test_numbers_and_sizes_are_those_of_the_format() -> None:
    for number, kind in SUPPORTED.items():
        assert gguf.GGMLQuantizationType(number).name == kind.name
        assert gguf.GGML_QUANT_SIZES[number] == (kind.n_weights, kind.n_bytes)


# Subnormal, usual and the largest float16 scales; 0 gives weights of -0.0.
@pytest.mark.parametrize("largest", [0.0, 1e-6, 0.01, 65504.0])
@pytest.mark.parametrize("name", KINDS)
def test_every_bit_is_that_of_the_gguf_library(name: str, largest: float) -> None:
    kind = KINDS[name]
    data = random_blocks(kind, 2**12 // kind.n_weights, largest)
    ours = dequantize(data, kind, torch.float32)
    assert np.array_equal(bits(ours.numpy()), bits(theirs(data, kind)))
    assert dequantize(data, kind, torch.bfloat16).equal(ours.bfloat16())


@settings(max_examples=20, deadline=None)
@given(name=st.sampled_from(sorted(KINDS)), n_blocks=st.integers(1, 40), seed=st.integers(0, 999))
def test_any_blocks_are_those_of_the_gguf_library(name: str, n_blocks: int, seed: int) -> None:
    data = random_blocks(KINDS[name], n_blocks, 1.0, seed)
    ours = dequantize(data, KINDS[name], torch.float32).numpy()
    assert np.array_equal(bits(ours), bits(theirs(data, KINDS[name])))


@pytest.mark.parametrize("largest", [0.01, 65504.0])
@pytest.mark.parametrize("name", KINDS)
def test_packed_weights_are_the_same(name: str, largest: float) -> None:
    kind = KINDS[name]
    # More blocks than are split at a time, and a last chunk that is not full.
    data = random_blocks(kind, (2**18 + 512 * 3) // kind.n_weights, largest)
    packed = pack(data, kind, n_rows=5 * 103)
    assert packed is not None
    stepped = packed.super_scales is not None
    has_mins = packed.mins is not None
    assert (packed.bits, packed.group, has_mins, stepped, packed.is_iq4) == PACKED_AS[name]
    assert packed.n_bytes == len(data) // kind.n_bytes * kind.packed_bytes
    unpacked = packed.unpack(torch.float32)
    assert np.array_equal(bits(unpacked.numpy()), bits(theirs(data, kind)))
    if native.is_available():
        matrix, rows = NativeMatrix(packed.bits, *packed.tensors), torch.arange(5 * 103)
        assert matrix.unpack_rows(rows, torch.empty_like(unpacked)).equal(unpacked)


@pytest.mark.parametrize("name", split_blocks.BITS)
def test_blocks_are_split_the_same_without_c(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = random_blocks(KINDS[name], 3 * 2**10, 0.01)
    packed = pack(data, KINDS[name], n_rows=12)
    monkeypatch.setattr(native, "is_available", lambda: False)
    expected = pack(data, KINDS[name], n_rows=12)
    assert packed is not None
    assert expected is not None
    for ours, theirs in zip(packed.tensors, expected.tensors, strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or theirs is None or ours.equal(theirs)


@pytest.mark.parametrize(
    ("most", "names"),
    [(1.0, "Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q6_K IQ4_NL"), (1.03, "Q4_K Q5_K IQ4_XS")],
)
def test_packing_makes_a_matrix_little_larger(most: float, names: str) -> None:
    for name in names.split():
        assert KINDS[name].packed_bytes <= KINDS[name].n_bytes * most


@pytest.mark.parametrize("name", KINDS)
def test_scales_that_are_not_finite_are_not_packed(name: str) -> None:
    kind = KINDS[name]
    for bad in (np.inf, np.nan):
        data = random_blocks(kind, 8, 0.01)
        data.view(kind.layout)["d"][3] = bad
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert pack(data, kind, n_rows=2) is None
            assert not dequantize(data, kind, torch.float32).isfinite().all()


def test_a_checkpoint_packs_its_quantized_matrices(tmp_path: Path) -> None:
    stored = write_gguf(tmp_path / "m.gguf", quantization=gguf.GGMLQuantizationType.Q4_0)
    checkpoint = GGUFCheckpoint.open(tmp_path / "m.gguf")
    for name, weight in stored.items():
        packed = checkpoint.read_packed(name)
        if weight.ndim == 1:
            assert packed is None
        else:
            assert packed is not None
            assert np.array_equal(packed.unpack(torch.float32).numpy(), weight)
    write_gguf(tmp_path / "f.gguf", quantization=gguf.GGMLQuantizationType.F16)
    assert GGUFCheckpoint.open(tmp_path / "f.gguf").read_packed("output.weight") is None


def resident_file_pages() -> int:
    """Return the bytes of mapped files in this process's memory."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssFile:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssFile")


@pytest.mark.skipif(not hasattr(mmap, "MADV_DONTNEED"), reason="no such advice here")
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc here")
def test_a_file_that_was_read_does_not_stay_in_memory(tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, n_layers=1, hidden_dim=2**16)
    name = "layers.0.feed_forward.w1.weight"
    write_gguf(tmp_path / "m.gguf", config, quantization=gguf.GGMLQuantizationType.Q8_0)
    checkpoint = GGUFCheckpoint.open(tmp_path / "m.gguf")
    size = checkpoint.tensors[name].n_bytes
    before = resident_file_pages()
    first = checkpoint.read(name, torch.float32)
    checkpoint.read_packed(name)
    checkpoint.forget(name)
    assert resident_file_pages() - before < size / 4
    assert checkpoint.read(name, torch.float32).equal(first)
