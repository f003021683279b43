"""The number formats of GGUF tensors: how blocks come apart, become floats, and are packed.

A quantised row is a run of blocks of 32 or 256 weights. Each format has a function that takes
blocks apart into what all of them are made of: a small integer for each weight, and for each group
of 16 or 32 weights a scale and, in some, a minimum. The fields of a block are named as in the
reference, https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llama_chat.model.quantization import PackedWeight

Blocks = NDArray[np.void]
"""``(n_blocks,)``, each with the fields of its format."""
Bytes = NDArray[np.uint8]
Halves = NDArray[np.float16]
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Parts:
    """Blocks taken apart: a weight is ``scale * quant + min``."""

    quants: NDArray[Any]
    """int8 ``(n_blocks, n_groups, group)``; or two to a byte, uint8 ``(…, group / 2)``, as the
    layout W4 of ``PackedWeight`` has them."""
    scales: Halves | Floats
    """``(n_blocks, n_groups)``. They are float16 where all parts are views of the blocks."""
    mins: Halves | Floats | None = None
    """The same as ``scales``; None is 0, or for uint8 ``-8 * scale``."""


def _items(numbers: NDArray[Any], n_bytes: int) -> NDArray[np.void]:
    """Runs of ``n_bytes`` as one item each: NumPy copies them whole, and much faster than bytes."""
    return numbers.view(np.dtype((np.void, n_bytes)))


def _fields(packed: Bytes, width: int) -> Bytes:
    """The numbers of ``width`` bits in each byte, lowest first: ``(…, n)`` to ``(…, k, n)``."""
    n = packed.shape[-1]
    packed = np.ascontiguousarray(packed)
    each = [_items(packed >> at & 2**width - 1, n) for at in range(0, 8, width)]
    return np.stack(each, axis=-2).view(np.uint8)


def _pairs(numbers: Bytes) -> Bytes:
    """Two numbers of 4 bits to a byte, as W4 has them: ``(…, group)`` to ``(…, group / 2)``."""
    halves = _items(numbers, numbers.shape[-1] // 2)
    low, high = (np.ascontiguousarray(halves[..., i, None]).view(np.uint8) for i in (0, 1))
    return low | high * 16  # NumPy multiplies ten times as fast as it shifts to the left


def _per_block(halves: NDArray[Any]) -> Floats:
    """A float16 of each block, ``(n_blocks, 1)``."""
    return halves[:, None].astype(np.float32)


def _q4_0(blocks: Blocks) -> Parts:
    return Parts(blocks["qs"], blocks["d"][:, None])


def _q4_1(blocks: Blocks) -> Parts:
    return Parts(blocks["qs"], blocks["d"][:, None], blocks["m"][:, None])


def _five_bits(blocks: Blocks) -> NDArray[np.int8]:
    """The quants of Q5_0 and Q5_1: bit ``i`` of ``qh`` is the fifth of weight ``i``."""
    low = _fields(blocks["qs"], 4).reshape(-1, 1, 32)
    high = np.unpackbits(blocks["qh"], axis=-1, bitorder="little")[:, None]
    return (low | high * 16).view(np.int8)


def _q5_0(blocks: Blocks) -> Parts:
    return Parts(_five_bits(blocks) - 16, _per_block(blocks["d"]))


def _q5_1(blocks: Blocks) -> Parts:
    return Parts(_five_bits(blocks), _per_block(blocks["d"]), _per_block(blocks["m"]))


def _q8_0(blocks: Blocks) -> Parts:
    return Parts(blocks["qs"], blocks["d"][:, None])


def _q2_k(blocks: Blocks) -> Parts:
    quants = _fields(blocks["qs"], 2).reshape(-1, 16, 16)
    scales = blocks["scales"]
    return Parts(
        _pairs(quants),
        _per_block(blocks["d"]) * (scales & 15),
        -(_per_block(blocks["dmin"]) * (scales >> 4)),
    )


def _q3_k(blocks: Blocks) -> Parts:
    """Quants of -4 to 3 and scales of -32 to 31, both in two pieces."""
    low = _fields(blocks["qs"], 2).reshape(-1, 16, 16)
    high = _fields(blocks["hmask"], 1).reshape(-1, 16, 16)
    quants = (low | high * 4) + 4  # W4 takes 8 away again
    scales = _fields(blocks["scales"], 4).reshape(-1, 16)
    scales |= _fields(blocks["scales_h"], 2).reshape(-1, 16) * 16
    return Parts(_pairs(quants), _per_block(blocks["d"]) * (scales.view(np.int8) - 32))


def _k_scales(blocks: Blocks) -> tuple[Floats, Floats]:
    """Scales and minima of the 8 groups of Q4_K and Q5_K, of 6 bits each.

    Four of either stand in the four bytes of one number. Those of the first groups are the low bits
    of ``scales`` and ``mins``; the two bits above them belong on top of the four bits that the
    last groups have in ``rest``.
    """
    scales, mins, rest = blocks["scales"], blocks["mins"], blocks["rest"]
    last_scales = rest & 0x0F0F0F0F | scales >> 2 & 0x30303030
    last_mins = rest >> 4 & 0x0F0F0F0F | mins >> 2 & 0x30303030
    all_scales = np.stack((scales & 0x3F3F3F3F, last_scales), axis=1).view(np.uint8)
    all_mins = np.stack((mins & 0x3F3F3F3F, last_mins), axis=1).view(np.uint8)
    return _per_block(blocks["d"]) * all_scales, -(_per_block(blocks["dmin"]) * all_mins)


def _q4_k(blocks: Blocks) -> Parts:
    return Parts(_pairs(_fields(blocks["qs"], 4).reshape(-1, 8, 32)), *_k_scales(blocks))


def _q5_k(blocks: Blocks) -> Parts:
    low = _fields(blocks["qs"], 4).reshape(-1, 8, 32)
    quants = low | _fields(blocks["qh"], 1) * 16
    return Parts(quants.view(np.int8), *_k_scales(blocks))


def _q6_k(blocks: Blocks) -> Parts:
    low = _fields(blocks["ql"], 4).reshape(-1, 16, 16)
    high = _fields(blocks["qh"], 2).reshape(-1, 16, 16)
    quants = (low | high * 16).view(np.int8) - 32
    return Parts(quants, _per_block(blocks["d"]) * blocks["scales"])


_IQ4 = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], dtype=np.int8
)
"""What the 4-bit numbers of IQ4_NL and IQ4_XS stand for."""


def _iq4_nl(blocks: Blocks) -> Parts:
    return Parts(_IQ4.take(_fields(blocks["qs"], 4).reshape(-1, 1, 32)), _per_block(blocks["d"]))


def _iq4_xs(blocks: Blocks) -> Parts:
    quants = _IQ4.take(_fields(blocks["qs"], 4).reshape(-1, 8, 32))
    # Neighbours in a byte are neighbours among the scales here, hence the axis of 1.
    scales = _fields(blocks["scales_l"][..., None], 4).reshape(-1, 8)
    scales |= _fields(blocks["scales_h"][..., None], 2).reshape(-1, 8) * 16
    return Parts(quants, _per_block(blocks["d"]) * (scales.view(np.int8) - 32))


@dataclass(frozen=True, slots=True)
class BlockType:
    """How weights are stored."""

    name: str
    n_weights: int
    """Weights in a block."""
    layout: np.dtype[np.void]
    """The fields of a block, which follow each other without a gap."""
    take_apart: Callable[[Blocks], Parts]

    @property
    def n_bytes(self) -> int:
        """Bytes in a block."""
        return self.layout.itemsize

    @property
    def packed_bytes(self) -> int:
        """Bytes that the weights of a block take when they are packed."""
        parts = self.take_apart(np.zeros(1, self.layout))
        return int(parts.quants.nbytes + parts.scales.size * (2 if parts.mins is None else 4))


@dataclass(frozen=True, slots=True)
class FloatType:
    """How weights are stored that are not quantised."""

    name: str
    dtype: torch.dtype

    @property
    def n_weights(self) -> int:
        """Each weight is a block of its own."""
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
"""The types that can be read, by their number in the file."""

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
"""The types that exist and cannot be read."""

_WEIGHTS_AT_A_TIME = 2**18
"""Few enough that what is made of them on the way stays in a processor's second cache."""


