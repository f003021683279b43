"""Blocks of K-quants taken apart in C."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama_chat.kernels import native

BITS = {"Q4_K": 4, "Q5_K": 5, "Q6_K": 6}
"""The types of GGUF for which there are functions, and how many bits a weight has in each."""


def take_apart(
    name: str,
    blocks: NDArray[np.void],
    quants: NDArray[np.uint8],
    scales: NDArray[np.int8],
    mins: NDArray[np.int8] | None,
) -> None:
    """Write the parts of blocks of the type ``name``, as ``PackedWeight`` has them.

    All are contiguous, ``(n_blocks, …)``.
    """
    parts: list[NDArray[Any] | None] = [quants, scales, mins]
    addresses = (None if part is None else part.ctypes.data for part in parts)
    native.built().take_apart_k(BITS[name], blocks.ctypes.data, len(blocks), *addresses)
