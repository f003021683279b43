"""Plan of a load: all decisions before any weight is read, and the load itself."""

import os
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

import torch

from llama_chat.checkpoints.base import FLOAT_TYPES, Checkpoint, label
from llama_chat.checkpoints.sharded import ShardedCheckpoint
from llama_chat.errors import ModelError, counted
from llama_chat.files import readable_size
from llama_chat.generation.backend import Backend
from llama_chat.generation.engine import check_least, choose_backend
from llama_chat.kernels import native
from llama_chat.llama import Llama
from llama_chat.loading.weights import (
    WEIGHT_FORMATS,
    FloatTypes,
    WeightFormat,
    packs_nothing,
    read_weights,
    weight_bytes,
)
from llama_chat.model.config import LlamaConfig
from llama_chat.model.transformer import Transformer
from llama_chat.parallel.slices import Shard
from llama_chat.tokenizers.base import Tokenizer

Report = Callable[[int, int], None]
"""Callback with the bytes read so far and the bytes in all."""

SPARE_BYTES = 2**29
"""Memory for torch, the vocabulary and activations, in addition to weights and cache."""

_MIN_CACHED_TOKENS = 1024
"""Tokens that must fit in the cache if no context length was asked for."""

_LEAST_CONTEXT = 256
"""Tokens of the shortest context that is worth proposing."""


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """Formats, types, devices and memory of a load."""

    checkpoint: Checkpoint
    tokenizer: Tokenizer
    config: LlamaConfig
    """Hyperparameters, with the context length to use."""
    context_given: bool
    """True if the user gave that context length: then all of it must fit in memory."""
    devices: tuple[torch.device, ...]
    """Devices that share the layers equally, in order; or a device for each layer."""
    types: FloatTypes
    """Types of weights that are not packed."""
    weight_format: WeightFormat
    cache_dtype: torch.dtype
    threads: int | None
    """CPU threads; None for one per core."""
    bytes_free: int
    memory: int | None = None
    """Bytes that the process may use in all; None for no such limit."""
    draft: "LoadPlan | None" = None
    """Plan of the draft model, if there is one."""
    shard: Shard | None = None
    """Part of the model that this rank loads; None if it loads all."""

    @property
    def part(self) -> Checkpoint:
        """The weights that this process reads."""
        return (
            self.checkpoint
            if self.shard is None
            else ShardedCheckpoint(self.checkpoint, self.shard)
        )

    @property
    def local_config(self) -> LlamaConfig:
        """Hyperparameters of the part of the model that this process loads."""
        return self.config if self.shard is None else self.shard.local(self.config)

    @property
    def dtype(self) -> torch.dtype:
        """Type of weights that are not packed, and of the activations in torch."""
        return self.types.dtype

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights in memory."""
        return weight_bytes(self.part, self.weight_format, self.types)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings for the user, one line each."""
        found, wanted = list(self.checkpoint.warnings), self.weight_format
        if packs_nothing(self.checkpoint, wanted):
            why = "no row of a matrix is a multiple of 32 numbers, so that none is packed"
            found.append(f"--quantize {wanted}: {why}")
        n_cores = os.cpu_count()
        if self.threads is not None and n_cores is not None and self.threads > n_cores:
            why = f"more than the {counted(n_cores, 'processor')} of this machine are slower"
            found.append(f"--threads {self.threads}: {why}")
        return tuple(found)

    @property
    def kernel(self) -> str:
        """Name of the code that multiplies the matrices: a level of the C kernels, or ``torch``."""
        stored = {info.type for info in self.checkpoint.tensors.values()}
        packs = self.weight_format in ("int8", "int4") or (
            self.weight_format == "stored" and not stored <= FLOAT_TYPES.keys()
        )
        is_native = self.devices[0].type == "cpu" and (packs or native.multiplies_floats())
        return native.level_name() if is_native else native.TORCH

    @property
    def bytes_needed(self) -> int:
        """Bytes that must be free: weights, cache and working memory."""
        return self._bytes_needed(self.weight_format)

    @property
    def _draft_bytes(self) -> int:
        """Bytes of the draft model: its weights and cache."""
        return 0 if self.draft is None else self.draft.bytes_needed - SPARE_BYTES

    def _bytes_needed(self, weight_format: WeightFormat) -> int:
        weights = weight_bytes(self.part, weight_format, self.types)
        return weights + self._bytes_beside_weights(self.n_tokens_to_fit)

    def _bytes_beside_weights(self, n_tokens: int) -> int:
        return self.cache_bytes(n_tokens) + self.buffer_bytes(n_tokens)

    def bytes_with(self, n_tokens: int) -> int:
        """Compute the bytes that must be free for a conversation of ``n_tokens`` tokens."""
        return self.weight_bytes + self._bytes_beside_weights(n_tokens)

    @property
    def fitting_context(self) -> int:
        """Tokens of the longest conversation for which memory is free, up to the context."""
        left = self.bytes_free - self.weight_bytes
        lengths = range(1, self.config.context_length + 1)
        return bisect_right(lengths, left, key=self._bytes_beside_weights)

    def buffer_bytes(self, n_tokens: int) -> int:
        """Compute the bytes beside weights and cache: working memory, tables, the draft model."""
        tables = self.config.rotary_bytes(n_tokens) * len(set(self.devices))
        return SPARE_BYTES + tables + self._draft_bytes

    @property
    def n_tokens_to_fit(self) -> int:
        """Tokens whose keys and values must fit beside the weights."""
        context = self.config.context_length
        return context if self.context_given else min(_MIN_CACHED_TOKENS, context)

    def cache_bytes(self, n_tokens: int) -> int:
        """Compute the bytes of the keys and values of ``n_tokens`` tokens."""
        return self.local_config.kv_cache_bytes(n_tokens, self.cache_dtype.itemsize)

    @property
    def max_saved_bytes(self) -> int:
        """Bytes for saved suffixes of the cache: those that a full cache leaves free."""
        return max(0, self.bytes_free - self.bytes_with(self.config.context_length))

    def check_fit(self) -> None:
        """Check that the memory needed is free.

        Raises:
            ModelError: if it is not; the message names a weight format that would fit.
        """
        if self.bytes_needed <= self.bytes_free:
            return
        fitting = [
            (size, name)
            for name in WEIGHT_FORMATS
            if name != "none" and (size := self._bytes_needed(name)) <= self.bytes_free
        ]
        advice = "free some memory or take a smaller model"
        if fitting:
            size, name = fitting[0]
            advice = f"use --quantize {name} ({readable_size(size)})"
        elif self.context_given and self.fitting_context >= _LEAST_CONTEXT:
            advice = f"take --context {self.fitting_context} or less"
        elif self.memory is not None:
            advice = "raise --memory"
        free = f"{readable_size(self.bytes_free)} free"
        if self.memory is not None:
            free += f" of --memory {readable_size(self.memory)}"
        raise ModelError(
            label(self.checkpoint.path),
            f"needs {readable_size(self.bytes_needed)}, {free}",
            advice,
        )

    def check_length(self, text: str) -> None:
        """Check that a prompt may fit in the context, without encoding it.

        Raises:
            PromptTooLongError: if it cannot.
        """
        check_least(self.tokenizer.min_tokens(text), self.config.context_length)

    def load(self, report: Report | None = None) -> Llama:
        """Read the weights.

        Args:
            report: called after each weight.

        Raises:
            ModelError: if the model does not fit in memory, or its weights cannot be read.
        """
        self.check_fit()
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        own, draft = self.checkpoint.n_bytes, None
        if self.draft is not None:
            total = own + self.draft.checkpoint.n_bytes
            draft = self.draft.load(_part(report, own, total))
            report = _part(report, 0, total)
        backend = self.load_backend(report)
        backend.memory = self.memory
        return Llama(
            self.checkpoint,
            backend,
            self.tokenizer,
            cache_dtype=self.cache_dtype,
            max_saved_bytes=self.max_saved_bytes,
            draft=draft,
            warnings=self.warnings,
        )

    def load_backend(self, report: Report | None = None) -> Backend:
        """Read the weights, and choose what computes them; see ``load``."""
        return choose_backend(self.load_model(report), self.cache_dtype, self.threads)

    def load_model(self, report: Report | None = None) -> Transformer:
        """Read the weights of the part of this process; see ``load``."""
        with torch.device("meta"):
            model = Transformer(self.local_config)
        model.load_weights(
            read_weights(self.part, self.weight_format, self.types, self.devices, report)
        )
        if self.shard is not None and self.types.keeps_stored:
            model.compute_in_float32()  # as the kernels do, which multiply the matrices
        return model.eval()


def _part(report: Report | None, before: int, total: int) -> Report | None:
    """Return a callback for a part of ``total`` bytes that comes after ``before`` others."""
    return None if report is None else lambda done, _: report(before + done, total)