def _in_chunks(data: Bytes, kind: BlockType) -> Iterator[tuple[slice, Parts]]:
    """The blocks of ``data`` taken apart, some at a time, with where they lie among all."""
    blocks = data.view(kind.layout)
    step = _WEIGHTS_AT_A_TIME // kind.n_weights
    for start in range(0, len(blocks), step):
        chunk = slice(start, start + step)
        yield chunk, kind.take_apart(blocks[chunk])


# Where a scale is infinite or no number, the weights are not either, and no warning is due.
_QUIET = np.errstate(invalid="ignore", over="ignore")


@_QUIET
def dequantize(data: Bytes, kind: BlockType, dtype: torch.dtype) -> torch.Tensor:
    """Turn quantised weights into floats.

    Args:
        data: the stored bytes, ``(n_blocks * kind.n_bytes,)``.
        kind: their format.
        dtype: the type wanted; the arithmetic is float32, rounded once at the end.

    Returns:
        The weights in their order, ``(n_blocks * kind.n_weights,)``.
    """
    out = torch.empty(len(data) // kind.n_bytes, kind.n_weights, dtype=dtype)
    for chunk, parts in _in_chunks(data, kind):
        out[chunk] = torch.from_numpy(_weights(parts)).view(-1, kind.n_weights)
    return out.flatten()


def _weights(parts: Parts) -> Floats:
    """The floats of some blocks, ``(n_blocks, n_groups, group)``."""
    quants = parts.quants
    if quants.dtype == np.uint8:
        quants = _fields(parts.quants, 4).reshape(*parts.scales.shape, -1)
        if parts.mins is None:
            quants = quants.view(np.int8) - 8
    weights = quants.astype(np.float32)
    weights *= parts.scales[..., None].astype(np.float32)
    if parts.mins is not None:
        weights += parts.mins[..., None].astype(np.float32)
    return weights


@_QUIET
def pack(data: Bytes, kind: BlockType, n_rows: int) -> PackedWeight | None:
    """Pack a quantised matrix, each weight under the number that it has in the file.

    Args:
        data: the stored bytes.
        kind: their format.
        n_rows: into how many rows they are cut.

    Returns:
        The matrix, its scales and minima rounded once to float16; None if one of them is too
        large for that, or no number. Views of ``data`` where that holds them.
    """
    sample = kind.take_apart(np.zeros(1, kind.layout))  # tells which parts there are
    if sample.scales.dtype == np.float16:
        parts = kind.take_apart(data.view(kind.layout))
    else:
        parts = _take_apart(data, kind, sample)
    if not np.isfinite(parts.scales).all():
        return None
    if parts.mins is not None and not np.isfinite(parts.mins).all():
        return None
    quants = torch.from_numpy(parts.quants)
    return PackedWeight(
        4 if quants.dtype == torch.uint8 else 8,
        quants.reshape(n_rows, -1, quants.shape[-1]),
        torch.from_numpy(parts.scales).reshape(n_rows, -1),
        None if parts.mins is None else torch.from_numpy(parts.mins).reshape(n_rows, -1),
    )


def _take_apart(data: Bytes, kind: BlockType, sample: Parts) -> Parts:
    """All blocks of ``data`` taken apart, scales and minima in float16."""
    n_blocks = len(data) // kind.n_bytes
    n_groups, n_bytes = sample.scales.size, sample.quants.nbytes // sample.scales.size
    quants = np.empty((n_blocks, n_groups, n_bytes), sample.quants.dtype)
    scales = np.empty((n_blocks, n_groups), np.float16)
    mins = None if sample.mins is None else np.empty_like(scales)
    for chunk, parts in _in_chunks(data, kind):
        _items(quants, n_bytes)[chunk] = _items(parts.quants, n_bytes)
        scales[chunk] = parts.scales
        if mins is not None:
            mins[chunk] = parts.mins
    return Parts(quants, scales, mins)
