"""Packed weights: matrices that stay at 4, 6 or 8 bits a weight while the model runs.

A row is cut into groups of 16 or 32 neighbours. Weight ``i`` of a group is ``scale * q + min``,
where ``q`` is a small integer and every group has a scale of its own. What is here is plain torch:
the reference for the faster path in C, and what is used where that is not to be had.
"""

import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from operator import itemgetter
from typing import Any, Literal, cast

import torch
from torch import Tensor

from llama_chat.kernels import native
from llama_chat.kernels.abi import MAX_EXACT_BATCH
from llama_chat.kernels.matrix import NativeMatrix

STEP_WEIGHTS = 256
"""Weights of a row that share the steps of their scales, where scales have steps."""

LAYOUTS = frozenset(
    {
        (4, 32, False, False),  # Q4_0
        (4, 32, True, False),  # Q4_1, and what is packed anew
        (6, 32, False, False),  # Q5_0
        (6, 32, True, False),  # Q5_1
        (8, 32, False, False),  # Q8_0, IQ4_NL, and what is packed anew
        (4, 16, False, True),  # Q3_K
        (4, 16, True, True),  # Q2_K
        (4, 32, True, True),  # Q4_K
        (6, 16, False, True),  # Q6_K
        (6, 32, True, True),  # Q5_K
        (8, 32, False, True),  # IQ4_XS
    }
)
"""Bits, group, whether there are minima, and whether scales have steps; ``FOR_LAYOUTS`` in C."""

_NATIVE_DTYPES = (torch.float32, torch.bfloat16)
"""What the functions in C unpack to."""

_LEAST_STEP = 2**-24
"""The least float16 above 0: a group of equal weights has a scale of 0, by which none divides."""

