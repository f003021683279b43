"""Packed weights: matrices that keep 4, 5, 6 or 8 bits a weight while the model runs.

A row is cut into groups of 16 or 32 neighbours. Weight ``i`` of a group is ``scale * q + min``,
where ``q`` is a small integer and every group has its own scale. Everything here is plain torch:
the reference for the C kernels, and the fallback where they were not built.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, cast

import torch
from torch import Tensor

from llama_chat.kernels.abi import PackedLayout

SUPER_BLOCK = 256
"""Weights of a row that share super-block scales, in layouts that have these."""

LAYOUTS = frozenset(
    {
        (4, 32, False, False, False),  # Q4_0
        (4, 32, True, False, False),  # Q4_1, and int4 quantized at load
        (4, 32, False, False, True),  # IQ4_NL
        (5, 32, False, False, False),  # Q5_0
        (5, 32, True, False, False),  # Q5_1
        (8, 32, False, False, False),  # Q8_0, and int8 quantized at load
        (4, 16, False, True, False),  # Q3_K
        (4, 16, True, True, False),  # Q2_K
        (4, 32, True, True, False),  # Q4_K
        (4, 32, False, True, True),  # IQ4_XS
        (6, 16, False, True, False),  # Q6_K
        (5, 32, True, True, False),  # Q5_K
    }
)
"""Bits, group, has minima, has super-block scales, is IQ4; ``FOR_LAYOUTS`` in C."""

IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""Values of the 4-bit numbers of IQ4."""


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A matrix ``(out, in)`` of packed weights, in one of five layouts.

    **W4**: ``q`` is 0 to 15, two to a byte: byte ``i`` of a group of ``n`` holds weight ``i`` in
    its low half and weight ``i + n / 2`` in its high half. Without ``mins`` the minimum is
    ``-8 * scale``, so that the weights are symmetric around zero.

    **W5**: ``q`` is 0 to 31. Its low four bits are stored as in W4, followed by 4 bytes of fifth
    bits: bit ``k`` of byte ``i`` is that of weight ``4 * k + i``. Without ``mins`` the minimum is
    ``-16 * scale``.

    **W6**: ``q`` is 0 to 63. Its low four bits are stored as in W4, followed by ``n / 4`` bytes of
    upper bits: byte ``i`` holds the upper two bits of weights ``i``, ``i + n / 4``, ``i + n / 2``
    and ``i + 3 * n / 4``, lowest first. Without ``mins`` the minimum is ``-32 * scale``.

    **IQ4**: ``q`` is a value of ``IQ4``; the places of two are stored in a byte as in W4, and what
    distinguishes the two is the type. The minimum is 0.

    **W8**: ``q`` is -128 to 127. Without ``mins`` the minimum is 0.

    The tensors may be views of a mapped file.

    Raises:
        ValueError: if the tensors do not fit a layout of ``LAYOUTS``.
    """

    bits: Literal[4, 5, 6, 8]
    quants: Tensor
    """``(out, in / group, group * bits / 8)``. W4, W5 and W6: uint8. IQ4 and W8: int8."""
    scales: Tensor
    """``(out, in / group)``, float16; or int8, each a multiple of its super-block scale."""
    mins: Tensor | None = None
    """Shape and type of ``scales``, or None."""
    super_scales: Tensor | None = None
    """Super-block scales of int8 ``scales``, float16 ``(out, in / SUPER_BLOCK)``, or None."""
    super_mins: Tensor | None = None
    """Super-block scales of ``mins``, likewise."""

    def __post_init__(self) -> None:
        expected = (torch.int8,) if self.bits == 8 else (torch.uint8, torch.int8)
        if self.quants.dtype not in expected or self.quants.dim() != 3:
            raise ValueError(f"W{self.bits} needs groups of {expected[0]}")
        has_mins, has_super = self.mins is not None, self.super_scales is not None
        if (self.bits, self.group, has_mins, has_super, self.is_iq4) not in LAYOUTS:
            raise ValueError(f"no layout W{self.bits} has such groups of {self.group}")
        if (self.super_mins is not None) != (has_super and has_mins):
            raise ValueError("minima have super-block scales where scales have them")
        group_type = torch.int8 if has_super else torch.float16
        for numbers in (self.scales, self.mins):
            if numbers is None:
                continue
            if numbers.dtype != group_type or numbers.shape != self.quants.shape[:2]:
                raise ValueError(f"scales and mins are {group_type}, one for each group")
        n_rows, n_columns = self.shape
        for numbers in (self.super_scales, self.super_mins):
            if numbers is None:
                continue
            if numbers.dtype != torch.float16 or numbers.shape != (n_rows, n_columns / SUPER_BLOCK):
                raise ValueError(f"super-block scales are float16, one for {SUPER_BLOCK} weights")

    @property
    def shape(self) -> tuple[int, int]:
        """``(out, in)``."""
        rows, n_groups, _ = self.quants.shape
        return rows, n_groups * self.group

    @property
    def is_finite(self) -> bool:
        """True if all scales and minima are finite numbers."""
        return all(each is None or bool(each.isfinite().all()) for each in self.tensors[1:])

    @property
    def group(self) -> int:
        """Number of neighbours that share a scale."""
        return self.quants.shape[2] * 8 // self.bits

    @property
    def is_iq4(self) -> bool:
        """True if the quants are places in ``IQ4``."""
        return self.bits != 8 and self.quants.dtype == torch.int8

    @property
    def layout(self) -> PackedLayout:
        """The layout for the kernels."""
        has_mins, has_super = self.mins is not None, self.super_scales is not None
        groups = SUPER_BLOCK // self.group if has_super else 0
        return PackedLayout(self.bits, self.group, has_mins, groups, self.is_iq4)

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        return self.quants.device

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """All tensors, in the order of the fields."""
        return self.quants, self.scales, self.mins, self.super_scales, self.super_mins

    @property
    def n_bytes(self) -> int:
        """Bytes of the tensors."""
        return sum(tensor.nbytes for tensor in self.tensors if tensor is not None)

    def map(self, change: Callable[[Tensor], Tensor]) -> "PackedWeight":
        """Apply ``change`` to each tensor."""
        changed = (None if tensor is None else change(tensor) for tensor in self.tensors)
        return PackedWeight(self.bits, *cast("Any", changed))

    def unpack(self, dtype: torch.dtype) -> Tensor:
        """Unpack to floats ``(out, in)``, computed in float32 and rounded once."""
        weights = self._integers()
        scales = _group_scales(self.scales, self.super_scales)
        if self.mins is not None:
            weights.mul_(scales).add_(_group_scales(self.mins, self.super_mins))
        elif self.bits == 8 or self.is_iq4:
            weights.mul_(scales)
        else:
            weights.sub_(2 ** (self.bits - 1)).mul_(scales)
        return weights.view(self.shape).to(dtype)

    def _integers(self) -> Tensor:
        """Unpack the quants ``q`` to float32 ``(out, in / group, group)``."""
        if self.bits == 8:
            return self.quants.float()
        half, quarter = self.group // 2, self.group // 4
        low = self.quants.view(torch.uint8)[..., :half]
        weights = torch.empty(*self.scales.shape, self.group, device=self.device)
        weights[..., :half] = low & 15
        weights[..., half:] = low >> 4
        if self.bits == 5:
            fifth = self.quants[..., half:]
            for i in range(8):
                weights[..., 4 * i : 4 * i + 4] += (fifth >> i & 1) * 16
        if self.bits == 6:
            upper = self.quants[..., half:]
            for i in range(4):
                weights[..., i * quarter : (i + 1) * quarter] += (upper >> 2 * i & 3) * 16
        if self.is_iq4:
            return _iq4_values(self.device)[weights.int()]
        return weights


@cache
def _iq4_values(device: torch.device) -> Tensor:
    """Return ``IQ4`` on a device; made once, since a CUDA graph cannot copy from the CPU."""
    return torch.tensor(IQ4, dtype=torch.float32, device=device)


def _group_scales(numbers: Tensor, super_scales: Tensor | None) -> Tensor:
    """Compute the scales or minima of the groups as floats ``(out, in / group, 1)``."""
    floats = numbers.float()
    if super_scales is not None:
        by_super_block = floats.reshape(*super_scales.shape, -1)
        floats = (by_super_block * super_scales.float().unsqueeze(-1)).view(numbers.shape)
    return floats.unsqueeze(-1)


def stack(parts: Sequence[PackedWeight]) -> PackedWeight:
    """Combine parts of a matrix, each some of its rows, in order."""
    tensors = zip(*(part.tensors for part in parts), strict=True)
    stacked = (None if each[0] is None else torch.cat(cast("Any", each)) for each in tensors)
    return PackedWeight(parts[0].bits, *cast("Any", stacked))


def packed_bytes(shape: tuple[int, ...], bits: Literal[4, 8], group: int, *, mins: bool) -> int:
    """Compute the bytes of a packed matrix ``(out, in)`` with float16 scales."""
    n_weights = math.prod(shape)
    return n_weights * bits // 8 + n_weights // group * (4 if mins else 2)
