"""The transformer of LLaMA 2 (Touvron et al. 2023, https://arxiv.org/abs/2307.09288)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llama_chat.model.attention import Attention, SequenceSpan
from llama_chat.model.config import LlamaConfig
from llama_chat.model.rope import rotary_tables
from llama_chat.quantization.linear import Embedding, Linear, Packed

ROTARY_BLOCK = 4096
"""Positions by which the rotary tables grow."""


class InterruptedForward(Exception):
    """A forward pass was stopped between two layers."""


class RMSNorm(nn.Module):
    """Root mean square normalisation (Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467).

    As Meta computes it: normalise in float32, cast to the type of the input, then scale.
    """

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(dim))

    @property
    def n_bytes(self) -> int:
        """Bytes of the weights."""
        return self.weight.nbytes

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension of ``x`` ``(B, T, dim)``."""
        x32 = x.float()
        normed = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps)
        return normed.to(x.dtype) * self.weight


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020, https://arxiv.org/abs/2002.05202): ``w2(silu(w1(x)) * w3(x))``."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.w1 = Linear(config.dim, config.hidden_dim)
        self.w2 = Linear(config.hidden_dim, config.dim)
        self.w3 = Linear(config.dim, config.hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` ``(B, T, dim)`` to the same shape."""
        out: Tensor = self.w2(F.silu(self.w1(x)) * self.w3(x))
        return out


class TransformerBlock(nn.Module):
    """One layer: attention, then feed-forward, each normalised before and added after."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.attention = Attention(config, layer)
        self.feed_forward = FeedForward(config)
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)

    @property
    def device(self) -> torch.device:
        """Device of this layer."""
        return self.ffn_norm.weight.device

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, spans: Sequence[SequenceSpan]) -> Tensor:
        """Map ``x`` ``(B, T, dim)`` to the same shape, adding its keys and values to the caches."""
        x = x + self.attention(self.attention_norm(x), cos, sin, spans)
        out: Tensor = x + self.feed_forward(self.ffn_norm(x))
        return out


class Transformer(nn.Module):
    """A Llama model whose weights have the names of Meta's checkpoints.

    Layers may be on different devices: activations follow the weights.
    """

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.tok_embeddings = Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(TransformerBlock(config, i) for i in range(config.n_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        if not config.tie_embeddings:
            self.output = Linear(config.dim, config.vocab_size)
        self._rotary: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def forward(
        self,
        ids: Tensor,
        positions: Tensor,
        spans: Sequence[SequenceSpan],
        *,
        logit_rows: slice | Sequence[int] = slice(-1, None),
        should_stop: Callable[[], bool] | None = None,
    ) -> Tensor:
        """Compute logits, writing keys and values to the caches.

        Args:
            ids: token ids, ``(B, T)``.
            positions: their positions in their sequences, ``(T,)``.
            spans: the sequences that they continue, in order.
            logit_rows: tokens of the pass whose logits are wanted.
            should_stop: called before each layer.

        Returns:
            Logits in float32, ``(B, n_logits, vocab_size)``.

        Raises:
            InterruptedForward: if ``should_stop`` returned True.
        """
        inputs = {device: self._inputs(positions, spans, device) for device in self._devices}
        x: Tensor = self.tok_embeddings(ids, self.dtype)  # (B, T, dim)
        for layer in self.blocks:
            if should_stop is not None and should_stop():
                raise InterruptedForward
            x = layer(x.to(layer.device), *inputs[layer.device])
        x = self.norm(x[:, logit_rows].to(self.norm.weight.device))  # (B, n_logits, dim)
        return self.unembedding.project(x.to(self.unembedding.device)).float()

    def _inputs(
        self, positions: Tensor, spans: Sequence[SequenceSpan], device: torch.device
    ) -> tuple[Tensor, Tensor, list[SequenceSpan]]:
        """Collect cosines, sines ``(T, head_dim // 2)`` and masks on ``device``."""
        cos, sin = self.rotary(max(span.n_rows for span in spans), device)
        positions = positions.to(device)
        here = [
            span if span.mask is None else replace(span, mask=span.mask.to(device))
            for span in spans
        ]
        return cos.index_select(0, positions), sin.index_select(0, positions), here

    def rotary(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the cosines and sines of at least the first ``length`` positions.

        They grow with use, not with the context length that a file states; and by blocks, so that
        a row has the same bits in tables of any length.

        Returns:
            Two tensors in float32, ``(n, head_dim // 2)``.
        """
        tables = self._rotary.get(device)
        n_rows = 0 if tables is None else len(tables[0])
        if tables is None or n_rows < length:
            frequencies = self.config.rope_frequencies()
            blocks = [
                rotary_tables(frequencies, range(start, start + ROTARY_BLOCK), device)
                for start in range(n_rows, length, ROTARY_BLOCK)
            ]
            cos, sin = zip(*([tables] if tables else []), *blocks, strict=True)
            tables = self._rotary[device] = torch.cat(cos), torch.cat(sin)
        return tables

    @property
    def blocks(self) -> list[TransformerBlock]:
        """The layers, with their static type."""
        return cast("list[TransformerBlock]", list(self.layers))

    @property
    def _devices(self) -> tuple[torch.device, ...]:
        return tuple(dict.fromkeys(block.device for block in self.blocks))

    @property
    def unembedding(self) -> Linear | Embedding:
        """Matrix ``(vocab_size, dim)`` of the logits; the embedding if they are tied."""
        return self.tok_embeddings if self.config.tie_embeddings else self.output

    @property
    def device(self) -> torch.device:
        """Device of the embedding, and so of token ids."""
        return self.tok_embeddings.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the activations."""
        return self.norm.weight.dtype

    def compute_in_float32(self) -> None:
        """Make the type of the activations float32, whatever the matrices are."""
        for module in self.modules():
            if isinstance(module, RMSNorm):
                module.float()

    @property
    def matrices(self) -> list[Linear | Embedding]:
        """All matrices."""
        return [module for module in self.modules() if isinstance(module, Linear | Embedding)]

    @property
    def has_one_dtype(self) -> bool:
        """True if all matrices that are not packed have the type of the activations."""
        return all(m.packed is not None or m.weight.dtype == self.dtype for m in self.matrices)

    @property
    def n_bytes(self) -> int:
        """Bytes of the weights."""
        kinds = (Linear, Embedding, RMSNorm)
        return sum(module.n_bytes for module in self.modules() if isinstance(module, kinds))

    @property
    def matrix_types(self) -> list[str]:
        """Types of the matrices: ``W4`` to ``W8`` of packed ones, ``float16`` and so on."""
        return sorted({matrix.type_name for matrix in self.matrices})

    def load_weights(self, weights: Mapping[str, Tensor | Packed]) -> None:
        """Assign all weights by name, without copying any.

        Raises:
            ValueError: if one is missing, unknown or of another shape.
        """
        floats = {name: w for name, w in weights.items() if isinstance(w, Tensor)}
        for name, weight in weights.items():
            if isinstance(weight, Packed):
                module = self.get_submodule(name.removesuffix(".weight"))
                if not isinstance(module, Linear | Embedding):
                    raise ValueError(f"{name} cannot be packed")
                module.pack(weight)
                floats[name] = module.weight
        self.load_state_dict(floats, assign=True)
        self.requires_grad_(False)
