"""The number formats of GGUF tensors: splitting, dequantizing and packing their blocks.

A quantized row is a run of blocks of 32 or 256 weights. Each format has a function that splits
blocks into a small integer for each weight and, for each group of 16 or 32 weights, a scale and in
some formats a minimum. The fields of a block are named as in the reference,
https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from llama_chat.kernels.matrix import NativeMatrix
from llama_chat.quantization.linear import Packed, has_kernels
from llama_chat.quantization.packed import PackedWeight

Blocks = NDArray[np.void]
"""``(n_blocks,)``, each with the fields of its format."""
Bytes = NDArray[np.uint8]
Halves = NDArray[np.float16]
Numbers = NDArray[np.float16] | NDArray[np.int8]


class BlockParts(NamedTuple):
    """Blocks split into the tensors of a ``PackedWeight``, each ``(n_blocks, n_groups, …)``.

    They are views of the blocks where these hold them unchanged.
    """

    quants: NDArray[Any]
    scales: Numbers
    mins: Numbers | None = None
    super_scales: Halves | None = None
    """``(n_blocks, 1)``."""
    super_mins: Halves | None = None


def _as_items(numbers: NDArray[Any], n_bytes: int) -> NDArray[np.void]:
    """View runs of ``n_bytes`` as one item each, which NumPy copies much faster than bytes."""
    return numbers.view(np.dtype((np.void, n_bytes)))


def _bit_fields(packed: Bytes, width: int) -> Bytes:
    """Unpack fields of ``width`` bits of each byte, lowest first: ``(…, n)`` to ``(…, k, n)``."""
    n = packed.shape[-1]
    packed = np.ascontiguousarray(packed)
    each = [_as_items(packed >> at & 2**width - 1, n) for at in range(0, 8, width)]
    return np.stack(each, axis=-2).view(np.uint8)


def _split_last_axis(numbers: Bytes, n: int) -> Iterator[Bytes]:
    """Split the last axis into ``n`` parts."""
    pieces = _as_items(numbers, numbers.shape[-1] // n)
    return (np.ascontiguousarray(pieces[..., i, None]).view(np.uint8) for i in range(n))


def _pack_nibbles(numbers: Bytes) -> Bytes:
    """Pack two numbers of 4 bits to a byte, as in W4: ``(…, group)`` to ``(…, group / 2)``."""
    low, high = _split_last_axis(numbers, 2)
    return low | high * 16  # NumPy multiplies ten times as fast as it shifts to the left


def _pack_two_bits(numbers: Bytes) -> Bytes:
    """Pack four numbers of 2 bits to a byte, as the upper bits of W6: ``(…, group / 4)``."""
    a, b, c, d = _split_last_axis(numbers, 4)
    return a | b * 4 | c * 16 | d * 64


def _pack_fifth_bits(bits: Bytes) -> Bytes:
    """Pack numbers of one bit as the fifth bits of W5: ``(…, 32)`` to ``(…, 4)``."""
    columns = bits.reshape(*bits.shape[:-1], 8, 4)
    return np.packbits(columns, axis=-2, bitorder="little").reshape(*bits.shape[:-1], 4)


def _pack_w6(low: Bytes, upper: Bytes) -> Bytes:
    """Pack W6 from the low four bits of its numbers and the upper two, both ``(…, group)``."""
    return np.concatenate((_pack_nibbles(low), _pack_two_bits(upper)), axis=-1)


def _q4_0(blocks: Blocks) -> BlockParts:
    return BlockParts(blocks["qs"], blocks["d"][:, None])


def _q4_1(blocks: Blocks) -> BlockParts:
    return BlockParts(blocks["qs"], blocks["d"][:, None], blocks["m"][:, None])


def _q5_quants(blocks: Blocks) -> Bytes:
    """Compute the quants of Q5_0 and Q5_1: bit ``i`` of ``qh`` is the fifth bit of weight ``i``."""
    fifth = np.unpackbits(blocks["qh"], axis=-1, bitorder="little")[:, None]
    return np.concatenate((blocks["qs"], _pack_fifth_bits(fifth)), axis=-1)


def _q5_0(blocks: Blocks) -> BlockParts:
    return BlockParts(_q5_quants(blocks), blocks["d"][:, None])


def _q5_1(blocks: Blocks) -> BlockParts:
    return BlockParts(_q5_quants(blocks), blocks["d"][:, None], blocks["m"][:, None])


def _q8_0(blocks: Blocks) -> BlockParts:
    return BlockParts(blocks["qs"], blocks["d"][:, None])


def _super_scales(blocks: Blocks) -> tuple[Halves, Halves]:
    """Compute the super-block scales of scales and of minima, which the formats subtract."""
    return blocks["d"][:, None], -blocks["dmin"][:, None]


def _q2_k(blocks: Blocks) -> BlockParts:
    quants = _bit_fields(blocks["qs"], 2).reshape(-1, 16, 16)
    numbers = blocks["scales"].view(np.int8)
    return BlockParts(
        _pack_nibbles(quants), numbers & 15, numbers >> 4 & 15, *_super_scales(blocks)
    )


def _q3_k(blocks: Blocks) -> BlockParts:
    """Split blocks with quants of -4 to 3 and scales of -32 to 31, both in two fields."""
    low = _bit_fields(blocks["qs"], 2).reshape(-1, 16, 16)
    high = _bit_fields(blocks["hmask"], 1).reshape(-1, 16, 16)
    quants = (low | high * 4) + 4  # W4 subtracts 8
    scales = _bit_fields(blocks["scales"], 4).reshape(-1, 16)
    scales |= _bit_fields(blocks["scales_h"], 2).reshape(-1, 16) * 16
    return BlockParts(_pack_nibbles(quants), scales.view(np.int8) - 32, None, blocks["d"][:, None])


def _k_scales(blocks: Blocks) -> tuple[Numbers, Numbers, Halves, Halves]:
    """Unpack scales and minima of the 8 groups of Q4_K and Q5_K, and their super-block scales.

    Each has 6 bits. Four scales or minima are processed at once, as the bytes of one integer. The
    first four groups have theirs in the low six bits of ``scales`` and ``mins``; the two bits above
    are the upper bits of the last four groups, whose low four bits are in ``rest``.
    """
    scales, mins, rest = blocks["scales"], blocks["mins"], blocks["rest"]
    last_scales = rest & 0x0F0F0F0F | scales >> 2 & 0x30303030
    last_mins = rest >> 4 & 0x0F0F0F0F | mins >> 2 & 0x30303030
    all_scales = np.stack((scales & 0x3F3F3F3F, last_scales), axis=1).view(np.int8)
    all_mins = np.stack((mins & 0x3F3F3F3F, last_mins), axis=1).view(np.int8)
    return all_scales, all_mins, *_super_scales(blocks)


def _q4_k(blocks: Blocks) -> BlockParts:
    return BlockParts(
        _pack_nibbles(_bit_fields(blocks["qs"], 4).reshape(-1, 8, 32)), *_k_scales(blocks)
    )


def _q5_k(blocks: Blocks) -> BlockParts:
    low = _pack_nibbles(_bit_fields(blocks["qs"], 4).reshape(-1, 8, 32))
    fifth = _pack_fifth_bits(_bit_fields(blocks["qh"], 1))
    return BlockParts(np.concatenate((low, fifth), axis=-1), *_k_scales(blocks))


def _q6_k(blocks: Blocks) -> BlockParts:
    """Split blocks with quants of -32 to 31; W6 subtracts 32."""
    low = _bit_fields(blocks["ql"], 4).reshape(-1, 16, 16)
    upper = _bit_fields(blocks["qh"], 2).reshape(-1, 16, 16)
    return BlockParts(_pack_w6(low, upper), blocks["scales"], None, blocks["d"][:, None])


def _iq4_nl(blocks: Blocks) -> BlockParts:
    return BlockParts(blocks["qs"].view(np.int8), blocks["d"][:, None])


def _iq4_xs(blocks: Blocks) -> BlockParts:
    # The fields of a byte are neighbouring scales here, hence the axis of length 1.
    scales = _bit_fields(blocks["scales_l"][..., None], 4).reshape(-1, 8)
    scales |= _bit_fields(blocks["scales_h"][..., None], 2).reshape(-1, 8) * 16
    quants = blocks["qs"].view(np.int8)
    return BlockParts(quants, scales.view(np.int8) - 32, None, blocks["d"][:, None])


@dataclass(frozen=True, slots=True)
class BlockType:
    """Block format of quantized weights."""

    name: str
    n_weights: int
    """Weights per block."""
    layout: np.dtype[np.void]
    """Fields of a block, without gaps."""
    split: Callable[[Blocks], BlockParts]

    @property
    def n_bytes(self) -> int:
        """Bytes per block."""
        return self.layout.itemsize

    @property
    def empty_block(self) -> PackedWeight:
        """A block of zeros as a matrix, for its layout and size."""
        return _to_packed_weight(self.split(np.zeros(1, self.layout)), self, 1)

    @property
    def packed_bytes(self) -> int:
        """Bytes of the weights of a block in a ``PackedWeight``."""
        return self.empty_block.n_bytes


@dataclass(frozen=True, slots=True)
class FloatType:
    """Float format of weights that are not quantized."""

    name: str
    dtype: torch.dtype

    @property
    def n_weights(self) -> int:
        """Weights per block: 1."""
        return 1

    @property
    def n_bytes(self) -> int:
        """Bytes of a weight."""
        return self.dtype.itemsize


def _layout(*fields: tuple[str, str] | tuple[str, str, int | tuple[int, ...]]) -> np.dtype[np.void]:
    return np.dtype(list(fields))


_D, _M, _DMIN = ("d", "<f2"), ("m", "<f2"), ("dmin", "<f2")
_QS = ("qs", "u1", (1, 16))
_K_SCALES = (("scales", "<u4"), ("mins", "<u4"), ("rest", "<u4"))

SUPPORTED: dict[int, FloatType | BlockType] = {
    0: FloatType("F32", torch.float32),
    1: FloatType("F16", torch.float16),
    30: FloatType("BF16", torch.bfloat16),
    2: BlockType("Q4_0", 32, _layout(_D, _QS), _q4_0),
    3: BlockType("Q4_1", 32, _layout(_D, _M, _QS), _q4_1),
    6: BlockType("Q5_0", 32, _layout(_D, ("qh", "u1", 4), _QS), _q5_0),
    7: BlockType("Q5_1", 32, _layout(_D, _M, ("qh", "u1", 4), _QS), _q5_1),
    8: BlockType("Q8_0", 32, _layout(_D, ("qs", "i1", (1, 32))), _q8_0),
    10: BlockType(
        "Q2_K", 256, _layout(("scales", "u1", 16), ("qs", "u1", (2, 32)), _D, _DMIN), _q2_k
    ),
    11: BlockType(
        "Q3_K",
        256,
        _layout(
            ("hmask", "u1", 32),
            ("qs", "u1", (2, 32)),
            ("scales", "u1", 8),
            ("scales_h", "u1", 4),
            _D,
        ),
        _q3_k,
    ),
    12: BlockType("Q4_K", 256, _layout(_D, _DMIN, *_K_SCALES, ("qs", "u1", (4, 32))), _q4_k),
    13: BlockType(
        "Q5_K",
        256,
        _layout(_D, _DMIN, *_K_SCALES, ("qh", "u1", 32), ("qs", "u1", (4, 32))),
        _q5_k,
    ),
    14: BlockType(
        "Q6_K",
        256,
        _layout(("ql", "u1", (2, 64)), ("qh", "u1", (2, 32)), ("scales", "i1", 16), _D),
        _q6_k,
    ),
    20: BlockType("IQ4_NL", 32, _layout(_D, _QS), _iq4_nl),
    23: BlockType(
        "IQ4_XS",
        256,
        _layout(_D, ("scales_h", "u1", 2), ("scales_l", "u1", 4), ("qs", "u1", (8, 16))),
        _iq4_xs,
    ),
}
"""Supported types, by their number in the file."""

KNOWN_NAMES = {
    9: "Q8_1",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    21: "IQ3_S",
    22: "IQ2_S",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
    40: "NVFP4",
}
"""Names of types that are not supported, by their number in the file."""

_CHUNK_WEIGHTS = 2**18
"""Weights per chunk: few enough that intermediate results stay in the L2 cache."""


def _in_chunks(data: Bytes, kind: BlockType) -> Iterator[tuple[slice, BlockParts]]:
    """Split the blocks of ``data`` in chunks; yields the slice of the blocks and their parts."""
    blocks = data.view(kind.layout)
    step = _CHUNK_WEIGHTS // kind.n_weights
    for start in range(0, len(blocks), step):
        chunk = slice(start, start + step)
        yield chunk, kind.split(blocks[chunk])


def dequantize(data: Bytes, kind: BlockType, dtype: torch.dtype) -> torch.Tensor:
    """Dequantize weights to floats.

    Args:
        data: the stored bytes, ``(n_blocks * kind.n_bytes,)``.
        kind: their format.
        dtype: the type wanted; the arithmetic is float32, rounded once at the end.

    Returns:
        The weights in their order, ``(n_blocks * kind.n_weights,)``.
    """
    out = torch.empty(len(data) // kind.n_bytes, kind.n_weights, dtype=dtype)
    for chunk, parts in _in_chunks(data, kind):
        out[chunk] = _to_packed_weight(parts, kind, len(out[chunk])).unpack(dtype)
    return out.flatten()


def pack(data: Bytes, kind: BlockType, n_rows: int) -> PackedWeight | None:
    """Pack a quantized matrix, without quantizing it again.

    Args:
        data: the stored bytes.
        kind: their format.
        n_rows: number of rows of the matrix.

    Returns:
        The matrix; None if a scale or minimum is infinite or NaN.
    """
    buffers: Any = (
        None if part is None else np.empty((len(data) // kind.n_bytes, *part.shape[1:]), part.dtype)
        for part in kind.split(np.zeros(1, kind.layout))
    )
    whole = BlockParts(*buffers)
    n_bytes = whole.quants.shape[-1]
    for chunk, parts in _in_chunks(data, kind):
        _as_items(whole.quants, n_bytes)[chunk] = _as_items(parts.quants, n_bytes)
        for to, part in zip(whole[1:], parts[1:], strict=True):
            if to is not None and part is not None:
                if not _is_finite(part):
                    return None
                to[chunk] = part
    return _to_packed_weight(whole, kind, n_rows)


def _is_finite(numbers: Numbers) -> bool:
    """True if all are finite; comparing exponents takes a third of the time of ``np.isfinite``."""
    if numbers.dtype == np.int8:
        return True
    return bool(((numbers.view(np.uint16) & 0x7C00) < 0x7C00).all())


def _to_packed_weight(parts: BlockParts, kind: BlockType, n_rows: int) -> PackedWeight:
    _, n_groups, n_bytes = parts.quants.shape
    bits: Any = 8 * n_groups * n_bytes // kind.n_weights
    quants = torch.from_numpy(parts.quants).reshape(n_rows, -1, n_bytes)
    numbers: Any = (
        None if part is None else torch.from_numpy(part).reshape(n_rows, -1) for part in parts[1:]
    )
    return PackedWeight(bits, quants, *numbers)


def place_blocks(data: Bytes, kind: BlockType, n_rows: int, device: torch.device) -> Packed | None:
    """Pack a quantized matrix, likewise, in the layout that is fastest on ``device``."""
    if has_kernels(device):
        shape = n_rows, len(data) // kind.n_bytes // n_rows * kind.n_weights
        matrix = NativeMatrix(kind.empty_block.layout, shape)
        return matrix if matrix.write_blocks(data) else None
    packed = pack(data, kind, n_rows)
    return None if packed is None else packed.map(lambda tensor: tensor.to(device))
