"""Forward passes in C."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from llama_chat.generation.backend import Backend, TorchBackend
from llama_chat.generation.kv_cache import KVCache
from llama_chat.kernels.abi import MAX_EXACT_BATCH
from llama_chat.kernels.forward import LayerTensors, NativeModel
from llama_chat.model.transformer import InterruptedForward, Transformer
from llama_chat.quantization.linear import only_torch_has_matrix_units, prefers_unpacked


class NativeBackend(Backend):
    """Model computed by the C kernels, with packed matrices or floats."""

    max_exact_batch = MAX_EXACT_BATCH

    def __init__(
        self, model: Transformer, kernels: NativeModel, threads: int | None = None
    ) -> None:
        """Use ``create`` instead."""
        super().__init__(model, threads)
        self.kernels = kernels
        packed = model.blocks[0].feed_forward.w1.packed
        in_torch = (
            only_torch_has_matrix_units(model.dtype)
            if packed is None
            else prefers_unpacked(model.dtype, packed.bits, model.config.dim)
        )
        self.prompts_in_torch = model.has_one_dtype and in_torch
        """True if torch computes prompts, because it does so faster."""
        self._torch = TorchBackend(model)

    @classmethod
    def create(cls, model: Transformer, threads: int | None = None) -> "NativeBackend | None":
        """Make a backend for ``model``; None if the kernels cannot compute all of it."""
        kernels = _native_model(model)
        return None if kernels is None else cls(model, kernels, threads)

    def _run(
        self,
        ids: Sequence[int],
        cache: KVCache,
        n_logits: int,
        should_stop: Callable[[], bool] | None,
    ) -> Tensor:
        is_small = len(ids) <= MAX_EXACT_BATCH
        if not is_small and self.prompts_in_torch:
            return self._torch._run(ids, cache, n_logits, should_stop)
        x = self.model.tok_embeddings(torch.tensor(ids), torch.float32)  # (T, dim)
        start, end = cache.length, cache.length + len(ids)
        cos, sin = (table[start:end] for table in self.model.rotary(end, self.model.device))
        # All layers in one call for a few tokens; for many, a call per layer, to allow a stop.
        n_layers = self.kernels.n_layers
        step = n_layers if is_small else 1
        for first in range(0, n_layers, step):
            if should_stop is not None and should_stop():
                raise InterruptedForward
            layers = range(first, first + step)
            logits = self.kernels.forward(
                x,
                cache.native,
                start,
                cos,
                sin,
                layers=layers,
                n_logits=n_logits if layers.stop == n_layers else 0,
                n_threads=self.threads,
            )
        if logits is None:
            raise ValueError("a model without layers")
        return logits


def _native_model(model: Transformer) -> NativeModel | None:
    """Collect the weights for the kernels; None unless they can multiply every matrix."""
    output = model.unembedding.native
    if output is None:
        return None
    layers = []
    for block in model.blocks:
        attention, feed_forward = block.attention, block.feed_forward
        matrices = [
            linear.native
            for linear in (
                *(attention.wq, attention.wk, attention.wv, attention.wo),
                *(feed_forward.w1, feed_forward.w2, feed_forward.w3),
            )
        ]
        usable = [matrix for matrix in matrices if matrix is not None]
        if len(usable) < len(matrices):
            return None
        norms = block.attention_norm.weight.float(), block.ffn_norm.weight.float()
        layers.append(LayerTensors(*norms, usable))
    return NativeModel(
        dim=model.config.dim,
        hidden_dim=model.config.hidden_dim,
        norm_eps=model.config.norm_eps,
        layers=layers,
        norm=model.norm.weight.float(),
        output=output,
    )
