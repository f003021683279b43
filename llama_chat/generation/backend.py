"""Backends: ways to compute the forward passes of a model."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from llama_chat.errors import LlamaChatError, counted, is_out_of_memory
from llama_chat.generation.kv_cache import KVCache
from llama_chat.model.attention import causal_mask
from llama_chat.model.transformer import Transformer

PREFILL_CHUNK = 512
"""Tokens of one prefill pass: enough to keep matrix units busy, few enough to show progress."""


class Backend(ABC):
    """Forward passes of one model over the tokens of one sequence."""

    max_exact_batch: int = 1
    """Tokens of one pass up to which its logits and cache rows equal, bit for bit, those of passes
    over one token each."""

    def __init__(self, model: Transformer, threads: int | None = None) -> None:
        """Compute ``model`` with ``threads`` CPU threads; None for as many as torch uses."""
        self.model = model
        self.threads = threads

    @property
    def context(self) -> int:
        """Context length in tokens."""
        return self.model.config.context_length

    def new_cache(
        self, dtype: torch.dtype | None = None, max_saved_bytes: int | None = None
    ) -> KVCache:
        """Make an empty cache on the devices of the layers.

        Args:
            dtype: type of keys and values; None for that of the activations.
            max_saved_bytes: limit on its saved suffixes; see ``KVCache``.
        """
        devices = [block.device for block in self.model.blocks]
        return KVCache(self.model.config, dtype or self.model.dtype, devices, max_saved_bytes)

    @torch.inference_mode()
    def forward(
        self,
        ids: Sequence[int],
        cache: KVCache,
        *,
        all_logits: bool = False,
        should_stop: Callable[[], bool] | None = None,
    ) -> Tensor:
        """Append ``ids`` to the cache, and compute the logits that follow them.

        Args:
            ids: one or more token ids that follow those of the cache.
            cache: earlier tokens; unchanged if this raises.
            all_logits: return the logits of each position, not only of the last.
            should_stop: called between layers.

        Returns:
            Logits in float32, ``(len(ids), vocab_size)`` or ``(vocab_size,)``.

        Raises:
            InterruptedForward: if ``should_stop`` returned True.
            LlamaChatError: if memory runs out, even without the suffixes that the cache saved.
            ValueError: if the tokens exceed the context.
        """
        # OpenMP keeps a thread count for each calling thread.
        if self.threads is not None and torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        n_logits = len(ids) if all_logits else 1
        logits = self._run_within_memory(ids, cache, n_logits, should_stop)
        cache.commit(ids)
        return logits if all_logits else logits[-1]

    def _run_within_memory(
        self,
        ids: Sequence[int],
        cache: KVCache,
        n_logits: int,
        should_stop: Callable[[], bool] | None,
    ) -> Tensor:
        """Grow the cache, and run; if memory runs out, once more without its saved suffixes."""
        n_tokens = cache.length + len(ids)
        while True:
            try:
                self._reserve(cache, n_tokens)
                return self._run(ids, cache, n_logits, should_stop)
            except (MemoryError, RuntimeError, OSError) as error:
                if not is_out_of_memory(error):
                    raise
                if not cache.drop_suffixes():
                    raise LlamaChatError(
                        f"{counted(n_tokens, 'token')} of context",
                        "not enough memory",
                        "use a smaller model or --context",
                    ) from None

    def _reserve(self, cache: KVCache, length: int) -> None:
        """Grow the buffers of the cache until ``length`` tokens fit."""
        cache.reserve(length)

    @abstractmethod
    def _run(
        self,
        ids: Sequence[int],
        cache: KVCache,
        n_logits: int,
        should_stop: Callable[[], bool] | None,
    ) -> Tensor:
        """Write the rows of ``ids`` past the end of the cache, which has space for them.

        Returns:
            Logits of the last tokens, ``(n_logits, vocab_size)`` in float32.
        """


class TorchBackend(Backend):
    """Forward passes of the torch modules."""

    def _run(
        self,
        ids: Sequence[int],
        cache: KVCache,
        n_logits: int,
        should_stop: Callable[[], bool] | None,
    ) -> Tensor:
        n_new, n_total, device = len(ids), cache.length + len(ids), self.model.device
        logits: Tensor = self.model(
            torch.tensor([ids], device=device),
            torch.arange(cache.length, n_total),
            causal_mask(n_new, n_total, device) if n_new > 1 else None,
            cache,
            n_logits=n_logits,
            should_stop=should_stop,
        )
        return logits[0]
