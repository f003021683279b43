"""Conversion of weights to the bytes of a storage type."""

import math

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llama_chat.checkpoints.base import FLOAT_NAMES, FLOAT_TYPES, Checkpoint
from llama_chat.conversion.target import QUANTIZED
from llama_chat.errors import UsageError

Bytes = NDArray[np.uint8]

_SCALE_BYTES = {"Q8_0": 2, "Q4_0": 2, "Q4_1": 4}
"""Bytes at the beginning of a block: its scale and for Q4_1 its minimum, in float16."""


def choose_type(checkpoint: Checkpoint, wanted: str | None) -> str:
    """Return the type to store matrices in: ``wanted``, or else that of the source.

    Quantized matrices become F16, which has the precision of their scales.
    """
    return wanted or FLOAT_NAMES.get(checkpoint.dtype or torch.float16, "F16")


def quantized_types(checkpoint: Checkpoint) -> list[str]:
    """Return the types of the source that are not floats."""
    return sorted({info.type for info in checkpoint.tensors.values()} - FLOAT_TYPES.keys())


def n_bytes(shape: tuple[int, ...], kind: str) -> int:
    """Return the bytes of a weight of type ``kind``."""
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    return math.prod(shape) // int(block) * int(size)


def fitting_type(shape: tuple[int, ...], kind: str) -> str:
    """Return the type of a weight in a file with matrices of ``kind``.

    Vectors are F32, as every reader of GGUF expects; a matrix whose rows cannot be divided into
    blocks is F16.
    """
    if len(shape) == 1:
        return "F32"
    block, _ = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    return kind if shape[-1] % block == 0 else "F16"


def read_float(checkpoint: Checkpoint, name: str, kind: str) -> Tensor:
    """Read a weight as a float type.

    Raises:
        UsageError: if the type cannot represent its values.
    """
    weight = checkpoint.read(name, FLOAT_TYPES[kind])
    if kind == "F16" and weight.isinf().any():
        raise UsageError(
            f"--type {kind}", f"tensor {name} has numbers above 65504", "give BF16 or F32"
        )
    return weight


def read_bytes(checkpoint: Checkpoint, name: str, kind: str) -> Bytes:
    """Read a weight as the bytes of any type, quantized by the gguf library.

    Raises:
        UsageError: if the type cannot represent its values.
    """
    if kind not in QUANTIZED:
        return as_bytes(read_float(checkpoint, name, kind))
    weight = checkpoint.read(name, torch.float32).numpy()
    with np.errstate(over="ignore", invalid="ignore"):  # looked for below
        packed: Bytes = gguf.quants.quantize(weight, gguf.GGMLQuantizationType[kind])
    blocks = packed.reshape(-1, n_bytes((1, 32), kind))
    if not np.isfinite(blocks[:, : _SCALE_BYTES[kind]].view(np.float16)).all():
        why = f"tensor {name} has numbers that blocks of {kind} cannot hold"
        raise UsageError(f"--type {kind}", why, "give BF16 or F32")
    return packed


def as_bytes(weight: Tensor) -> Bytes:
    """Return the bytes of a weight, row by row."""
    data: Bytes = weight.contiguous().view(torch.uint8).numpy()
    return data
