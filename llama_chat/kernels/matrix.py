"""Packed matrices as the C functions have them."""

import ctypes

import torch
from torch import Tensor

from llama_chat.kernels import native
from llama_chat.kernels.pages import room

_PANEL = 16
"""Rows that lie together; ``PANEL`` of ``packed.h``."""


class PackedMatrix(ctypes.Structure):
    """``packed_matrix`` of ``packed.h``."""

    _fields_ = (
        ("bits", ctypes.c_int32),
        ("group", ctypes.c_int32),
        ("has_mins", ctypes.c_int32),
        ("span", ctypes.c_int32),
        ("n_rows", ctypes.c_int64),
        ("n_columns", ctypes.c_int64),
        ("panels", ctypes.c_void_p),
    )


class _PackedPart(ctypes.Structure):
    """``packed_part`` of ``panels.c``."""

    _fields_ = (("first", ctypes.c_void_p), ("row", ctypes.c_int64), ("group", ctypes.c_int64))

    @classmethod
    def of(cls, tensor: Tensor | None) -> "_PackedPart":
        if tensor is None:
            return cls()
        steps = (tensor.stride(axis) * tensor.element_size() for axis in (0, 1))
        return cls(tensor.data_ptr(), *steps)


class _PackedRows(ctypes.Structure):
    """``packed_rows`` of ``panels.c``."""

    _fields_ = tuple(
        (name, _PackedPart) for name in ("quants", "scales", "mins", "scale_steps", "min_steps")
    )


class NativeMatrix:
    """A packed matrix ``(out, in)`` in the memory of the processor, laid out for the C functions.

    What it holds is what ``PackedWeight`` says, sixteen rows together; see ``packed.h``.
    """

    def __init__(
        self,
        bits: int,
        quants: Tensor,
        scales: Tensor,
        mins: Tensor | None = None,
        scale_steps: Tensor | None = None,
        min_steps: Tensor | None = None,
        *,
        level: int | None = None,
    ) -> None:
        """Copy the tensors of a ``PackedWeight``.

        ``level`` is a number of ``LEVELS``, or None for the one in use.
        """
        self._library = native.built()
        self._level = native.level if level is None else level
        rows, n_groups, n_bytes = quants.shape
        self.bits = bits
        self.group = n_bytes * 8 // bits
        self.shape = rows, n_groups * self.group
        """``(out, in)``."""
        parts = quants, scales, mins, scale_steps, min_steps
        row_bytes = sum(part[0].nbytes for part in parts if part is not None)
        self.n_bytes = padded_rows(rows) * row_bytes
        """Bytes that it takes."""
        self._panels = room(self.n_bytes)
        span = 0 if scale_steps is None else n_groups // scale_steps.shape[1]
        self.matrix = PackedMatrix(
            bits, self.group, mins is not None, span, *self.shape, self._panels.data_ptr()
        )
        self._address = ctypes.byref(self.matrix)
        if quants.stride(2) != 1:
            raise ValueError("the quants of a group do not lie side by side")
        source = _PackedRows(*map(_PackedPart.of, parts))
        self._library.pack_panels(self._address, ctypes.byref(source), self._panels.data_ptr())

    def multiply(self, x: Tensor) -> Tensor:
        """``x @ weights.T``: ``(n, in)`` in float32 or bfloat16 to ``(n, out)`` in the same type.

        ``x`` is rounded to 8 bits per group.
        """
        narrow, n = _narrow(x.dtype), len(x)
        x = x.contiguous()
        y = torch.empty(n, self.shape[0], dtype=x.dtype)
        row_bytes = self._library.rounded_bytes(self.shape[1], self.group)
        scratch = torch.empty(n * row_bytes, dtype=torch.uint8)
        self._library.multiply(
            self._address, x.data_ptr(), n, y.data_ptr(), narrow, scratch.data_ptr(), self._level
        )
        return y

    def unpack_rows(self, ids: Tensor, to: Tensor) -> Tensor:
        """Write some rows into ``to`` ``(n, in)``, float32 or bfloat16; returns it."""
        ids = ids.contiguous()
        self._library.unpack_rows(
            self._address, ids.data_ptr(), len(ids), to.data_ptr(), _narrow(to.dtype), self._level
        )
        return to


def _narrow(dtype: torch.dtype) -> bool:
    if dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"{dtype} is neither float32 nor bfloat16")
    return dtype == torch.bfloat16


def padded_rows(n: int) -> int:
    """Rows that a ``NativeMatrix`` of ``n`` rows takes the room of: whole panels."""
    return -(-n // _PANEL) * _PANEL
