"""Backends: ways to compute the forward passes of a model."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from llama_chat.errors import ContextMemoryError, counted, is_out_of_memory
from llama_chat.generation.cache_rows import CacheRows
from llama_chat.generation.kv_cache import KVCache, RowCache
from llama_chat.generation.stopwatch import Seconds, timed_modules
from llama_chat.kernels import mapped_files, native
from llama_chat.kernels.abi import MAX_EXACT_BATCH
from llama_chat.model.attention import SequenceSpan, causal_mask
from llama_chat.model.config import LlamaConfig
from llama_chat.model.transformer import InterruptedForward, Transformer

PREFILL_CHUNK = 512
"""Tokens of one prefill pass: enough to keep matrix units busy, few enough to show progress."""


MIN_PROMPT_CHUNK = MAX_EXACT_BATCH + 1
"""Fewest tokens of a pass that are evaluated as a prompt; fewer are an exact batch."""


def chunk_size(n_left: int, limit: int) -> int:
    """Return the tokens of a prompt to evaluate in the next pass, at most ``limit``.

    All chunks are large enough to be evaluated as a prompt, so that results do not depend on the
    division.
    """
    if n_left <= limit:
        return n_left
    return min(limit, n_left - MIN_PROMPT_CHUNK)


def prompt_chunks(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    """Divide the tokens of a prompt among prefill passes."""
    done = 0
    while done < len(ids):
        n_tokens = chunk_size(len(ids) - done, PREFILL_CHUNK)
        yield ids[done : done + n_tokens]
        done += n_tokens


@dataclass(frozen=True, slots=True)
class Extension:
    """Tokens that a pass appends to one sequence."""

    ids: Sequence[int]
    """One or more tokens, which follow those of the cache."""
    cache: RowCache
    n_logits: int = 1
    """Number of tokens, from the last back, whose logits are wanted."""

    @property
    def end(self) -> int:
        """Length of the sequence after these tokens."""
        return self.cache.length + len(self.ids)


class Backend(ABC):
    """Forward passes of one model over the tokens of one or several sequences."""

    max_exact_batch: int = 1
    """Tokens of one sequence in a pass up to which its logits and cache rows equal, bit for bit,
    those of passes over one token each."""

    def __init__(self, model: Transformer, threads: int | None = None) -> None:
        """Compute ``model`` with ``threads`` CPU threads; None for as many as torch uses."""
        self.model = model
        self.threads = threads
        self.memory: int | None = None
        """Bytes that this process may use in all when a cache grows; None for no limit."""

    @property
    def context(self) -> int:
        """Context length in tokens."""
        return self.model.config.context_length

    @property
    def vocab_size(self) -> int:
        """Number of logits of a token."""
        return self.model.config.vocab_size

    @property
    def kernel_name(self) -> str:
        """Name of the code that multiplies the matrices, with their types."""
        model = self.model
        if model.has_one_dtype and not any(module.packed for module in model.matrices):
            return self.torch_name
        path = native.level_name() if model.device.type == "cpu" else "torch"
        return f"{path} {' '.join(model.matrix_types)}, {self.torch_name}"

    @property
    def torch_name(self) -> str:
        """Name of the code if it is torch, with the type of the activations."""
        return f"torch {str(self.model.dtype).removeprefix('torch.')} on {self.model.device}"

    def timed_parts(self) -> AbstractContextManager[Callable[[], Seconds]]:
        """Time forward passes, by the parts of ``PARTS``.

        Returns:
            A context with a function that returns and resets the seconds of each part.
        """
        return timed_modules(self.model)

    def new_cache(
        self, dtype: torch.dtype | None = None, max_saved_bytes: int | None = None
    ) -> KVCache:
        """Make an empty cache on the devices of the layers.

        Args:
            dtype: type of keys and values; None for that of the activations.
            max_saved_bytes: limit on its saved suffixes; see ``KVCache``.
        """
        config, dtype = self.model.config, dtype or self.model.dtype
        devices = [block.device for block in self.model.blocks]
        rows = self._new_rows(config, dtype, devices)
        return KVCache(config, dtype, devices, max_saved_bytes, rows)

    def _new_rows(
        self, config: LlamaConfig, dtype: torch.dtype, devices: Sequence[torch.device]
    ) -> CacheRows:
        """Make the storage of an empty cache."""
        return CacheRows(config, dtype, devices, self.memory)

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
            ContextMemoryError: if memory runs out, even without the suffixes that the cache saved.
            ValueError: if the tokens exceed the context.
        """
        extension = Extension(ids, cache, len(ids) if all_logits else 1)
        logits = self.forward_batch([extension], should_stop)[0]
        return logits if all_logits else logits[-1]

    def forward_batch(
        self,
        extensions: Sequence[Extension],
        should_stop: Callable[[], bool] | None = None,
    ) -> list[Tensor]:
        """Append tokens to several sequences, and compute the logits that follow them.

        The logits of a sequence do not depend on the others: bit for bit with the kernels, up to
        rounding with torch.

        Args:
            extensions: one or more, each of another cache; all are unchanged if this raises.
            should_stop: called between layers, or once if the pass is short.

        Returns:
            Logits ``(n_logits, vocab_size)`` in float32 of each.

        Raises:
            InterruptedForward, ContextMemoryError, ValueError: as ``forward``.
        """
        if should_stop is not None and self._is_short(extensions):
            if should_stop():
                raise InterruptedForward
            should_stop = None
        return self.run_pass(extensions, should_stop)

    def _is_short(self, extensions: Sequence[Extension]) -> bool:
        """True if a pass takes so little time that it need not be stopped."""
        return False

    @torch.inference_mode()
    def run_pass(
        self, extensions: Sequence[Extension], should_stop: Callable[[], bool] | None
    ) -> list[Tensor]:
        """Run a pass as ``forward_batch`` does, with ``should_stop`` called between layers."""
        # OpenMP keeps a thread count for each calling thread.
        if self.threads is not None and torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        logits = self._run_within_memory(extensions, should_stop)
        mapped_files.check()
        for extension in extensions:
            extension.cache.commit(extension.ids)
        return logits

    def _run_within_memory(
        self, extensions: Sequence[Extension], should_stop: Callable[[], bool] | None
    ) -> list[Tensor]:
        """Grow the caches, and run; if memory runs out, once more without their saved suffixes."""
        while True:
            try:
                for extension in extensions:
                    self._reserve(extension.cache, extension.end)
                return self._run(extensions, should_stop)
            except (MemoryError, RuntimeError, OSError) as error:
                if not is_out_of_memory(error):
                    raise
                dropped = [extension.cache.drop_suffixes() for extension in extensions]
                if not any(dropped):
                    n_tokens = sum(extension.end for extension in extensions)
                    raise ContextMemoryError(
                        f"{counted(n_tokens, 'token')} of context",
                        "not enough memory",
                        "use a smaller model or --context",
                    ) from None

    def _reserve(self, cache: RowCache, length: int) -> None:
        """Grow the buffers of the cache until ``length`` tokens fit."""
        cache.reserve(length)

    @abstractmethod
    def _run(
        self, extensions: Sequence[Extension], should_stop: Callable[[], bool] | None
    ) -> list[Tensor]:
        """Write the rows of the extensions past the ends of their caches, which have the space.

        Returns:
            Logits ``(n_logits, vocab_size)`` in float32 of each.
        """


