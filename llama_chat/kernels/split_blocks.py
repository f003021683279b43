"""Splitting of K-quant blocks in C."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama_chat.kernels import native

BITS = {"Q4_K": 4, "Q5_K": 5, "Q6_K": 6}
"""Bits per weight of the GGUF types that C can split."""


def split_blocks(
    name: str,
    blocks: NDArray[np.void],
    quants: NDArray[np.uint8],
    scales: NDArray[np.int8],
    mins: NDArray[np.int8] | None,
) -> None:
    """Write quants, scales and minima of blocks of the type ``name``, as in a ``PackedWeight``.

    All arrays are contiguous, ``(n_blocks, …)``.
    """
    parts: list[NDArray[Any] | None] = [quants, scales, mins]
    addresses = (None if part is None else part.ctypes.data for part in parts)
    native.library().split_blocks(BITS[name], blocks.ctypes.data, len(blocks), *addresses)
