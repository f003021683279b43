"""Weights of a model, read from a checkpoint into their format and device."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
from torch import Tensor

from llama_chat.checkpoints.base import FLOAT_TYPES, Checkpoint, TensorInfo
from llama_chat.errors import UsageError
from llama_chat.kernels import mapped_files, native
from llama_chat.kernels.matrix import padded_rows
from llama_chat.quantization.linear import Packed, has_kernels, place_parts, prefers_floats
from llama_chat.quantization.packed import PackedWeight, packed_bytes
from llama_chat.quantization.quantize import quantize_in_parts

WeightFormat = Literal["none", "stored", "int8", "int4"]
"""Format of the matrices in memory: floats, packed as in the file, or quantized at load."""

WEIGHT_FORMATS: tuple[WeightFormat, ...] = get_args(WeightFormat)

_QUANTIZED = ("int8", "int4")
"""Formats that matrices are quantized to at load."""

_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class FloatTypes:
    """Types in memory of weights that are not packed."""

    dtype: torch.dtype
    """Type of norms, of unpacked matrices, and of the activations in torch."""
    keeps_stored: bool = False
    """True if a matrix of floats keeps the type that it has in the file."""

    def of(self, info: TensorInfo) -> torch.dtype:
        """Return the type of one weight."""
        is_stored_matrix = len(info.shape) == 2 and info.type in FLOAT_TYPES
        return FLOAT_TYPES[info.type] if self.keeps_stored and is_stored_matrix else self.dtype


Weights = dict[str, Tensor | Packed]


def weight_bytes(checkpoint: Checkpoint, weight_format: WeightFormat, types: FloatTypes) -> int:
    """Compute the bytes that the weights take in memory."""
    return sum(_tensor_bytes(checkpoint, name, weight_format, types) for name in checkpoint.tensors)


def bytes_by_layer(
    checkpoint: Checkpoint, weight_format: WeightFormat, types: FloatTypes
) -> tuple[list[int], tuple[int, int]]:
    """Compute the bytes of the weights of each layer, and those of embedding and output."""
    layers, ends = [0] * checkpoint.config.n_layers, [0, 0]
    for name in checkpoint.tensors:
        n_bytes = _tensor_bytes(checkpoint, name, weight_format, types)
        if name.startswith("layers."):
            layers[int(name.split(".")[1])] += n_bytes
        else:
            ends[not name.startswith("tok_embeddings")] += n_bytes
    return layers, (ends[0], ends[1])


def choose_weight_format(
    wanted: str,
    checkpoint: Checkpoint,
    types: FloatTypes,
    bytes_free: int,
    device: torch.device = _CPU,
) -> WeightFormat:
    """Choose the format of the matrices in memory.

    Args:
        wanted: a ``WeightFormat``, or ``auto``: quantized files stay packed. Without C kernels, as
            on a GPU, and where these are slower than torch, they are unpacked if the floats take
            at most half of ``bytes_free``.
        checkpoint: the model.
        types: types of weights that are not packed.
        bytes_free: bytes of free memory.
        device: device of the model.
    """
    if wanted != "auto":
        return cast("WeightFormat", wanted)
    if weight_bytes(checkpoint, "none", types) > bytes_free // 2:
        return "stored"
    return (
        "stored"
        if has_kernels(device) and not _are_floats_faster(checkpoint, types.dtype)
        else "none"
    )


def _are_floats_faster(checkpoint: Checkpoint, dtype: torch.dtype) -> bool:
    """True if torch multiplies floats faster than the kernels multiply the packed weights."""
    packed = [
        (info.n_weights, n_bytes, info.shape[1])
        for name, info in checkpoint.tensors.items()
        if (n_bytes := checkpoint.packed_bytes(name)) is not None
    ]
    if not packed or not native.is_portable():
        return False
    n_weights, n_bytes, width = max(packed)
    return prefers_floats(dtype, 4 if 8 * n_bytes < 6 * n_weights else 8, width)


def read_weights(
    checkpoint: Checkpoint,
    weight_format: WeightFormat,
    types: FloatTypes,
    devices: Sequence[torch.device],
    report: Callable[[int, int], None] | None = None,
) -> Weights:
    """Read all weights, several in parallel.

    Args:
        checkpoint: the model.
        weight_format: format of the matrices in memory.
        types: types of weights that are not packed.
        devices: devices that share the layers equally, in order; or a device for each layer.
        report: called with the bytes read so far and the bytes in all.

    Raises:
        UsageError: if ``weight_format`` cannot represent the values of a matrix.
    """
    weights: Weights = {}
    n_done, n_layers = 0, checkpoint.config.n_layers
    n_threads = torch.get_num_threads()
    # Each thread has its own matrix: those of torch would only wait for each other.
    with ThreadPoolExecutor(n_threads, "reader", torch.set_num_threads, (1,)) as pool:

        def read_one(name: str) -> Tensor | Packed:
            device = device_of(name, n_layers, devices)
            return _read(checkpoint, name, weight_format, types, device)

        read = pool.map(read_one, checkpoint.tensors)
        try:
            for (name, info), weight in zip(checkpoint.tensors.items(), read, strict=True):
                mapped_files.check()
                weights[name] = weight
                n_done += info.n_bytes
                if report is not None:
                    report(n_done, checkpoint.n_bytes)
        finally:
            pool.shutdown(cancel_futures=True)  # after Ctrl-C, start no further read
            torch.set_num_threads(n_threads)  # the number for new threads, too
    return weights


def device_of(name: str, n_layers: int, devices: Sequence[torch.device]) -> torch.device:
    """Choose the device of a weight: layers in equal shares, embedding first, output last."""
    parts = name.split(".")
    if parts[0] == "layers":
        return devices[int(parts[1]) * len(devices) // n_layers]
    return devices[0] if parts[0] == "tok_embeddings" else devices[-1]


def _bits(name: str, shape: tuple[int, ...], weight_format: WeightFormat) -> Literal[4, 8] | None:
    """Return the bits per weight of a matrix that is quantized at load; None if it is not.

    Embedding and output keep 8 bits: that costs little memory, and errors matter most there.
    """
    if weight_format not in _QUANTIZED or len(shape) != 2 or shape[1] % 32:
        return None
    return 4 if weight_format == "int4" and name.startswith("layers.") else 8


def packs_nothing(checkpoint: Checkpoint, weight_format: WeightFormat) -> bool:
    """True if matrices should be quantized at load, but none can be."""
    shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    packed = (_bits(name, shape, weight_format) for name, shape in shapes.items())
    return weight_format in _QUANTIZED and not any(packed)


def _read(
    checkpoint: Checkpoint,
    name: str,
    weight_format: WeightFormat,
    types: FloatTypes,
    device: torch.device,
) -> Tensor | Packed:
    info = checkpoint.tensors[name]
    bits = _bits(name, info.shape, weight_format)
    packed = checkpoint.read_packed(name, device) if weight_format == "stored" else None
    if bits is not None:
        parts = _quantize(checkpoint, name, weight_format, bits)
        weight: Tensor | Packed = place_parts(parts, info.shape[0], device)
    elif packed is not None:
        weight = packed
    else:
        weight = checkpoint.read(name, types.of(info)).to(device)
    # What was copied is not needed again; of what was not copied, nothing was touched yet.
    checkpoint.forget(name)
    return weight


def _quantize(
    checkpoint: Checkpoint, name: str, weight_format: WeightFormat, bits: Literal[4, 8]
) -> Iterator[PackedWeight]:
    """Quantize a matrix in parts, and release the floats of each part.

    Raises:
        UsageError: if the scales cannot represent its values.
    """
    as_stored = FLOAT_TYPES.get(checkpoint.tensors[name].type, torch.float32)
    for part in quantize_in_parts(checkpoint.read(name, as_stored), bits):
        if not part.is_finite:
            why = f"tensor {name} has numbers that cannot be quantized"
            raise UsageError(f"--quantize {weight_format}", why, "give none")
        checkpoint.forget(name)
        yield part


def _tensor_bytes(
    checkpoint: Checkpoint, name: str, weight_format: WeightFormat, types: FloatTypes
) -> int:
    info = checkpoint.tensors[name]
    bits = _bits(name, info.shape, weight_format)
    if bits is not None:
        packed: int | None = packed_bytes(info.shape, bits, 32, mins=bits == 4)
    else:
        packed = checkpoint.packed_bytes(name) if weight_format == "stored" else None
    if packed is None:
        return info.n_weights * types.of(info).itemsize
    # The kernels pad the last panel of rows.
    n_rows = info.shape[0]
    return packed // n_rows * padded_rows(n_rows) if native.is_available() else packed
