"""Planning of a load, from the headers and before any weight is read."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from llama_chat.checkpoints.base import Checkpoint, label
from llama_chat.checkpoints.sharded import grain_of
from llama_chat.errors import UsageError, counted
from llama_chat.kernels import native
from llama_chat.library import find_model
from llama_chat.llama import Llama
from llama_chat.loading.devices import (
    all_devices,
    free_bytes,
    free_memory,
    map_layers,
    pick_devices,
    pick_dtype,
)
from llama_chat.loading.formats import load_tokenizer, open_checkpoint
from llama_chat.loading.load_plan import SPARE_BYTES, LoadPlan, Report
from llama_chat.loading.weights import (
    FloatTypes,
    WeightFormat,
    bytes_by_layer,
    choose_weight_format,
)
from llama_chat.parallel.slices import shards
from llama_chat.parallel.world import World
from llama_chat.settings.definitions import SETTINGS
from llama_chat.settings.setting import check

_CACHE_DTYPES = {"int8": torch.int8}
"""Cache types other than that of the activations, by their name in ``--kv-dtype``."""


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
    device_map: str = "off",
    world: World | None = None,
) -> LoadPlan:
    """Plan a load, with the arguments of ``load``.

    ``reclaimable`` bytes count as free: those of a model that will be dropped first. The process
    may use ``memory`` bytes in all. With ``world`` it is the load of one rank of several.

    Raises:
        ModelError: if the model or its tokenizer cannot be opened.
        UsageError: if an argument does not suit the model or this machine.
    """
    _check_settings(
        dtype=dtype,
        quantize=quantize,
        context=context,
        kv_dtype=kv_dtype,
        threads=threads,
        memory=memory,
        device_map=device_map,
    )
    devices = pick_devices(device, world)
    if device_map == "auto" and device == "auto" and world is None:
        devices = all_devices()
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
    bytes_free = free_memory(devices, memory, world, reclaimable)
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
    if device_map == "auto" and world is None:
        planned = replace(planned, devices=_devices_of_layers(planned))
    if draft is None:
        return planned
    draft_path = find_model(os.fspath(draft), model_paths)
    return replace(planned, draft=_plan_draft(planned, draft_path, reclaimable))


def _check_settings(**values: object) -> None:
    """Check values of settings, by their names; None is the default of each.

    Raises:
        UsageError: if one is out of range.
    """
    for name, value in values.items():
        if value is not None:
            check(SETTINGS[name], value, SETTINGS[name].flag)


def _devices_of_layers(planned: LoadPlan) -> tuple[torch.device, ...]:
    """Choose the device of each layer of a plan by the free memory of its devices."""
    n_tokens = planned.n_tokens_to_fit
    cache = planned.cache_bytes(n_tokens) // planned.config.n_layers
    layers, ends = bytes_by_layer(planned.checkpoint, planned.weight_format, planned.types)
    free = [
        (each, max(free_bytes(each) - SPARE_BYTES - planned.config.rotary_bytes(n_tokens), 0))
        for each in planned.devices
    ]
    return map_layers([size + cache for size in layers], ends, free)


def _plan_draft(planned: LoadPlan, path: Path, reclaimable: int) -> LoadPlan:
    """Plan to load the draft model at ``path`` beside the one that is ``planned``.

    Raises:
        ModelError: if it cannot be opened.
        UsageError: if its vocabulary is another, or its drafts would change the text.
    """
    what = f"draft {label(path)}"
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
    memory: int | None = None,
    device_map: str = "off",
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
        threads: CPU threads, also of whatever else this process computes with torch; None for as
            many as torch uses, by itself one per core.
        model_paths: further folders in which names are looked up.
        draft: a smaller model of the same vocabulary, whose guesses save passes of this one.
        memory: bytes that this process may use in all; None for no limit.
        device_map: ``auto`` places the layers by the free memory of the devices, ``off`` in equal
            shares.
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
        memory=memory,
        device_map=device_map,
    )
    return planned.load(report)
