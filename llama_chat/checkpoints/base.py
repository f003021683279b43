"""Common interface of the checkpoint readers."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from llama_chat.checkpoints.float_types import FLOATS
from llama_chat.checkpoints.generation_defaults import GenerationDefaults
from llama_chat.checkpoints.template_source import TemplateSource
from llama_chat.errors import ModelError
from llama_chat.model.config import LlamaConfig
from llama_chat.quantization.packed import PackedWeight
from llama_chat.tokenizers.vocabulary import Vocabulary

FLOAT_TYPES: Mapping[str, torch.dtype] = {
    stored: getattr(torch, name) for stored, name in FLOATS.items()
}
"""Float types of stored weights, by their names in GGUF and safetensors."""

FLOAT_NAMES = {dtype: stored for stored, dtype in FLOAT_TYPES.items()}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Description of a stored weight, from the header."""

    shape: tuple[int, ...]
    type: str
    """Storage type: ``F32``, ``F16``, ``BF16``, ``Q8_0``, ``Q4_1``, …"""
    n_bytes: int

    @property
    def n_weights(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)


class Checkpoint(ABC):
    """An open checkpoint: its description, and its weights one at a time.

    Opening reads headers only. ``tensors`` holds exactly the names and shapes of
    ``config.tensor_shapes()``; a reader whose file differs raises while opening it.
    """

    path: Path
    format: str
    """Name of the format: ``Meta``, ``Hugging Face``, ``GGUF`` or ``llama2.c``."""
    name: str
    """Name of the model for display."""
    config: LlamaConfig
    tensors: Mapping[str, TensorInfo]
    templates: TemplateSource
    generation: GenerationDefaults = GenerationDefaults()
    warnings: tuple[str, ...] = ()
    """Warnings for the user, one line each."""

    @property
    def dtype(self) -> torch.dtype | None:
        """Float type in which the matrices are stored; None if they are quantized."""
        stored = {info.type for info in self.tensors.values() if len(info.shape) == 2}
        return FLOAT_TYPES.get(stored.pop()) if len(stored) == 1 else None

    @property
    def n_bytes(self) -> int:
        """Bytes of all weights as stored."""
        return sum(info.n_bytes for info in self.tensors.values())

    @abstractmethod
    def read_vocabulary(self) -> Vocabulary:
        """Read the vocabulary, with tokens that the embedding may have no row for.

        Raises:
            ModelError: if it is missing, damaged or not supported.
        """

    @abstractmethod
    def read(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """Read the weight ``name`` as a CPU tensor of ``dtype``.

        If the file holds that type, the result is a read-only view of the mapped file, without a
        copy.
        """

    def read_packed(self, name: str) -> PackedWeight | None:
        """Read the matrix ``name`` packed, without quantizing it again.

        Returns:
            The matrix, with views of the mapped file where possible; None if it is not quantized,
            or has scales that are not finite.
        """
        return None

    def forget(self, name: str) -> None:  # noqa: B027 - most read without a copy
        """Release the pages of the weight ``name``, once its bytes have been copied."""

    def packed_bytes(self, name: str) -> int | None:
        """Compute the bytes that ``read_packed`` returns; None if the weight is not quantized."""
        return None


def check_tensors(what: str, config: LlamaConfig, found: Mapping[str, tuple[int, ...]]) -> None:
    """Check the shapes found in a file against those that ``config`` requires.

    Raises:
        ModelError: naming the first missing, unknown or misshapen tensor.
    """
    advice = "the file is damaged or of another architecture: fetch it again"
    # Checked first: a malicious n_layers of 10^9 must not build a table of 10^9 names.
    if config.n_layers > len(found):
        raise ModelError(
            what, f"it says {config.n_layers} layers but holds {len(found)} tensors", advice
        )
    expected = config.tensor_shapes()
    for name, shape in expected.items():
        if name not in found:
            raise ModelError(what, f"tensor {name} is missing", advice)
        if found[name] != shape:
            raise ModelError(what, f"tensor {name} has shape {found[name]}, not {shape}", advice)
    for name in found:
        if name not in expected:
            raise ModelError(what, f"tensor {name!r} belongs to no part of a Llama model", advice)
