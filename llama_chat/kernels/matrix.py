"""Matrices for the C kernels: packed, or floats."""

import ctypes

import numpy as np
import torch
from numpy.typing import NDArray
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
        self, layout: PackedLayout, shape: tuple[int, int], level: str | None = None
    ) -> None:
        """Allocate a matrix ``(out, in)``, whose rows are to be written.

        ``level`` is one of ``supported_levels()``; None for the one in use.
        """
        self._library = native.library()
        self._level = native.level_number(level)
        self.bits = layout.bits
        self.shape = shape
        """``(out, in)``."""
        self.matrix = Matrix(PACKED, layout, *shape)
        self._address = ctypes.byref(self.matrix)
        self.n_bytes: int = self._library.packed_bytes(self._address)
        """Bytes of memory."""
        self._panels = _MEMORY.allocate(self.n_bytes)
        self.matrix.data = self._panels.data_ptr()

    def write_rows(self, first: int, *tensors: Tensor | None) -> None:
        """Copy tensors of a ``PackedWeight``: some rows, from ``first`` on.

        Raises:
            ValueError: if they are not whole panels, or not contiguous.
        """
        quants = tensors[0]
        if quants is None or quants.stride(2) != 1:
            raise ValueError("the quants of a group are not contiguous")
        if first % PANEL or first + len(quants) > self.shape[0]:
            raise ValueError(f"{len(quants)} rows from {first} on are not whole panels")
        to = self._panels.data_ptr() + self.n_bytes // padded_rows(self.shape[0]) * first
        part = Matrix(PACKED, self.matrix.layout, len(quants), self.shape[1], to)
        source = UnpackedMatrix(*map(TensorView.of, tensors))
        self._library.pack_panels(ctypes.byref(part), ctypes.byref(source), to)

    def write_blocks(self, blocks: NDArray[np.uint8]) -> bool:
        """Copy all rows, from the blocks of the type of GGUF that is packed in this layout.

        Returns:
            False if a scale or minimum is infinite or NaN; then rows are missing.
        """
        return bool(
            self._library.pack_blocks(self._address, blocks.ctypes.data, self._panels.data_ptr())
        )

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
