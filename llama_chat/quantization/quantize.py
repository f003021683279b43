"""Quantization of float matrices at load."""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from llama_chat.kernels.matrix import padded_rows
from llama_chat.quantization.packed import PackedWeight, stack

_GROUP = 32

_PART_BYTES = 2**21
"""Bytes of weights quantized at a time, in float32: few enough to stay in the L2 cache."""

_MIN_SCALE = 2**-24
"""Smallest positive float16, as the least divisor: a group of equal weights has a scale of 0."""


def quantize(weight: Tensor, bits: Literal[4, 8]) -> PackedWeight:
    """Pack a float matrix in groups of 32, with weights rounded to nearest.

    The range of W4 is from the minimum of a group to its maximum, as in Q4_1; that of W8 is its
    maximum magnitude, as in Q8_0.

    Args:
        weight: ``(out, in)``, with ``in`` a multiple of 32.
        bits: bits per weight of the layout.

    Raises:
        ValueError: if the rows cannot be cut into groups.
    """
    return stack(list(quantize_in_parts(weight, bits)))


def quantize_in_parts(weight: Tensor, bits: Literal[4, 8]) -> Iterator[PackedWeight]:
    """Pack a float matrix like ``quantize``, some rows at a time; whole panels, but for the last.

    Raises:
        ValueError: if the rows cannot be cut into groups.
    """
    out, width = weight.shape
    if width % _GROUP:
        raise ValueError(f"rows of {width} weights are no multiple of {_GROUP}")
    step = padded_rows(max(1, _PART_BYTES // (4 * width)))
    pack = _pack4 if bits == 4 else _pack8
    # New memory for each part would cost as much time as the arithmetic.
    buffer = torch.empty(min(step, out), width)
    for start in range(0, out, step):
        rows = weight[start : start + step]
        groups = buffer[: len(rows)].copy_(rows).view(-1, width // _GROUP, _GROUP)
        yield PackedWeight(bits, *pack(groups))


def _pack4(groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize groups ``(rows, n, 32)`` to nibbles, scales and minima; overwrites them."""
    least, greatest = groups.aminmax(dim=-1, keepdim=True)
    scales, mins = ((greatest - least) / 15).half(), least.half()
    groups.sub_(mins.float()).div_(scales.float().clamp_min_(_MIN_SCALE))
    nibbles = groups.round_().clamp_(0, 15).to(torch.uint8)
    quants = nibbles[..., :16] | nibbles[..., 16:] << 4
    return quants, scales.squeeze(-1), mins.squeeze(-1)


def _pack8(groups: Tensor) -> tuple[Tensor, Tensor, None]:
    """Quantize groups ``(rows, n, 32)`` to bytes and scales; overwrites them."""
    least, greatest = groups.aminmax(dim=-1, keepdim=True)
    scales = (torch.maximum(-least, greatest) / 127).half()
    groups.div_(scales.float().clamp_min_(_MIN_SCALE))
    quants = groups.round_().clamp_(-127, 127).to(torch.int8)
    return quants, scales.squeeze(-1), None
