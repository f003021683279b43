"""The most likely tokens of a vocabulary, found in C."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from llama_chat.kernels import native
from llama_chat.kernels.scratch import ScratchPool

_SCRATCH = ScratchPool()


def find_likeliest(
    logits: Tensor, k: int, factor: float, level: str | None = None
) -> tuple[Sequence[float], Sequence[int], float, float]:
    """Find the ``k`` largest of ``logits``; see ``find_likeliest`` in ``likeliest.c``.

    Args:
        logits: ``(vocab_size,)`` in float32, contiguous, on the CPU.
        k: at most their number.
        factor: of the second sum.
        level: one of ``supported_levels()``; None for the one in use.

    Returns:
        The logits from the largest on, the earlier one first of equal ones; their places; the
        logarithm of the sum of ``exp(logits)``; and the sum of
        ``exp((logits - logits.max()) * factor)``.
    """
    library, n = native.library(), len(logits)
    values, places = (ctypes.c_float * k)(), (ctypes.c_int32 * k)()
    sums = (ctypes.c_double * 2)()
    with _SCRATCH.borrow(library.likeliest_scratch_bytes(n)) as scratch:
        library.find_likeliest(
            logits.data_ptr(),
            n,
            k,
            factor,
            values,
            places,
            sums,
            scratch.data_ptr(),
            native.level_number(level),
            torch.get_num_threads(),
        )
    return values[:], places[:], *sums


def is_supported(logits: Tensor) -> bool:
    """True if the kernels find the likeliest of these ``logits``."""
    is_here = logits.device.type == "cpu" and logits.dtype == torch.float32
    return is_here and logits.is_contiguous() and native.is_available()
