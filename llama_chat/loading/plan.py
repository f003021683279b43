"""Plan of a load, made from the headers before any weight is read."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from llama_chat.checkpoints.base import FLOAT_TYPES, Checkpoint
from llama_chat.checkpoints.sharded import ShardedCheckpoint, grain_of
from llama_chat.errors import ModelError, UsageError, counted
from llama_chat.files import readable_size
from llama_chat.generation.backend import Backend
from llama_chat.generation.engine import check_least, choose_backend
from llama_chat.kernels import native
from llama_chat.library import find_model
from llama_chat.llama import Llama
from llama_chat.loading.devices import free_memory, pick_devices, pick_dtype
from llama_chat.loading.formats import load_tokenizer, open_checkpoint
from llama_chat.loading.weights import (
    WEIGHT_FORMATS,
    FloatTypes,
    WeightFormat,
    choose_weight_format,
    packs_nothing,
    read_weights,
    weight_bytes,
)
from llama_chat.memory import limit_memory
from llama_chat.model.config import LlamaConfig
from llama_chat.model.transformer import Transformer
from llama_chat.parallel.slices import Shard, shards
from llama_chat.parallel.world import World
from llama_chat.tokenizers.base import Tokenizer

Report = Callable[[int, int], None]
"""Callback with the bytes read so far and the bytes in all."""

_CACHE_DTYPES = {"int8": torch.int8}
"""Cache types other than that of the activations, by their name in ``--kv-dtype``."""

_SPARE_BYTES = 2**29
"""Memory for torch, the vocabulary and activations, in addition to weights and cache."""

_MIN_CACHED_TOKENS = 1024
"""Tokens that must fit in the cache if no context length was asked for."""


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
    """Devices of the layers, in equal runs."""
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
        found, wanted = self.checkpoint.warnings, self.weight_format
        if not packs_nothing(self.checkpoint, wanted):
            return found
        why = "no row of a matrix is a multiple of 32 numbers, so that none is packed"
        return (*found, f"--quantize {wanted}: {why}")

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
        return 0 if self.draft is None else self.draft.bytes_needed - _SPARE_BYTES

    def _bytes_needed(self, weight_format: WeightFormat) -> int:
        context = self.config.context_length
        n_tokens = context if self.context_given else min(_MIN_CACHED_TOKENS, context)
        weights = weight_bytes(self.part, weight_format, self.types)
        return _SPARE_BYTES + weights + self._bytes_of_tokens(n_tokens) + self._draft_bytes

    def _bytes_of_tokens(self, n_tokens: int) -> int:
        """Compute the bytes that grow with a conversation: its cache and the rotary tables."""
        tables = self.config.rotary_bytes(n_tokens) * len(self.devices)
        return self.cache_bytes(n_tokens) + tables

    def cache_bytes(self, n_tokens: int) -> int:
        """Compute the bytes of the keys and values of ``n_tokens`` tokens."""
        return self.local_config.kv_cache_bytes(n_tokens, self.cache_dtype.itemsize)

    @property
    def max_saved_bytes(self) -> int:
        """Bytes for saved suffixes of the cache: those that a full cache would leave free."""
        full = self._bytes_of_tokens(self.config.context_length)
        used = _SPARE_BYTES + self.weight_bytes + full + self._draft_bytes
        return max(0, self.bytes_free - used)

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
        smaller = "a shorter --context" if self.context_given else "a smaller model"
        advice = f"free some memory or take {smaller}"
        if fitting:
            size, name = fitting[0]
            advice = f"use --quantize {name} ({readable_size(size)})"
        free = f"{readable_size(self.bytes_free)} free"
        if self.memory is not None:
            free += f" of --memory {readable_size(self.memory)}"
        raise ModelError(
            f"model {str(self.checkpoint.path)!r}",
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
        limit_memory(self.memory)
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        own, draft = self.checkpoint.n_bytes, None
        if self.draft is not None:
            total = own + self.draft.checkpoint.n_bytes
            draft = self.draft.load(_part(report, own, total))
            report = _part(report, 0, total)
        return Llama(
            self.checkpoint,
            self.load_backend(report),
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


def plan(
    path: str | os.PathLike[str],
    device: str = "auto",
    dtype: str = "auto",
    quantize: str | None = None,
    context: int | None = None,
    *,
    kv_dtype: str = "auto",
    threads: int | None = None,
    model_paths: Sequence[str] = (),
    draft: str | os.PathLike[str] | None = None,
    memory: int | None = None,
    reclaimable: int = 0,
    world: World | None = None,
) -> LoadPlan:
    """Plan a load, with the arguments of ``load``.

    ``reclaimable`` bytes count as free: those of a model that will be dropped first. The process
    may use ``memory`` bytes in all. With ``world`` it is the load of one rank of several.

    Raises:
        ModelError: if the model or its tokenizer cannot be opened.
        UsageError: if an argument does not suit the model or this machine.
    """
    devices = pick_devices(device, world)
    checkpoint = open_checkpoint(find_model(os.fspath(path), model_paths))
    tokenizer = load_tokenizer(checkpoint)
    config = checkpoint.config
    if context is not None:
        if context > config.longest_context:
            raise UsageError(
                f"--context {context}",
                f"the model was made for {counted(config.longest_context, 'token')}",
                "give that or less",
            )
        config = replace(config, context_length=context)
    native_floats = devices[0].type == "cpu" and native.multiplies_floats()
    keeps_stored = dtype == "auto" and native_floats
    types = FloatTypes(
        pick_dtype(dtype, checkpoint.dtype, devices[0], keeps_stored=keeps_stored), keeps_stored
    )
    bytes_free = free_memory(devices, memory, world) + reclaimable
    n_ranks = 1 if world is None else world.size
    weight_format = choose_weight_format(
        quantize or "auto", checkpoint, types, bytes_free * n_ranks, devices[0]
    )
    cache_dtype = _cache_dtype(kv_dtype, checkpoint, weight_format, types.dtype, native_floats)
    shard = None
    if world is not None:
        if draft is not None:
            raise UsageError("--draft", "several ranks compute the model", "leave it out")
        shard = shards(config, world.size, grain_of(checkpoint, weight_format))[world.rank]
    planned = LoadPlan(
        checkpoint,
        tokenizer,
        config,
        context_given=context is not None,
        devices=devices,
        types=types,
        weight_format=weight_format,
        cache_dtype=cache_dtype,
        threads=threads,
        bytes_free=bytes_free,
        shard=shard,
        memory=memory,
    )
    if draft is None:
        return planned
    draft_path = find_model(os.fspath(draft), model_paths)
    return replace(planned, draft=_plan_draft(planned, draft_path, reclaimable))


def _plan_draft(planned: LoadPlan, path: Path, reclaimable: int) -> LoadPlan:
    """Plan to load the draft model at ``path`` beside the one that is ``planned``.

    Raises:
        ModelError: if it cannot be opened.
        UsageError: if its vocabulary is another, or its drafts would change the text.
    """
    what = f"draft model {str(path)!r}"
    if planned.kernel == native.TORCH:
        why = "where torch computes the model, drafts would change the text"
        raise UsageError(what, why, "leave out --draft")
    device = str(planned.devices[0])
    memory, threads = planned.memory, planned.threads
    found = plan(path, device, threads=threads, memory=memory, reclaimable=reclaimable)
    if found.tokenizer.fingerprint != planned.tokenizer.fingerprint:
        why = "its vocabulary is not that of the model"
        raise UsageError(what, why, "take a smaller model of the same family")
    length = min(found.config.longest_context, planned.config.context_length)
    config = replace(found.config, context_length=length)
    return replace(found, config=config, context_given=planned.context_given)


def _cache_dtype(
    wanted: str,
    checkpoint: Checkpoint,
    weight_format: WeightFormat,
    dtype: torch.dtype,
    native_floats: bool,
) -> torch.dtype:
    """Choose the type of the KV cache: ``auto`` takes that of the activations.

    The kernels compute floats of 16 bits with activations in float32, which float16 keeps better
    than bfloat16 does.
    """
    if wanted in _CACHE_DTYPES:
        return _CACHE_DTYPES[wanted]
    has_floats = weight_format == "none" or (
        weight_format == "stored" and checkpoint.dtype is not None
    )
    return torch.float16 if native_floats and has_floats and dtype.itemsize == 2 else dtype


def load(
    path: str | os.PathLike[str],
    device: str = "auto",
    dtype: str = "auto",
    quantize: str | None = None,
    context: int | None = None,
    *,
    kv_dtype: str = "auto",
    threads: int | None = None,
    model_paths: Sequence[str] = (),
    draft: str | os.PathLike[str] | None = None,
    report: Report | None = None,
) -> Llama:
    """Load a model.

    Args:
        path: a folder of Meta, Mistral or the Hugging Face Hub, a GGUF or llama2.c file, or
            the name of a model on this machine as ``llama-chat models`` lists it.
        device: ``auto``, ``cpu``, ``cuda``, ``mps``, or several with commas to split the layers.
        dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
        quantize: ``auto`` (as is None), ``none`` (floats, however the file is stored), ``stored``
            (packed as in the file), ``int8`` or ``int4`` (quantized now).
        context: context length in tokens, at most the model's.
        kv_dtype: type of the KV cache: ``auto`` (16 bits, or 32 beside such weights) or ``int8``.
        threads: CPU threads of this process; None for one per core.
        model_paths: further folders in which names are looked up.
        draft: a smaller model of the same vocabulary, whose guesses save passes of this one.
        report: called with the bytes read so far and the bytes in all.

    Raises:
        ModelError: if the model or its tokenizer cannot be loaded.
        UsageError: if an argument does not suit the model or this machine.
    """
    planned = plan(
        path,
        device,
        dtype,
        quantize,
        context,
        kv_dtype=kv_dtype,
        threads=threads,
        model_paths=model_paths,
        draft=draft,
    )
    return planned.load(report)
