"""Forward passes in C."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import accumulate

import torch
from torch import Tensor

from llama_chat.generation.backend import Backend, Extension, TorchBackend
from llama_chat.generation.stopwatch import Seconds
from llama_chat.kernels import native
from llama_chat.kernels.abi import MAX_EXACT_BATCH
from llama_chat.kernels.forward import LayerTensors, NativeModel
from llama_chat.model.transformer import InterruptedForward, Transformer
from llama_chat.quantization.linear import prefers_unpacked, torch_has_matrix_units

_SHORT_PRODUCTS = 2**34
"""Multiplications of a short pass: about a tenth of a second on two cores."""


class NativeBackend(Backend):
    """Model computed by the C kernels, with packed matrices or floats."""

    max_exact_batch = MAX_EXACT_BATCH

    def __init__(
        self, model: Transformer, kernels: NativeModel, threads: int | None = None
    ) -> None:
        """Use ``create`` instead."""
        super().__init__(model, threads)
        self.kernels = kernels
        self.prompts_in_torch = model.has_one_dtype and _is_faster_in_torch(model)
        """True if torch computes prompts, because it does so faster."""
        self._torch = TorchBackend(model)

    @classmethod
    def create(cls, model: Transformer, threads: int | None = None) -> "NativeBackend | None":
        """Make a backend for ``model``; None if the kernels cannot compute all of it."""
        kernels = _native_model(model)
        return None if kernels is None else cls(model, kernels, threads)

    @property
    def kernel_name(self) -> str:
        """See the base class."""
        prompts = f", prompts {self.torch_name}" if self.prompts_in_torch else ""
        return f"{native.level_name()} {' '.join(self.model.matrix_types)}{prompts}"

    def timed_parts(self) -> AbstractContextManager[Callable[[], Seconds]]:
        """See the base class; prompts that torch computes are not timed."""
        return nullcontext(lambda: self.kernels.take_times().seconds)

    def _run(
        self, extensions: Sequence[Extension], should_stop: Callable[[], bool] | None
    ) -> list[Tensor]:
        logits: dict[int, Tensor] = {}
        here = []
        for i, new in enumerate(extensions):
            if self.prompts_in_torch and not _is_exact(new):
                [logits[i]] = self._torch._run([new], should_stop)  # alone: bit for bit
            else:
                here.append(i)
        # Sequences of few tokens come first: see kernels/forward.c.
        here.sort(key=lambda i: not _is_exact(extensions[i]))
        if here:
            computed = self._extend([extensions[i] for i in here], should_stop)
            logits |= zip(here, computed, strict=True)
        return [logits[i] for i in range(len(extensions))]

    def _extend(
        self, extensions: Sequence[Extension], should_stop: Callable[[], bool] | None
    ) -> list[Tensor]:
        """Compute all extensions in one pass; returns the logits of each."""
        ids = [token_id for new in extensions for token_id in new.ids]
        rows = [range(new.cache.length, new.end) for new in extensions]
        x = self.model.tok_embeddings(torch.tensor(ids), torch.float32)  # (T, dim)
        tables = self.model.rotary(max(each.stop for each in rows), self.model.device)
        cos, sin = (_take_rows(table, rows) for table in tables)
        sequences = [(new.cache.native, each) for new, each in zip(extensions, rows, strict=True)]
        ends = list(accumulate(len(new.ids) for new in extensions))
        logit_rows = [
            row
            for new, end in zip(extensions, ends, strict=True)
            for row in range(end - new.n_logits, end)
        ]
        # All layers in one call, or a call per layer, to allow a stop: Ctrl-C also may be one.
        n_layers = self.kernels.n_layers
        step = n_layers if should_stop is None and self._is_short(extensions) else 1
        for first in range(0, n_layers, step):
            if should_stop is not None and should_stop():
                raise InterruptedForward
            layers = range(first, first + step)
            logits = self.kernels.forward(
                x,
                sequences,
                cos,
                sin,
                layers=layers,
                logit_rows=logit_rows if layers.stop == n_layers else (),
                n_threads=self.threads,
            )
        if logits is None:
            return [torch.empty(0, self.model.config.vocab_size) for _ in extensions]
        return list(torch.split(logits, [new.n_logits for new in extensions]))

    def _is_short(self, extensions: Sequence[Extension]) -> bool:
        n_tokens = sum(len(new.ids) for new in extensions)
        of_row = 2 * self.model.config.dim * self.kernels.n_layers  # keys and values
        of_rows = of_row * max(new.end for new in extensions)
        n_products: int = n_tokens * (self.kernels.n_weights + of_rows)
        return n_products <= _SHORT_PRODUCTS


def _take_rows(table: Tensor, rows: Sequence[range]) -> Tensor:
    """Take some rows of a table; those of one sequence are not copied."""
    pieces = [table[each.start : each.stop] for each in rows]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _is_faster_in_torch(model: Transformer) -> bool:
    """True if torch computes prompts faster than the kernels do."""
    if native.has_matrix_units():
        return False
    packed = model.blocks[0].feed_forward.w1.packed
    if packed is None:
        return torch_has_matrix_units(model.dtype)
    return prefers_unpacked(model.dtype, packed.bits, model.config.dim)


def _is_exact(new: Extension) -> bool:
    return len(new.ids) <= MAX_EXACT_BATCH


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
