"""The most likely tokens of a vocabulary, found in C."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from llama_chat.kernels import native
from llama_chat.kernels.scratch import ScratchPool

_SCRATCH = ScratchPool()


Found = tuple[Sequence[float], Sequence[int], float, float]


def find_likeliest(
    rows: Sequence[Tensor], k: int, factor: float, level: str | None = None
) -> list[Found]:
    """Find the ``k`` largest logits of each row; see ``find_likeliest`` in ``likeliest.c``.

    Args:
        rows: each ``(vocab_size,)`` in float32, contiguous, on the CPU.
        k: at most ``vocab_size``.
        factor: of the second sum.
        level: one of ``supported_levels()``; None for the one in use.

    Returns:
        For each row the logits from the largest on, the earlier one first of equal ones; their
        places; the logarithm of the sum of ``exp(logits)``; and the sum of
        ``exp((logits - logits.max()) * factor)``.
    """
    library, n_rows, n = native.library(), len(rows), len(rows[0])
    values, places = (ctypes.c_float * (n_rows * k))(), (ctypes.c_int32 * (n_rows * k))()
    sums, n_threads = (ctypes.c_double * (2 * n_rows))(), torch.get_num_threads()
    with _SCRATCH.borrow(library.likeliest_scratch_bytes(n_rows, n, n_threads)) as scratch:
        library.find_likeliest(
            (ctypes.c_void_p * n_rows)(*(row.data_ptr() for row in rows)),
            n_rows,
            n,
            k,
            factor,
            values,
            places,
            sums,
            scratch.data_ptr(),
            native.level_number(level),
            n_threads,
        )
    return [
        (values[i * k : (i + 1) * k], places[i * k : (i + 1) * k], sums[2 * i], sums[2 * i + 1])
        for i in range(n_rows)
    ]


def is_supported(logits: Tensor) -> bool:
    """True if the kernels find the likeliest of these ``logits``."""
    is_here = logits.device.type == "cpu" and logits.dtype == torch.float32
    return is_here and logits.is_contiguous() and native.is_available()
