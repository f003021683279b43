"""Matrices for the C kernels: packed, or floats."""

import ctypes

import torch
from torch import Tensor

from llama_chat.kernels import native
from llama_chat.kernels.abi import (
    PACKED,
    PANEL,
    WEIGHT_TYPES,
    Matrix,
    PackedLayout,
    TensorView,
    UnpackedMatrix,
)
from llama_chat.kernels.pages import WeightMemory

_MEMORY = WeightMemory()


class FloatMatrix:
    """A matrix ``(out, in)`` of floats, for the C kernels: the memory of a tensor, not copied."""

    def __init__(self, weight: Tensor) -> None:
        """Use ``weight`` as it is: contiguous, on the CPU, of a type in ``WEIGHT_TYPES``."""
        self._weight = weight
        self.matrix = Matrix(
            WEIGHT_TYPES[weight.dtype], PackedLayout(), *weight.shape, weight.data_ptr()
        )

    @classmethod
    def of(cls, weight: Tensor) -> "FloatMatrix | None":
        """Return the matrix of ``weight``; None if the kernels cannot multiply it."""
        usable = weight.device.type == "cpu" and weight.is_contiguous()
        return cls(weight) if usable and weight.dtype in WEIGHT_TYPES else None

    def multiply(self, x: Tensor) -> Tensor:
        """Compute ``x @ weight.T`` for ``x`` ``(n, in)`` in float32, with as many threads as torch.

        Returns:
            ``(n, out)`` in float32.
        """
        x = x.contiguous()
        y = torch.empty(len(x), len(self._weight))
        native.library().multiply(
            ctypes.byref(self.matrix),
            x.data_ptr(),
            len(x),
            y.data_ptr(),
            False,
            None,
            native.level_number(),
            torch.get_num_threads(),
        )
        return y


class NativeMatrix:
    """A packed matrix ``(out, in)`` in the layout of the C kernels.

    The weights of a ``PackedWeight``, in panels of sixteen rows; see ``packed.h``.
    """

    def __init__(
        self,
        bits: int,
        quants: Tensor,
        scales: Tensor,
        mins: Tensor | None = None,
        super_scales: Tensor | None = None,
        super_mins: Tensor | None = None,
        *,
        n_rows: int | None = None,
        level: str | None = None,
    ) -> None:
        """Copy the tensors of a ``PackedWeight``.

        With ``n_rows`` it has as many, of which these tensors are the first, and ``write_rows``
        writes the others. ``level`` is one of ``supported_levels()``; None for the one in use.
        """
        self._library = native.library()
        self._level = native.level_number(level)
        rows, n_groups, n_bytes = quants.shape
        self.bits = bits
        self.group = n_bytes * 8 // bits
        self.shape = n_rows or rows, n_groups * self.group
        """``(out, in)``."""
        tensors = quants, scales, mins, super_scales, super_mins
        self._row_bytes = sum(tensor[0].nbytes for tensor in tensors if tensor is not None)
        self.n_bytes = padded_rows(self.shape[0]) * self._row_bytes
        """Bytes of memory."""
        self._panels = _MEMORY.allocate(self.n_bytes)
        super_groups = 0 if super_scales is None else n_groups // super_scales.shape[1]
        is_iq4 = bits == 4 and quants.dtype == torch.int8
        layout = PackedLayout(bits, self.group, mins is not None, super_groups, is_iq4)
        self.matrix = Matrix(PACKED, layout, *self.shape, self._panels.data_ptr())
        self._address = ctypes.byref(self.matrix)
        self.write_rows(0, *tensors)

    def write_rows(self, first: int, *tensors: Tensor | None) -> None:
        """Copy tensors of some rows, from ``first`` on, which is a multiple of ``PANEL``."""
        quants = tensors[0]
        if quants is None or quants.stride(2) != 1:
            raise ValueError("the quants of a group are not contiguous")
        if first % PANEL or first + len(quants) > self.shape[0]:
            raise ValueError(f"{len(quants)} rows from {first} on are not whole panels")
        to = self._panels.data_ptr() + first * self._row_bytes
        part = Matrix(PACKED, self.matrix.layout, len(quants), self.shape[1], to)
        source = UnpackedMatrix(*map(TensorView.of, tensors))
        self._library.pack_panels(ctypes.byref(part), ctypes.byref(source), to)

    def multiply(self, x: Tensor) -> Tensor:
        """Compute ``x @ weights.T``, with ``x`` quantized to 8 bits per group.

        Uses as many threads as torch.

        Args:
            x: ``(n, in)`` in float32 or bfloat16.

        Returns:
            ``(n, out)`` in the same type.
        """
        is_bf16, n = _is_bf16(x.dtype), len(x)
        x = x.contiguous()
        y = torch.empty(n, self.shape[0], dtype=x.dtype)
        n_bytes = self._library.multiply_scratch_bytes(self._address, n)
        scratch = torch.empty(n_bytes, dtype=torch.uint8)
        self._library.multiply(
            self._address,
            x.data_ptr(),
            n,
            y.data_ptr(),
            is_bf16,
            scratch.data_ptr(),
            self._level,
            torch.get_num_threads(),
        )
        return y

    def unpack_rows(self, ids: Tensor, to: Tensor) -> Tensor:
        """Write the rows ``ids`` as floats into ``to`` ``(n, in)``, float32 or bfloat16.

        Returns:
            ``to``.
        """
        ids = ids.contiguous()
        self._library.dequantize_rows(
            self._address,
            ids.data_ptr(),
            len(ids),
            to.data_ptr(),
            _is_bf16(to.dtype),
            self._level,
            torch.get_num_threads(),
        )
        return to


def _is_bf16(dtype: torch.dtype) -> bool:
    if dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"{dtype} is neither float32 nor bfloat16")
    return dtype == torch.bfloat16


def padded_rows(n: int) -> int:
    """Round ``n`` rows up to whole panels."""
    return -(-n // PANEL) * PANEL
