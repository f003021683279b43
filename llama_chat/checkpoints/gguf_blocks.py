"""The number formats of GGUF tensors, and how they become floats.

A quantised row is a run of blocks of 32 weights, each with a float16 scale ``d``; the 4-bit types
hold weight ``i`` in the low half of byte ``i`` and weight ``i + 16`` in its high half.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

Blocks = NDArray[np.uint8]
"""``(n_blocks, bytes per block)``."""
Floats = NDArray[np.float32]
"""``(n_blocks, weights per block)``."""


def _scale(blocks: Blocks, at: int) -> Floats:
    """The float16 at byte ``at`` of each block, ``(n_blocks, 1)``."""
    halves: NDArray[np.float16] = np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16)
    return halves.astype(np.float32)


def _nibbles(packed: Blocks) -> NDArray[np.uint8]:
    """The 32 4-bit numbers of 16 bytes: all low halves, then all high ones."""
    return np.concatenate((packed & 0x0F, packed >> 4), axis=1)


def _q8_0(blocks: Blocks) -> Floats:
    return _scale(blocks, 0) * blocks[:, 2:].view(np.int8).astype(np.float32)


def _q4_0(blocks: Blocks) -> Floats:
    return _scale(blocks, 0) * (_nibbles(blocks[:, 2:]).astype(np.int8) - 8).astype(np.float32)


def _q4_1(blocks: Blocks) -> Floats:
    weights = _nibbles(blocks[:, 4:]).astype(np.float32)
    return _scale(blocks, 0) * weights + _scale(blocks, 2)


@dataclass(frozen=True, slots=True)
class BlockType:
    """How weights are stored."""

    name: str
    n_weights: int
    """Weights in a block."""
    n_bytes: int
    """Bytes in a block."""
    dequantize: Callable[[Blocks], Floats] | None = None
    dtype: torch.dtype | None = None
    """The torch type of what is not quantised."""


SUPPORTED = {
    0: BlockType("F32", 1, 4, dtype=torch.float32),
    1: BlockType("F16", 1, 2, dtype=torch.float16),
    30: BlockType("BF16", 1, 2, dtype=torch.bfloat16),
    2: BlockType("Q4_0", 32, 18, _q4_0),
    3: BlockType("Q4_1", 32, 20, _q4_1),
    8: BlockType("Q8_0", 32, 34, _q8_0),
}
"""The types that can be read, by their number in the file."""

KNOWN_NAMES = {
    6: "Q5_0",
    7: "Q5_1",
    9: "Q8_1",
    10: "Q2_K",
    11: "Q3_K",
    12: "Q4_K",
    13: "Q5_K",
    14: "Q6_K",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
}
"""The types that exist and cannot be read yet."""

_SCRATCH_BLOCKS = 2**17
"""Blocks unpacked at a time: 16 MiB of float32, so that the peak is the result and little more."""


def dequantize(data: Blocks, kind: BlockType, dtype: torch.dtype) -> torch.Tensor:
    """Unpack quantised weights.

    Args:
        data: the stored bytes, ``(n_blocks * kind.n_bytes,)``.
        kind: their format.
        dtype: the type wanted; the arithmetic is float32, rounded once at the end.

    Returns:
        The weights in their order, ``(n_blocks * kind.n_weights,)``.
    """
    if kind.dequantize is None:
        raise ValueError(f"{kind.name} is not quantised")
    blocks = data.reshape(-1, kind.n_bytes)
    out = torch.empty(len(blocks), kind.n_weights, dtype=dtype)
    for start in range(0, len(blocks), _SCRATCH_BLOCKS):
        part = blocks[start : start + _SCRATCH_BLOCKS]
        out[start : start + len(part)] = torch.from_numpy(kind.dequantize(part))
    return out.flatten()
