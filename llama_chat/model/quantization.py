"""Packed weights: matrices that stay at 4 or 8 bits a weight while the model runs.

A row is cut into groups of 16 or 32 neighbours. Weight ``i`` of a group is ``scale * q + min``,
where ``q`` is a small integer and every group has a scale of its own. What is here is plain torch:
the reference for the faster path in C, and what is used where that is not to be had.
"""

import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from llama_chat.kernels import native
from llama_chat.kernels.native import NativeMatrix

GROUP_SIZES = (16, 32)

_NATIVE_DTYPES = (torch.float32, torch.bfloat16)
"""What the functions in C unpack to."""

_LEAST_STEP = 2**-24
"""The least float16 above 0: a group of equal weights has a scale of 0, by which none divides."""

UNPACKED_BYTES = 2**25
"""Weights that are unpacked at a time, in bytes: a product needs that much beside the weights."""


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A matrix ``(out, in)`` of packed weights, in one of two layouts.

    **W4**: ``q`` is 0 to 15, two to a byte: byte ``i`` of a group of ``n`` holds weight ``i`` in
    its low half and weight ``i + n / 2`` in its high half. Without ``mins`` the minimum is
    ``-8 * scale``, so that the weights lie around zero.

    **W8**: ``q`` is -128 to 127. Without ``mins`` the minimum is 0.
    """

    bits: Literal[4, 8]
    quants: Tensor
    """W4: uint8 ``(out, in // 2)``. W8: int8 ``(out, in)``."""
    scales: Tensor
    """float16 ``(out, in // group)``."""
    mins: Tensor | None = None
    """The same as ``scales``, or None."""

    def __post_init__(self) -> None:
        expected = torch.uint8 if self.bits == 4 else torch.int8
        if self.quants.dtype != expected or self.quants.dim() != 2:
            raise ValueError(f"W{self.bits} needs a matrix of {expected}")
        if self.group not in GROUP_SIZES or self.shape[1] % self.group:
            raise ValueError(f"groups of {self.group} in rows of {self.shape[1]}")
        for numbers in (self.scales, self.mins):
            if numbers is None:
                continue
            if numbers.dtype != torch.float16 or numbers.shape != self.scales.shape:
                raise ValueError("scales and mins are float16 and of one shape")

    @property
    def shape(self) -> tuple[int, int]:
        """``(out, in)``."""
        rows, columns = self.quants.shape
        return rows, columns * (2 if self.bits == 4 else 1)

    @property
    def group(self) -> int:
        """How many neighbours share a scale."""
        return self.shape[1] // max(1, self.scales.shape[1])

    @property
    def layout(self) -> str:
        """``W4`` or ``W8``."""
        return f"W{self.bits}"

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.quants.device

    @property
    def n_bytes(self) -> int:
        """Bytes that it takes."""
        tensors = (self.quants, self.scales, self.mins)
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    def to(self, device: torch.device) -> "PackedWeight":
        """The same on ``device``."""
        mins = None if self.mins is None else self.mins.to(device)
        return PackedWeight(self.bits, self.quants.to(device), self.scales.to(device), mins)

    def rows(self, index: Tensor | slice) -> "PackedWeight":
        """Some of the rows."""
        mins = None if self.mins is None else self.mins[index]
        return PackedWeight(self.bits, self.quants[index], self.scales[index], mins)

    @cached_property
    def native(self) -> NativeMatrix | None:
        """The same as C sees it, where that can be had."""
        if not native.available or self.device.type != "cpu":
            return None
        return NativeMatrix(self.bits, self.group, self.quants, self.scales, self.mins)

    def unpack(self, dtype: torch.dtype) -> Tensor:
        """The weights as floats ``(out, in)``; the arithmetic is float32, rounded once."""
        if self.native is not None and dtype in _NATIVE_DTYPES:
            return self.native.unpack(torch.empty(self.shape, dtype=dtype))
        return self.unpack_in_torch(dtype)

    def unpack_in_torch(self, dtype: torch.dtype) -> Tensor:
        """What ``unpack`` does, without C: the reference."""
        out, width = self.shape
        scales = self.scales.float().unsqueeze(-1)  # (out, in / group, 1)
        grouped = self.quants.view(out, scales.shape[1], -1)
        if self.bits == 4:
            weights = torch.empty(out, scales.shape[1], self.group, device=self.device)
            weights[..., : self.group // 2] = grouped & 15
            weights[..., self.group // 2 :] = grouped >> 4
        else:
            weights = grouped.float()
        if self.mins is not None:
            weights.mul_(scales).add_(self.mins.float().unsqueeze(-1))
        elif self.bits == 4:
            weights.sub_(8).mul_(scales)
        else:
            weights.mul_(scales)
        return weights.view(out, width).to(dtype)


def packed_linear(x: Tensor, weight: PackedWeight) -> Tensor:
    """``x @ weight.T``.

    A few rows are multiplied by the packed weights as they are, with ``x`` rounded to 8 bits per
    group; for more rows, or without C, a part of the weights is unpacked at a time.

    Args:
        x: ``(…, in)``.
        weight: ``(out, in)``.

    Returns:
        ``(…, out)`` in the type of ``x``.
    """
    out, width = weight.shape
    rows = x.reshape(-1, width)
    if weight.native is not None and len(rows) <= native.MAX_ROWS:
        product = weight.native.multiply(rows.float()).to(x.dtype)
    else:
        product = x.new_empty(len(rows), out)
        start = 0
        for part in _unpack_by_parts(weight, x.dtype):
            torch.mm(rows, part.T, out=product[:, start : start + len(part)])
            start += len(part)
    return product.view(*x.shape[:-1], out)


class _Scratch(threading.local):
    """Memory that is used for one part after the other.

    Fresh memory costs as much time as unpacking into it: the system hands it out page by page.
    """

    buffer = torch.empty(0, dtype=torch.uint8)

    def floats(self, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """Room for a matrix, until the next call."""
        n_bytes = math.prod(shape) * dtype.itemsize
        if len(self.buffer) < n_bytes:
            self.buffer = torch.empty(n_bytes, dtype=torch.uint8)
        return self.buffer[:n_bytes].view(dtype).view(shape)


_scratch = _Scratch()


def _unpack_by_parts(weight: PackedWeight, dtype: torch.dtype) -> Iterator[Tensor]:
    """The rows as floats, some at a time; each part is good until the next one."""
    out, width = weight.shape
    step = max(1, UNPACKED_BYTES // (dtype.itemsize * width))
    for start in range(0, out, step):
        part = weight if step >= out else weight.rows(slice(start, start + step))
        if part.native is not None and dtype in _NATIVE_DTYPES:
            yield part.native.unpack(_scratch.floats(part.shape, dtype))
        else:
            yield part.unpack_in_torch(dtype)


def packed_bytes(shape: tuple[int, ...], bits: Literal[4, 8], group: int, *, mins: bool) -> int:
    """Bytes that a matrix ``(out, in)`` takes in a layout."""
    n_weights = math.prod(shape)
    return n_weights * bits // 8 + n_weights // group * (4 if mins else 2)


def quantize(weight: Tensor, bits: Literal[4, 8]) -> PackedWeight:
    """Pack a float matrix in groups of 32, each weight rounded to the nearest step.

    W4 spans each group from its least to its greatest weight (as Q4_1 does); W8 its greatest
    magnitude (as Q8_0).

    Args:
        weight: ``(out, in)``, with ``in`` a multiple of 32.
        bits: the layout.

    Raises:
        ValueError: if the rows cannot be cut into groups.
    """
    out, width = weight.shape
    if width % 32:
        raise ValueError(f"rows of {width} weights are no multiple of 32")
    quants = torch.empty(out, width * bits // 8, dtype=torch.uint8 if bits == 4 else torch.int8)
    scales = torch.empty(out, width // 32, dtype=torch.float16)
    mins = torch.empty_like(scales) if bits == 4 else None
    pack = _pack4 if bits == 4 else _pack8
    step = max(1, UNPACKED_BYTES // (4 * width))
    for start in range(0, out, step):
        rows = slice(start, start + step)
        groups = weight[rows].float().view(-1, width // 32, 32)
        quants[rows], scales[rows], lowest = pack(groups)
        if mins is not None and lowest is not None:
            mins[rows] = lowest
    return PackedWeight(bits, quants, scales, mins)


def _pack4(groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Nibbles, scales and minima of groups ``(rows, n, 32)``."""
    lowest, highest = groups.aminmax(dim=-1, keepdim=True)
    scales, mins = ((highest - lowest) / 15).half(), lowest.half()
    steps = (groups - mins.float()) / scales.float().clamp_min(_LEAST_STEP)
    nibbles = steps.round().clamp(0, 15).to(torch.uint8)
    quants = nibbles[..., :16] | nibbles[..., 16:] << 4
    return quants.flatten(1), scales.squeeze(-1), mins.squeeze(-1)


def _pack8(groups: Tensor) -> tuple[Tensor, Tensor, None]:
    """Bytes and scales of groups ``(rows, n, 32)``."""
    scales = (groups.abs().amax(-1, keepdim=True) / 127).half()
    steps = groups / scales.float().clamp_min(_LEAST_STEP)
    quants = steps.round().clamp(-127, 127).to(torch.int8)
    return quants.flatten(1), scales.squeeze(-1), None
