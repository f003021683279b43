"""Rotary position embedding (Su et al. 2021, https://arxiv.org/abs/2104.09864), in Meta's order."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_CONTEXT = 2**24
"""Limit on a context length in tokens, up to which float32 counts positions exactly."""

_MAX_FACTOR = 1e4
"""Limit on a factor and on its inverse; the largest known is 32."""


class RopeScaling(ABC):
    """Scaling of the rotary frequencies of a model whose context was extended after pretraining.

    Raises:
        ValueError: if a parameter is out of range; the message names it.
    """

    @abstractmethod
    def apply(self, frequencies: Tensor, theta: float, length: int) -> Tensor:
        """Scale rotary frequencies.

        Args:
            frequencies: ``theta ** (-2 i / head_dim)``, ``(head_dim // 2,)`` in float32.
            theta: their base.
            length: the context length in tokens.
        """

    @property
    def longest_context(self) -> int:
        """Limit on ``--context`` in tokens; 0 if it is the context length of the model."""
        return 0


def _check(low: float, high: float, **numbers: float) -> None:
    for name, number in numbers.items():
        if not low <= number <= high:  # true for NaN too
            shown = f"{name} of the rotary scaling is {number!r}"
            raise ValueError(f"{shown}, not from {low:g} to {high:,g}")


def _check_factors(**factors: float) -> None:
    _check(1 / _MAX_FACTOR, _MAX_FACTOR, **factors)


@dataclass(frozen=True, slots=True)
class LinearScaling(RopeScaling):
    """Positions divided by ``factor`` (Chen et al. 2023, https://arxiv.org/abs/2306.15595)."""

    factor: float

    def __post_init__(self) -> None:
        _check_factors(factor=self.factor)

    def apply(self, frequencies: Tensor, theta: float, length: int) -> Tensor:
        """See the base class."""
        return frequencies / self.factor


@dataclass(frozen=True, slots=True)
class DynamicScaling(RopeScaling):
    """Base that grows with the context length beyond ``original_context`` ("dynamic NTK").

    Other implementations raise the base as a conversation grows, which leaves the cached keys
    rotated with an earlier base. Here it depends on the context length alone: nothing is scaled up
    to the original length, and a longer ``--context`` is scaled for that length from the start.
    """

    factor: float
    original_context: int

    def __post_init__(self) -> None:
        _check_factors(factor=self.factor)
        _check(1, MAX_CONTEXT, original_context=self.original_context)

    def apply(self, frequencies: Tensor, theta: float, length: int) -> Tensor:
        """See the base class."""
        if length <= self.original_context:
            return frequencies
        head_dim = 2 * len(frequencies)
        growth = self.factor * length / self.original_context - (self.factor - 1)
        scaled_theta = theta * growth ** (head_dim / (head_dim - 2))
        return rotary_frequencies(head_dim, scaled_theta)

    @property
    def longest_context(self) -> int:
        """See the base class."""
        return min(int(self.factor * self.original_context), MAX_CONTEXT)


@dataclass(frozen=True, slots=True)
class Llama3Scaling(RopeScaling):
    """Scaling of Llama 3.1: low frequencies divided, high ones kept, a ramp between them.

    As in Meta's reference code: frequencies with wavelengths over ``original_context /
    low_freq_factor`` are low, those under ``original_context / high_freq_factor`` are high.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int

    def __post_init__(self) -> None:
        _check_factors(
            factor=self.factor,
            low_freq_factor=self.low_freq_factor,
            high_freq_factor=self.high_freq_factor,
        )
        _check(1, MAX_CONTEXT, original_context=self.original_context)
        if self.low_freq_factor >= self.high_freq_factor:
            raise ValueError(
                f"low_freq_factor {self.low_freq_factor} of the rotary scaling is not below "
                f"high_freq_factor {self.high_freq_factor}"
            )

    def apply(self, frequencies: Tensor, theta: float, length: int) -> Tensor:
        """See the base class."""
        turns = self.original_context * frequencies / (2 * math.pi)  # within the original context
        ramp = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        kept = ramp.clamp(0, 1)
        return frequencies * kept + frequencies / self.factor * (1 - kept)


@dataclass(frozen=True, slots=True)
class FrequencyDivisors(RopeScaling):
    """Precomputed divisor of each frequency, as in GGUF files of Llama 3.1."""

    divisors: tuple[float, ...]

    def __post_init__(self) -> None:
        for divisor in self.divisors:
            _check_factors(divisor=divisor)

    def apply(self, frequencies: Tensor, theta: float, length: int) -> Tensor:
        """See the base class."""
        return frequencies / torch.tensor(self.divisors, dtype=torch.float32)


def rotary_frequencies(head_dim: int, theta: float) -> Tensor:
    """Compute the radians per position, ``theta ** (-2 i / head_dim)``.

    Returns:
        ``(head_dim // 2,)`` in float32.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    return 1.0 / theta**exponents


def rotary_tables(
    frequencies: Tensor, positions: range, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Compute the cosine and sine of the angle of every position and frequency.

    Always float32: tables rounded to bfloat16 drift at long positions.

    Returns:
        Two tensors of shape ``(len(positions), head_dim // 2)``.
    """
    steps = torch.arange(positions.start, positions.stop, dtype=torch.float32)
    angles = torch.outer(steps, frequencies)
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
