"""The transformer of LLaMA 2 (Touvron et al. 2023, https://arxiv.org/abs/2307.09288)."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llama_chat.kernels.abi import MAX_EXACT_BATCH
from llama_chat.kernels.forward import LayerTensors, NativeModel
from llama_chat.model.attention import Attention, causal_mask
from llama_chat.model.config import LlamaConfig
from llama_chat.model.kv_cache import KVCache, Rows
from llama_chat.model.layers import Embedding, Linear
from llama_chat.model.quantization import Packed, prefers_floats
from llama_chat.model.rope import rotary_tables


class InterruptedForward(Exception):
    """A forward pass was given up between two layers."""


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
        """Bytes that the weights take."""
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
        """Where this layer lies."""
        return self.ffn_norm.weight.device

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: Rows
    ) -> Tensor:
        """Map ``x`` ``(B, T, dim)`` to the same shape, adding its rows to the cache."""
        x = x + self.attention(self.attention_norm(x), cos, sin, mask, cache)
        out: Tensor = x + self.feed_forward(self.ffn_norm(x))
        return out


class Transformer(nn.Module):
    """A Llama model whose weights are named as in Meta's checkpoints.

    Layers may lie on different devices: activations follow the weights.
    """

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.kv_dtype: torch.dtype | None = None
        """Type of the cache; None for that of the activations."""
        self.threads: int | None = None
        """Threads of the kernels in C; None for as many as torch uses."""
        self.tok_embeddings = Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(TransformerBlock(config, i) for i in range(config.n_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        if not config.tie_embeddings:
            self.output = Linear(config.dim, config.vocab_size)
        self._rotary: dict[torch.device, tuple[Tensor, Tensor]] = {}

    @property
    def blocks(self) -> list[TransformerBlock]:
        """The layers, as what they are."""
        return cast("list[TransformerBlock]", list(self.layers))

    @property
    def device(self) -> torch.device:
        """Where token ids go in."""
        return self.tok_embeddings.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the activations."""
        return self.norm.weight.dtype

    @property
    def cache_dtype(self) -> torch.dtype:
        """Type of keys and values in the cache."""
        return self.kv_dtype or self.dtype

    @property
    def n_bytes(self) -> int:
        """Bytes that the weights take."""
        kinds = (Linear, Embedding, RMSNorm)
        return sum(module.n_bytes for module in self.modules() if isinstance(module, kinds))

    @property
    def layouts(self) -> list[str]:
        """The packed layouts that its matrices are in: ``W4``, ``W6``, ``W8``."""
        matrices = (module for module in self.modules() if isinstance(module, Linear | Embedding))
        return sorted({f"W{m.packed.bits}" for m in matrices if m.packed is not None})

    def load_weights(self, weights: Mapping[str, Tensor | Packed]) -> None:
        """Take over weights by their names, without copying one; each must be there.

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

    def new_cache(self) -> KVCache:
        """Make an empty cache that lies where the layers lie."""
        return KVCache(self.config, self.cache_dtype, [block.device for block in self.blocks])

    @torch.inference_mode()
    def forward(
        self,
        ids: Sequence[int],
        cache: KVCache,
        *,
        should_stop: Callable[[], bool] | None = None,
        all_logits: bool = False,
    ) -> Tensor:
        """Read ``ids`` behind the tokens in ``cache``, and add them to it.

        Args:
            ids: one or more token ids.
            cache: what was read before; unchanged if this raises.
            should_stop: asked before each layer.
            all_logits: whether the logits of every position are wanted, or those of the last.

        Returns:
            Logits in float32, ``(len(ids), vocab_size)`` or ``(vocab_size,)``.

        Raises:
            InterruptedForward: if ``should_stop`` said so.
            ValueError: if the ids do not fit in the context.
        """
        n_new, n_total = len(ids), cache.length + len(ids)
        cache.reserve(n_total)
        if self.native is not None and (n_new <= MAX_EXACT_BATCH or not prefers_floats(self.dtype)):
            logits = self._forward_natively(
                self.native, ids, cache, should_stop, n_logits=n_new if all_logits else 1
            )
            cache.commit(ids)
            return logits if all_logits else logits[-1]
        x: Tensor = self.tok_embeddings(torch.tensor([ids], device=self.device), self.dtype)
        mask = causal_mask(n_new, n_total, x.device) if n_new > 1 else None
        for block in self.blocks:
            if should_stop is not None and should_stop():
                raise InterruptedForward
            if x.device != block.device:
                x = x.to(block.device)
                mask = None if mask is None else mask.to(block.device)
            cos, sin = self._rotary_rows(cache.length, n_total, block.device)
            x = block(x, cos, sin, mask, cache)
        if not all_logits:
            x = x[:, -1:]
        logits = self.logits_of(x)[0]  # (T or 1, vocab_size)
        cache.commit(ids)
        return logits if all_logits else logits[0]

    @cached_property
    def native(self) -> NativeModel | None:
        """All layers in one call of C, for a few tokens; None unless every matrix is packed."""
        blocks = self.blocks
        output = self.tok_embeddings if self.config.tie_embeddings else self.output
        if output.native is None or self.dtype not in (torch.float32, torch.bfloat16):
            return None
        layers = []
        for block in blocks:
            attention, feed_forward = block.attention, block.feed_forward
            matrices = [
                module.native
                for module in (
                    *(attention.wq, attention.wk, attention.wv, attention.wo),
                    *(feed_forward.w1, feed_forward.w2, feed_forward.w3),
                )
            ]
            packed = [matrix for matrix in matrices if matrix is not None]
            if len(packed) < len(matrices):
                return None
            norms = block.attention_norm.weight.float(), block.ffn_norm.weight.float()
            layers.append(LayerTensors(*norms, packed))
        config = self.config
        return NativeModel(
            dim=config.dim,
            hidden_dim=config.hidden_dim,
            norm_eps=config.norm_eps,
            layers=layers,
            norm=self.norm.weight.float(),
            output=output.native,
        )

    @property
    def n_together(self) -> int:
        """How many tokens one pass may read without any effect on what each of them gives.

        Logits and cached rows are then, bit for bit, those of reading one token after the other.
        """
        return 1 if self.native is None else MAX_EXACT_BATCH

    def _forward_natively(
        self,
        native: NativeModel,
        ids: Sequence[int],
        cache: KVCache,
        should_stop: Callable[[], bool] | None,
        *,
        n_logits: int,
    ) -> Tensor:
        """Read tokens in C; returns the logits of the last, ``(n_logits, vocab_size)``."""
        x = self.tok_embeddings(torch.tensor(ids), torch.float32)  # (T, dim)
        rotary = self._rotary_rows(cache.length, cache.length + len(ids), self.device)
        # A few tokens go through all layers in one call, many stop to be asked before each.
        step = native.n_layers if len(ids) <= MAX_EXACT_BATCH else 1
        for first in range(0, native.n_layers, step):
            if should_stop is not None and should_stop():
                raise InterruptedForward
            layers = range(first, first + step)
            is_last = layers.stop == native.n_layers
            logits = native.forward(
                x,
                cache.native,
                cache.length,
                *rotary,
                layers=layers,
                n_logits=n_logits if is_last else 0,
                n_threads=self.threads,
            )
        if logits is None:
            raise ValueError("a model without layers")
        return logits

    def logits_of(self, x: Tensor) -> Tensor:
        """Project ``x`` ``(B, T, dim)`` to the vocabulary, in float32."""
        x = self.norm(x.to(self.norm.weight.device))
        output = self.tok_embeddings if self.config.tie_embeddings else self.output
        return output.project(x.to(output.device)).float()

    def _rotary_rows(self, start: int, end: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the positions ``start`` to ``end``, ``(T, head_dim // 2)`` each."""
        tables = self._rotary.get(device)
        if tables is None:
            config = self.config
            tables = rotary_tables(config.rope_frequencies(), config.context_length, device)
            self._rotary[device] = tables
        cos, sin = tables
        return cos[start:end], sin[start:end]
