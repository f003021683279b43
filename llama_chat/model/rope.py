"""Rotary position embedding (Su et al. 2021, https://arxiv.org/abs/2104.09864), in Meta's order."""

import torch
from torch import Tensor


def rotary_tables(
    head_dim: int, length: int, theta: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every angle ``position / theta ** (2 i / head_dim)``.

    Always float32: tables rounded to bfloat16 drift at long positions.

    Returns:
        Two tensors of shape ``(length, head_dim // 2)``.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    angles = torch.outer(torch.arange(length, dtype=torch.float32), 1.0 / theta**exponents)
    return angles.cos().to(device), angles.sin().to(device)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair of neighbours ``(x[2i], x[2i + 1])`` by its angle.

    Meta's checkpoints interleave the pairs; Hugging Face splits the head in two halves, so its
    weights are permuted when they are loaded. For ``head_dim`` 4 and an angle of 90 degrees for
    both pairs, ``[1, 2, 3, 4]`` becomes ``[-2, 1, -4, 3]``.

    Args:
        x: ``(B, T, n_heads, head_dim)``, any float type; the rotation itself is in float32.
        cos: ``(T, head_dim // 2)``, the rows of the positions of ``x``.
        sin: the same.

    Returns:
        The shape and type of ``x``.
    """
    even, odd = (
        x.float().view(*x.shape[:-1], -1, 2).unbind(-1)
    )  # each (B, T, n_heads, head_dim / 2)
    cos, sin = cos[:, None, :], sin[:, None, :]  # (T, 1, head_dim / 2), broadcast over heads
    rotated = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    return rotated.flatten(-2).to(x.dtype)
