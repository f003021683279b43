"""From the tensors of a checkpoint to the weights of a model: how each is held, and where."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, cast

import torch
from torch import Tensor

from llama_chat.checkpoints.base import Checkpoint
from llama_chat.errors import ModelError
from llama_chat.files import readable_size
from llama_chat.kernels import native
from llama_chat.kernels.matrix import padded_rows
from llama_chat.model.quantization import Packed, packed_bytes, place, quantize

Form = Literal["none", "stored", "int8", "int4"]
"""How the matrices are held: as floats, packed as the file has them, or packed anew."""

FORMS: tuple[Form, ...] = ("none", "stored", "int8", "int4")

_CPU = torch.device("cpu")

_SPARE_BYTES = 2**29
"""What torch, the vocabulary and the activations take beside weights and cache."""

_FIRST_TOKENS = 1024
"""Tokens that must fit in the cache where no context length was asked for."""

Weights = dict[str, Tensor | Packed]


def held_bytes(checkpoint: Checkpoint, form: Form, dtype: torch.dtype) -> int:
    """Bytes that the weights take in memory."""
    return sum(_tensor_bytes(checkpoint, name, form, dtype) for name in checkpoint.tensors)


def choose_form(
    wanted: str,
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    free: int,
    device: torch.device = _CPU,
) -> Form:
    """Decide how the matrices are held.

    Args:
        wanted: a ``Form``, or ``auto``: quantised files stay packed. Where no C multiplies packed
            weights, as on a GPU, they are unpacked if that takes no more than half of ``free``.
        checkpoint: whose weights.
        dtype: the type of what is not packed.
        free: bytes of memory to be had.
        device: where the model is to compute.
    """
    if wanted != "auto":
        return cast("Form", wanted)
    roomy = held_bytes(checkpoint, "none", dtype) <= free // 2
    is_fast = native.available and device.type == "cpu"
    return "none" if roomy and not is_fast else "stored"


def check_fit(
    form: Form,
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    free: int,
    context: int | None = None,
    kv_dtype: torch.dtype | None = None,
) -> None:
    """See that weights and cache fit in memory, before any is taken.

    Args:
        form: how the matrices are held.
        checkpoint: whose weights.
        dtype: the type of what is not packed.
        free: bytes of memory to be had.
        context: tokens that must fit in the cache, if a number was asked for.
        kv_dtype: the type of the cache, if it is not ``dtype``.

    Raises:
        ModelError: if they do not fit; with the forms that would.
    """
    n_tokens = context or min(_FIRST_TOKENS, checkpoint.config.context_length)
    element_size = (kv_dtype or dtype).itemsize
    beside = _SPARE_BYTES + checkpoint.config.kv_cache_bytes(n_tokens, element_size)

    def needed(form: Form) -> int:
        return beside + held_bytes(checkpoint, form, dtype)

    if needed(form) <= free:
        return
    fitting = [other for other in FORMS if other != "none" and needed(other) <= free]
    smaller = "a shorter --context" if context else "a smaller model"
    advice = (
        f"use --quantize {fitting[0]} ({readable_size(needed(fitting[0]))})"
        if fitting
        else f"free some memory or take {smaller}"
    )
    raise ModelError(
        f"model {str(checkpoint.path)!r}",
        f"needs {readable_size(needed(form))}, {readable_size(free)} free",
        advice,
    )


def read_weights(
    checkpoint: Checkpoint,
    form: Form,
    dtype: torch.dtype,
    devices: Sequence[torch.device],
    report: Callable[[int, int], None] | None = None,
) -> Weights:
    """Read all weights, several at a time.

    Args:
        checkpoint: whose.
        form: how the matrices are to be held.
        dtype: the type of what is not packed.
        devices: where the layers go, in equal runs.
        report: told the bytes read, of how many.
    """
    weights: Weights = {}
    n_done, n_layers = 0, checkpoint.config.n_layers
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:

        def read_one(name: str) -> Tensor | Packed:
            device = place_weight(name, n_layers, devices)
            return _read(checkpoint, name, form, dtype, device)

        read = pool.map(read_one, checkpoint.tensors)
        try:
            for (name, info), weight in zip(checkpoint.tensors.items(), read, strict=True):
                weights[name] = weight
                n_done += info.n_bytes
                if report is not None:
                    report(n_done, checkpoint.n_bytes)
        finally:
            pool.shutdown(cancel_futures=True)  # on Ctrl-C, read no more than was begun
    return weights


def place_weight(name: str, n_layers: int, devices: Sequence[torch.device]) -> torch.device:
    """Where a weight goes: layers in equal runs, what comes before and after at the ends."""
    parts = name.split(".")
    if parts[0] == "layers":
        return devices[int(parts[1]) * len(devices) // n_layers]
    return devices[0] if parts[0] == "tok_embeddings" else devices[-1]


def _bits(name: str, shape: tuple[int, ...], form: Form) -> Literal[4, 8] | None:
    """The layout of a matrix that is packed anew; None if it is not.

    What reads and what writes words keeps 8 bits: it costs little, and shows most.
    """
    if form not in ("int8", "int4") or len(shape) != 2 or shape[1] % 32:
        return None
    return 4 if form == "int4" and name.startswith("layers.") else 8


def _read(
    checkpoint: Checkpoint, name: str, form: Form, dtype: torch.dtype, device: torch.device
) -> Tensor | Packed:
    bits = _bits(name, checkpoint.tensors[name].shape, form)
    if bits is not None:
        return place(quantize(checkpoint.read(name, torch.float32), bits), device)
    packed = checkpoint.read_packed(name) if form == "stored" else None
    if packed is None:
        return checkpoint.read(name, dtype).to(device)
    placed = place(packed, device)
    checkpoint.forget(name)
    return placed


def _tensor_bytes(checkpoint: Checkpoint, name: str, form: Form, dtype: torch.dtype) -> int:
    info = checkpoint.tensors[name]
    bits = _bits(name, info.shape, form)
    if bits is not None:
        packed: int | None = packed_bytes(info.shape, bits, 32, mins=bits == 4)
    else:
        packed = checkpoint.packed_bytes(name) if form == "stored" else None
    if packed is None:
        return info.n_weights * dtype.itemsize
    # In C, rows lie in panels, of which the last may not be full.
    n_rows = info.shape[0]
    return packed // n_rows * padded_rows(n_rows) if native.available else packed
