"""Every number format of GGUF: equal to the gguf library bit for bit, and packed without loss."""

import ctypes
import dataclasses
import itertools
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
from llama_chat.checkpoints.gguf_blocks import SUPPORTED, BlockType, dequantize, pack, place_blocks
from llama_chat.checkpoints.gguf_files import StoredTensor, open_files
from llama_chat.kernels import native
from llama_chat.kernels.matrix import NativeMatrix
from llama_chat.loading.weights import FloatTypes, read_weights
from llama_chat.parallel.slices import Slice
from llama_chat.quantization.linear import Packed, to_panels, unpack_rows
from llama_chat.quantization.packed import PackedWeight
from tests.model_files import SMALL, write_gguf

needs_kernels = pytest.mark.skipif(not native.is_available(), reason="no C kernels are here")

CPU = torch.device("cpu")
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


@settings(max_examples=20)
@given(name=st.sampled_from(sorted(KINDS)), n_blocks=st.integers(1, 40), seed=st.integers(0, 999))
def test_any_blocks_are_those_of_the_gguf_library(name: str, n_blocks: int, seed: int) -> None:
    data = random_blocks(KINDS[name], n_blocks, 1.0, seed)
    ours = dequantize(data, KINDS[name], torch.float32).numpy()
    assert np.array_equal(bits(ours), bits(theirs(data, KINDS[name])))


@pytest.mark.parametrize("largest", [0.01, 65504.0])
@pytest.mark.parametrize("name", KINDS)
def test_packed_weights_are_the_same(name: str, largest: float) -> None:
    kind = KINDS[name]
    # More blocks than are packed at a time, and a last chunk that is not full.
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
        matrix, rows = to_panels(packed), torch.arange(5 * 103)
        assert matrix.unpack_rows(rows, torch.empty_like(unpacked)).equal(unpacked)


def panels(matrix: Packed | None) -> bytes:
    """Return the memory of a matrix in panels."""
    assert isinstance(matrix, NativeMatrix)
    return ctypes.string_at(matrix.matrix.data, matrix.n_bytes)


def stored(name: str, n_rows: int, n_blocks: int) -> StoredTensor:
    """Make a matrix of random blocks, ``n_blocks`` in a row, in a mapping that it fills."""
    kind = KINDS[name]
    data = random_blocks(kind, n_rows * n_blocks, 1.0)
    mapped = mmap.mmap(-1, len(data))
    mapped.write(data.tobytes())
    return StoredTensor((n_rows, n_blocks * kind.n_weights), kind, 0, mapped)


@needs_kernels
@pytest.mark.parametrize("n_rows", [1, 15, 16, 17, 32, 45])
@pytest.mark.parametrize("name", KINDS)
def test_blocks_become_the_panels_of_their_packed_weight(name: str, n_rows: int) -> None:
    tensor, kind = stored(name, n_rows, n_blocks=5), KINDS[name]
    whole = pack(tensor.data(), kind, n_rows)
    assert whole is not None
    assert panels(place_blocks(tensor.data(), kind, n_rows, CPU)) == panels(to_panels(whole))
    columns = Slice(1, kind.n_weights, 3 * kind.n_weights)
    for part in (columns, *(Slice(0, first, n_rows) for first in {n_rows // 3, n_rows - 1})):
        packed = pack(tensor.data(part), kind, part.shape(tensor.shape)[0])
        assert packed is not None
        expected = whole.unpack(torch.float32).narrow(part.dim, part.start, len(part))
        assert packed.unpack(torch.float32).equal(expected)
        placed = place_blocks(tensor.data(part), kind, packed.shape[0], CPU)
        assert panels(placed) == panels(to_panels(packed))


@pytest.mark.parametrize("name", KINDS)
def test_without_kernels_blocks_become_a_packed_weight(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "is_available", lambda: False)
    kind, data = KINDS[name], random_blocks(KINDS[name], 15, 1.0)
    placed = place_blocks(data, kind, 5, CPU)
    assert isinstance(placed, PackedWeight)
    assert placed.unpack(torch.float32).flatten().equal(dequantize(data, kind, torch.float32))


@pytest.mark.parametrize(
    ("most", "names"),
    [(1.0, "Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q6_K IQ4_NL"), (1.03, "Q4_K Q5_K IQ4_XS")],
)
def test_packing_makes_a_matrix_little_larger(most: float, names: str) -> None:
    for name in names.split():
        assert KINDS[name].packed_bytes <= KINDS[name].n_bytes * most


@pytest.mark.parametrize("name", KINDS)
def test_scales_that_are_not_finite_are_not_packed(name: str) -> None:
    kind, n_rows, n_blocks = KINDS[name], 19, 3
    finite = random_blocks(kind, n_rows * n_blocks, 0.01)
    finite.view(kind.layout)["d"][:2] = 65504.0, -65504.0
    assert place_blocks(finite, kind, n_rows, CPU) is not None
    fields = sorted({"d", "m", "dmin"} & set(kind.layout.names or ()))
    places = itertools.product(range(n_rows * n_blocks), fields, (np.inf, -np.inf, np.nan))
    for block, field, bad in places:
        data = finite.copy()
        data.view(kind.layout)[field][block] = bad
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert place_blocks(data, kind, n_rows, CPU) is None
            assert pack(data, kind, n_rows) is None
            assert not dequantize(data, kind, torch.float32).isfinite().all()


def test_a_checkpoint_packs_its_quantized_matrices(tmp_path: Path) -> None:
    stored = write_gguf(tmp_path / "m.gguf", quantization=gguf.GGMLQuantizationType.Q4_0)
    checkpoint = GGUFCheckpoint.open(tmp_path / "m.gguf")
    for name, weight in stored.items():
        packed = checkpoint.read_packed(name, CPU)
        if weight.ndim == 1:
            assert packed is None
        else:
            assert packed is not None
            unpacked = unpack_rows(packed, torch.arange(len(weight)), torch.float32)
            assert np.array_equal(unpacked.numpy(), weight)
    write_gguf(tmp_path / "f.gguf", quantization=gguf.GGMLQuantizationType.F16)
    assert GGUFCheckpoint.open(tmp_path / "f.gguf").read_packed("output.weight", CPU) is None


def test_a_matrix_with_a_scale_that_is_not_finite_is_loaded_as_floats(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, quantization=gguf.GGMLQuantizationType.Q4_0)
    with path.open("r+b") as file:
        file.seek(open_files(path).tensors["blk.0.attn_v.weight"].begin)
        file.write(np.float16(np.nan).tobytes())
    checkpoint, name = GGUFCheckpoint.open(path), "layers.0.attention.wv.weight"
    weights = read_weights(checkpoint, "stored", FloatTypes(torch.float32), [CPU])
    loaded = [key for key, weight in weights.items() if isinstance(weight, torch.Tensor)]
    assert [key for key in loaded if "norm" not in key] == [name]


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
    checkpoint.read_packed(name, CPU)
    checkpoint.forget(name)
    assert resident_file_pages() - before < size / 4
    assert checkpoint.read(name, torch.float32).equal(first)
