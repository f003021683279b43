"""Quantization of float matrices at load."""

from typing import Literal

import torch
from torch import Tensor

from llama_chat.quantization.packed import PackedWeight

_GROUP = 32

_CHUNK_BYTES = 2**21
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
    out, width = weight.shape
    if width % _GROUP:
        raise ValueError(f"rows of {width} weights are no multiple of {_GROUP}")
    n_groups = width // _GROUP
    quant_type = torch.uint8 if bits == 4 else torch.int8
    quants = torch.empty(out, n_groups, _GROUP * bits // 8, dtype=quant_type)
    scales = torch.empty(out, n_groups, dtype=torch.float16)
    mins = torch.empty_like(scales) if bits == 4 else None
    pack = _pack4 if bits == 4 else _pack8
    step = max(1, _CHUNK_BYTES // (4 * width))
    for start in range(0, out, step):
        rows = slice(start, start + step)
        groups = weight[rows].float().view(-1, n_groups, _GROUP)
        quants[rows], scales[rows], group_mins = pack(groups)
        if mins is not None and group_mins is not None:
            mins[rows] = group_mins
    return PackedWeight(bits, quants, scales, mins)


def _pack4(groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize groups ``(rows, n, 32)`` to nibbles, scales and minima."""
    least, greatest = groups.aminmax(dim=-1, keepdim=True)
    scales, mins = ((greatest - least) / 15).half(), least.half()
    quotients = (groups - mins.float()) / scales.float().clamp_min(_MIN_SCALE)
    nibbles = quotients.round().clamp(0, 15).to(torch.uint8)
    quants = nibbles[..., :16] | nibbles[..., 16:] << 4
    return quants, scales.squeeze(-1), mins.squeeze(-1)


def _pack8(groups: Tensor) -> tuple[Tensor, Tensor, None]:
    """Quantize groups ``(rows, n, 32)`` to bytes and scales."""
    scales = (groups.abs().amax(-1, keepdim=True) / 127).half()
    quotients = groups / scales.float().clamp_min(_MIN_SCALE)
    quants = quotients.round().clamp(-127, 127).to(torch.int8)
    return quants, scales.squeeze(-1), None
