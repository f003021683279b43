"""Grouped-query attention (Ainslie et al. 2023, https://arxiv.org/abs/2305.13245)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llama_chat.model.config import LlamaConfig
from llama_chat.model.rope import apply_rotary
from llama_chat.quantization.linear import Linear


class LayerCache(Protocol):
    """Interface through which a layer stores and reads keys and values."""

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store rows of new tokens, and return all rows with them.

        Args:
            layer: index of the layer.
            keys: ``(B, T, n_kv_heads, head_dim)``.
            values: the same shape.

        Returns:
            Keys and values ``(B, n_kv_heads, S, head_dim)``.
        """


@dataclass(frozen=True, slots=True)
class SequenceSpan:
    """Consecutive tokens of a pass that continue one sequence."""

    start: int
    """Place of the first of them in the pass."""
    end: int
    """Place after the last of them."""
    n_rows: int
    """Rows of the cache that they attend to, with their own."""
    mask: Tensor | None
    """``(end - start, n_rows)``, True where attention is allowed; None if each token may attend to
    all rows."""
    cache: LayerCache
    """Keys and values of the sequence."""


def causal_mask(n_new: int, n_total: int, device: torch.device) -> Tensor:
    """Make the mask of the last ``n_new`` of ``n_total`` tokens: each attends up to itself.

    Returns:
        Boolean ``(n_new, n_total)``, True where attention is allowed. For 2 new of 4::

            [[True, True, True, False],
             [True, True, True, True]]
    """
    allowed = torch.ones(n_new, n_total, dtype=torch.bool, device=device)
    return allowed.tril(n_total - n_new)


def grouped_query_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Compute attention in which each head of keys and values serves a group of query heads.

    The query heads of a group become further rows of one query, so that keys and values are read
    from the cache as stored and never repeated.

    Args:
        q: ``(B, T, n_heads, head_dim)``.
        k: ``(B, n_kv_heads, S, head_dim)``.
        v: the same shape as ``k``.
        mask: ``(T, S)``, True where attention is allowed; None if each token may attend to all.

    Returns:
        ``(B, T, n_heads * head_dim)``.
    """
    batch, n_new, n_heads, head_dim = q.shape
    n_kv_heads = k.shape[1]
    group = n_heads // n_kv_heads
    q = q.transpose(1, 2).reshape(batch, n_kv_heads, group * n_new, head_dim)
    if mask is not None:
        mask = mask.repeat(group, 1)  # (group * T, S)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out.reshape(batch, n_heads, n_new, head_dim).transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """The attention of one layer, with its projections."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        q_dim, kv_dim = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        self.wq = Linear(config.dim, q_dim)
        self.wk = Linear(config.dim, kv_dim)
        self.wv = Linear(config.dim, kv_dim)
        self.wo = Linear(q_dim, config.dim)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, spans: Sequence[SequenceSpan]) -> Tensor:
        """Attend from the tokens ``x`` ``(B, T, dim)`` of each span to its cache and to themselves.

        Returns:
            The same shape.
        """
        q = self.wq(x).unflatten(-1, (-1, self.head_dim))  # (B, T, n_heads, head_dim)
        k = self.wk(x).unflatten(-1, (-1, self.head_dim))  # (B, T, n_kv_heads, head_dim)
        v = self.wv(x).unflatten(-1, (-1, self.head_dim))
        q, k = apply_rotary(q, cos, sin), apply_rotary(k, cos, sin)
        found = []
        for span in spans:
            tokens = slice(span.start, span.end)
            keys, values = span.cache.write(self.layer, k[:, tokens], v[:, tokens])
            found.append(grouped_query_attention(q[:, tokens], keys, values, span.mask))
        out: Tensor = self.wo(found[0] if len(found) == 1 else torch.cat(found, 1))
        return out