class TorchBackend(Backend):
    """Forward passes of the torch modules.

    Tokens of several sequences go through the matrices together, and each attends to its own cache.
    Torch may sum in another order for another number of tokens, so that the logits of a sequence,
    alone and beside others, differ by rounding.
    """

    def _run(
        self, extensions: Sequence[Extension], should_stop: Callable[[], bool] | None
    ) -> list[Tensor]:
        ids = [token_id for new in extensions for token_id in new.ids]
        spans: list[SequenceSpan] = []
        positions: list[int] = []
        logit_rows: list[int] = []
        for new in extensions:
            start = spans[-1].end if spans else 0
            n_new = len(new.ids)
            mask = causal_mask(n_new, new.end, self.model.device) if n_new > 1 else None
            spans.append(SequenceSpan(start, start + n_new, new.end, mask, new.cache))
            positions += range(new.cache.length, new.end)
            logit_rows += range(start + n_new - new.n_logits, start + n_new)
        logits: Tensor = self.model(
            torch.tensor([ids], device=self.model.device),
            torch.tensor(positions),
            spans,
            logit_rows=logit_rows or slice(-1, None),
            should_stop=should_stop,
        )
        wanted = logits[0, : len(logit_rows)]
        return list(torch.split(wanted, [new.n_logits for new in extensions]))
