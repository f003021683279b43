"""Packed weights: matrices that stay at 4 or 8 bits a weight while the model runs.

A row is cut into groups of 16 or 32 neighbours. Weight ``i`` of a group is ``scale * q + min``,
where ``q`` is a small integer and every group has a scale of its own. What is here is plain torch,
and the reference for anything faster.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

GROUP_SIZES = (16, 32)

UNPACKED_BYTES = 2**25
"""Weights that are unpacked at a time, in bytes: a product needs that much beside the weights."""


@dataclass(frozen=True, slots=True, eq=False)
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

    def unpack(self, dtype: torch.dtype) -> Tensor:
        """The weights as floats ``(out, in)``; the arithmetic is float32, rounded once."""
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
    """``x @ weight.T``, with a part of the rows unpacked at a time.

    Args:
        x: ``(…, in)``; its type is that of the arithmetic.
        weight: ``(out, in)``.

    Returns:
        ``(…, out)``.
    """
    out, width = weight.shape
    result = x.new_empty((*x.shape[:-1], out))
    step = max(1, UNPACKED_BYTES // (4 * width))
    for start in range(0, out, step):
        part = weight.rows(slice(start, start + step)).unpack(x.dtype)
        result[..., start : start + step] = x @ part.T
    return result


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
    groups = weight.float().view(out, -1, 32)
    if bits == 8:
        scales = (groups.abs().amax(-1, keepdim=True) / 127).half()
        steps = groups / scales.float().clamp_min(2**-24)
        quants = steps.round().clamp(-127, 127).to(torch.int8)
        return PackedWeight(8, quants.view(out, width), scales.squeeze(-1))
    lowest, highest = groups.aminmax(dim=-1, keepdim=True)
    scales, mins = ((highest - lowest) / 15).half(), lowest.half()
    steps = (groups - mins.float()) / scales.float().clamp_min(2**-24)
    nibbles = steps.round().clamp(0, 15).to(torch.uint8)
    quants = nibbles[..., :16] | nibbles[..., 16:] << 4
    return PackedWeight(4, quants.reshape(out, -1), scales.squeeze(-1), mins.squeeze(-1))
