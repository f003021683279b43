"""Hyperparameters of a model of the Llama family."""

import math
from dataclasses import dataclass

from torch import Tensor

from llama_chat.model.rope import (
    MAX_CONTEXT,
    DynamicScaling,
    FrequencyDivisors,
    RopeScaling,
    rotary_frequencies,
)

MAX_SIZE = MAX_CONTEXT
"""Limit on every size, so that no number from a file can claim memory by itself."""

_SIZES = (
    "dim",
    "n_layers",
    "n_heads",
    "n_kv_heads",
    "head_dim",
    "hidden_dim",
    "vocab_size",
    "context_length",
)

_RANGES = {"norm_eps": (1e-12, 1.0), "rope_theta": (1.0, 1e12)}
"""Limits beyond which the numbers of a pass are not finite; the largest known base is 5e10."""


@dataclass(frozen=True, slots=True)
class LlamaConfig:
    """Hyperparameters, mostly under the names of Meta's ``params.json``.

    Raises:
        ValueError: if the numbers cannot describe a model; the message names the field.
    """

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    hidden_dim: int
    vocab_size: int
    norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    context_length: int = 4096
    tie_embeddings: bool = False
    rope_scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        for name in _SIZES:
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= MAX_SIZE:
                raise ValueError(f"{name} is {value!r}, not a whole number from 1 to {MAX_SIZE}")
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if type(value) not in (int, float) or not low <= value <= high:  # true for NaN too
                raise ValueError(f"{name} is {value!r}, not a number from {low:g} to {high:g}")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"n_heads {self.n_heads} is no multiple of n_kv_heads {self.n_kv_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd, and rotary embedding needs pairs")
        scaling = self.rope_scaling
        if isinstance(scaling, DynamicScaling) and self.head_dim == 2:
            raise ValueError("head_dim 2 is too small for a dynamic rotary scaling")
        if isinstance(scaling, FrequencyDivisors) and len(scaling.divisors) != self.head_dim // 2:
            raise ValueError(
                f"{len(scaling.divisors)} rotary divisors do not fit head_dim {self.head_dim}"
            )

    def rope_frequencies(self) -> Tensor:
        """Compute the scaled radians per position of each pair, ``(head_dim // 2,)`` in float32."""
        frequencies = rotary_frequencies(self.head_dim, self.rope_theta)
        if self.rope_scaling is None:
            return frequencies
        return self.rope_scaling.apply(frequencies, self.rope_theta, self.context_length)

    @property
    def longest_context(self) -> int:
        """Largest value that ``context_length`` may be raised to."""
        scaled = 0 if self.rope_scaling is None else self.rope_scaling.longest_context
        return max(self.context_length, scaled)

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """List the shape ``(out, in)`` of every weight by Meta's name."""
        q_dim = self.n_heads * self.head_dim
        kv_dim = self.n_kv_heads * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {"tok_embeddings.weight": (self.vocab_size, self.dim)}
        for i in range(self.n_layers):
            layer = f"layers.{i}"
            shapes |= {
                f"{layer}.attention_norm.weight": (self.dim,),
                f"{layer}.attention.wq.weight": (q_dim, self.dim),
                f"{layer}.attention.wk.weight": (kv_dim, self.dim),
                f"{layer}.attention.wv.weight": (kv_dim, self.dim),
                f"{layer}.attention.wo.weight": (self.dim, q_dim),
                f"{layer}.ffn_norm.weight": (self.dim,),
                f"{layer}.feed_forward.w1.weight": (self.hidden_dim, self.dim),
                f"{layer}.feed_forward.w2.weight": (self.dim, self.hidden_dim),
                f"{layer}.feed_forward.w3.weight": (self.hidden_dim, self.dim),
            }
        shapes["norm.weight"] = (self.dim,)
        if not self.tie_embeddings:
            shapes["output.weight"] = (self.vocab_size, self.dim)
        return shapes

    @property
    def n_parameters(self) -> int:
        """Number of weights."""
        return sum(math.prod(shape) for shape in self.tensor_shapes().values())

    def kv_cache_bytes(self, length: int, element_size: int) -> int:
        """Compute the bytes of the keys and values of ``length`` tokens.

        Args:
            length: number of tokens.
            element_size: bytes of one number. Numbers of 1 byte (int8) share a scale of 4 bytes per
                head.
        """
        head = self.head_dim * element_size + (4 if element_size == 1 else 0)
        return 2 * self.n_layers * self.n_kv_heads * head * length

    def rotary_bytes(self, length: int) -> int:
        """Compute the bytes of the rotary tables of ``length`` positions."""
        return 4 * self.head_dim * length  # a cosine and a sine in float32 for each pair