UNPACKED_BYTES = 2**25
"""Weights that are unpacked at a time, in bytes: a product needs that much beside the weights."""


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A matrix ``(out, in)`` of packed weights, in one of three layouts.

    **W4**: ``q`` is 0 to 15, two to a byte: byte ``i`` of a group of ``n`` holds weight ``i`` in
    its low half and weight ``i + n / 2`` in its high half. Without ``mins`` the minimum is
    ``-8 * scale``, so that the weights lie around zero.

    **W6**: ``q`` is 0 to 63. Its low four bits are as in W4; of the ``n / 4`` bytes behind them,
    byte ``i`` holds the upper two bits of weights ``i``, ``i + n / 4``, ``i + n / 2`` and
    ``i + 3 * n / 4``, lowest first. Without ``mins`` the minimum is ``-32 * scale``.

    **W8**: ``q`` is -128 to 127. Without ``mins`` the minimum is 0.

    The tensors may be views of a mapped file.
    """

    bits: Literal[4, 6, 8]
    quants: Tensor
    """``(out, in / group, group * bits / 8)``. W4 and W6: uint8. W8: int8."""
    scales: Tensor
    """``(out, in / group)``, float16; or int8, each to be multiplied by its step."""
    mins: Tensor | None = None
    """The same as ``scales``, or None."""
    scale_steps: Tensor | None = None
    """float16 ``(out, in / STEP_WEIGHTS)`` if scales are int8, or None."""
    min_steps: Tensor | None = None
    """The same for ``mins``."""

    def __post_init__(self) -> None:
        expected = torch.int8 if self.bits == 8 else torch.uint8
        if self.quants.dtype != expected or self.quants.dim() != 3:
            raise ValueError(f"W{self.bits} needs groups of {expected}")
        stepped, has_mins = self.scale_steps is not None, self.mins is not None
        if (self.bits, self.group, has_mins, stepped) not in LAYOUTS:
            raise ValueError(f"no layout W{self.bits} has such groups of {self.group}")
        if (self.min_steps is not None) != (stepped and has_mins):
            raise ValueError("minima have steps where scales have them")
        whole = torch.int8 if stepped else torch.float16
        for numbers in (self.scales, self.mins):
            if numbers is None:
                continue
            if numbers.dtype != whole or numbers.shape != self.quants.shape[:2]:
                raise ValueError(f"scales and mins are {whole}, one for each group")
        n_rows, n_columns = self.shape
        for steps in (self.scale_steps, self.min_steps):
            if steps is None:
                continue
            if steps.dtype != torch.float16 or steps.shape != (n_rows, n_columns / STEP_WEIGHTS):
                raise ValueError(f"steps are float16, one for {STEP_WEIGHTS} weights")

    @property
    def shape(self) -> tuple[int, int]:
        """``(out, in)``."""
        rows, n_groups, _ = self.quants.shape
        return rows, n_groups * self.group

    @property
    def group(self) -> int:
        """How many neighbours share a scale."""
        return self.quants.shape[2] * 8 // self.bits

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.quants.device

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """All that it consists of, in the order of the fields."""
        return self.quants, self.scales, self.mins, self.scale_steps, self.min_steps

    @property
    def n_bytes(self) -> int:
        """Bytes that it takes."""
        return sum(tensor.nbytes for tensor in self.tensors if tensor is not None)

    def map(self, change: Callable[[Tensor], Tensor]) -> "PackedWeight":
        """The same with each tensor changed."""
        changed = (None if tensor is None else change(tensor) for tensor in self.tensors)
        return PackedWeight(self.bits, *cast("Any", changed))

    def unpack(self, dtype: torch.dtype) -> Tensor:
        """The weights as floats ``(out, in)``; the arithmetic is float32, rounded once."""
        weights = self._whole_numbers()
        scales = _stepped(self.scales, self.scale_steps)
        if self.mins is not None:
            weights.mul_(scales).add_(_stepped(self.mins, self.min_steps))
        elif self.bits == 8:
            weights.mul_(scales)
        else:
            weights.sub_(2 ** (self.bits - 1)).mul_(scales)
        return weights.view(self.shape).to(dtype)

    def _whole_numbers(self) -> Tensor:
        """Each ``q``, in float32 ``(out, in / group, group)``."""
        if self.bits == 8:
            return self.quants.float()
        half, quarter = self.group // 2, self.group // 4
        low = self.quants[..., :half]
        weights = torch.empty(*self.scales.shape, self.group, device=self.device)
        weights[..., :half] = low & 15
        weights[..., half:] = low >> 4
        if self.bits == 6:
            upper = self.quants[..., half:]
            for i in range(4):
                weights[..., i * quarter : (i + 1) * quarter] += (upper >> 2 * i & 3) * 16
        return weights


def _stepped(numbers: Tensor, steps: Tensor | None) -> Tensor:
    """Scales or minima as floats ``(out, in / group, 1)``."""
    floats = numbers.float()
    if steps is not None:
        by_step = floats.reshape(*steps.shape, -1)
        floats = (by_step * steps.float().unsqueeze(-1)).view(numbers.shape)
    return floats.unsqueeze(-1)


Packed = PackedWeight | NativeMatrix
"""A packed matrix at work: in C, or its twin in torch."""


def place(weight: PackedWeight, device: torch.device) -> Packed:
    """Copy a matrix to where it is to work, in the form that is fastest there."""
    if native.is_available() and device.type == "cpu":
        return NativeMatrix(weight.bits, *weight.tensors)
    return weight.map(lambda tensor: tensor.to(device, copy=True).contiguous())


def unpack_rows(weight: Packed, ids: Tensor, dtype: torch.dtype) -> Tensor:
    """Some rows as floats: ids ``(n,)`` to ``(n, in)``."""
    if isinstance(weight, PackedWeight):
        return weight.map(itemgetter(ids)).unpack(dtype)
    wanted = dtype if dtype in _NATIVE_DTYPES else torch.float32
    return weight.unpack_rows(ids, torch.empty(len(ids), weight.shape[1], dtype=wanted)).to(dtype)


def packed_linear(x: Tensor, weight: Packed) -> Tensor:
    """``x @ weight.T``.

    In C, ``x`` is rounded to 8 bits per group. Without, and for many rows where a processor has
    units for matrices of bfloat16, a part of the weights is unpacked at a time.

    Args:
        x: ``(…, in)``.
        weight: ``(out, in)``.

    Returns:
        ``(…, out)`` in the type of ``x``.
    """
    out, width = weight.shape
    rows = x.reshape(-1, width)
    few = len(rows) <= MAX_EXACT_BATCH
    if isinstance(weight, NativeMatrix) and (few or not prefers_floats(x.dtype)):
        wanted = x.dtype if x.dtype in _NATIVE_DTYPES else torch.float32
        product = weight.multiply(rows.to(wanted)).to(x.dtype)
    else:
        product = x.new_empty(len(rows), out)
        start = 0
        for part in _unpack_by_parts(weight, x.dtype):
            torch.mm(rows, part.T, out=product[:, start : start + len(part)])
            start += len(part)
    return product.view(*x.shape[:-1], out)


@cache
def prefers_floats(dtype: torch.dtype) -> bool:
    """Whether many rows are multiplied faster by unpacked weights of ``dtype``.

    That is so where a processor has units for matrices of bfloat16 (AMX).
    """
    return dtype == torch.bfloat16 and bool(torch.cpu._is_amx_tile_supported())


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


def _unpack_by_parts(weight: Packed, dtype: torch.dtype) -> Iterator[Tensor]:
    """The rows as floats, some at a time; each part is good until the next one."""
    out, width = weight.shape
    step = max(1, UNPACKED_BYTES // (dtype.itemsize * width))
    for start in range(0, out, step):
        end = min(start + step, out)
        if isinstance(weight, NativeMatrix):
            room = _scratch.floats((end - start, width), dtype)
            yield weight.unpack_rows(torch.arange(start, end), room)
        else:
            yield weight.map(itemgetter(slice(start, end))).unpack(dtype)


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
    quants = torch.empty(
        *(out, width // 32, 4 * bits), dtype=torch.uint8 if bits == 4 else torch.int8
    )
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
    return quants, scales.squeeze(-1), mins.squeeze(-1)


def _pack8(groups: Tensor) -> tuple[Tensor, Tensor, None]:
    """Bytes and scales of groups ``(rows, n, 32)``."""
    scales = (groups.abs().amax(-1, keepdim=True) / 127).half()
    steps = groups / scales.float().clamp_min(_LEAST_STEP)
    quants = steps.round().clamp(-127, 127).to(torch.int8)
    return quants, scales.squeeze(-1), None
