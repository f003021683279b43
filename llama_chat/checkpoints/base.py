"""Common interface of the checkpoint readers."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import torch

from llama_chat.checkpoints.float_types import FLOATS
from llama_chat.checkpoints.foreign import OF_LLAMA, foreign_tensors
from llama_chat.checkpoints.generation_defaults import GenerationDefaults
from llama_chat.checkpoints.template_source import TemplateSource
from llama_chat.errors import ModelError, counted
from llama_chat.model.config import MAX_SIZE, LlamaConfig
from llama_chat.parallel.slices import Slice
from llama_chat.quantization.linear import Packed
from llama_chat.tokenizers.vocabulary import Vocabulary

FLOAT_TYPES: Mapping[str, torch.dtype] = {
    stored: getattr(torch, name) for stored, name in FLOATS.items()
}
"""Float types of stored weights, by their names in GGUF and safetensors."""

FLOAT_NAMES = {dtype: stored for stored, dtype in FLOAT_TYPES.items()}


def label(path: Path) -> str:
    """Return what a model is called in errors."""
    return f"model {str(path)!r}"


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
    def read(self, name: str, dtype: torch.dtype, part: Slice | None = None) -> torch.Tensor:
        """Read the weight ``name``, or a part of it, as a CPU tensor of ``dtype``.

        If the file holds that type, the result is a read-only view of the mapped file, without a
        copy; but for columns of a matrix.
        """

    @abstractmethod
    def stored(self, name: str) -> Sequence[torch.Tensor]:
        """View the floats of a weight in the mapped files; of quantized blocks, the scales."""

    @property
    def surplus(self) -> int:
        """Bytes at the end of the files that belong to no tensor; most formats have none."""
        return 0

    @abstractmethod
    def forget(self, name: str) -> None:
        """Release the memory of the file's bytes of the weight ``name``, once they were read.

        Views of them stay valid: their numbers are read from the file again if needed.
        """

    def read_packed(
        self, name: str, device: torch.device, part: Slice | None = None
    ) -> Packed | None:
        """Read the matrix ``name``, or a part of it, packed, without quantizing it again.

        Returns:
            A copy in the layout that is fastest on ``device``; None if the weight is not quantized,
            or has scales that are not finite.
        """
        return None

    def packed_bytes(self, name: str) -> int | None:
        """Compute the bytes that ``read_packed`` returns; None if the weight is not quantized."""
        return None

    def column_grain(self, name: str) -> int:
        """Return the number of neighbouring columns that can only be read together."""
        return 1


class _Shaped(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...


_Stored = TypeVar("_Stored", bound=_Shaped)

_MAX_BIASES = 2**25
"""Limit on the numbers in biases that are read to see if all are zero; Llama 3 with 405 billion
weights and a bias for each matrix would have 20 million."""


def llama_weights(
    what: str,
    stored: Mapping[str, _Stored],
    meta_name: Callable[[str], str | None],
    read: Callable[[_Stored], torch.Tensor],
) -> dict[str, _Stored]:
    """Return the weights of the model ``what`` by Meta's names, without biases that are zero.

    Args:
        what: the model in errors.
        stored: tensors by the names that they have in the file.
        meta_name: Meta's name of a weight; None for a tensor that no Llama model has.
        read: numbers of a tensor.

    Raises:
        ModelError: if there are other tensors.
    """
    names = {name: meta_name(name) for name in stored}
    others = [name for name, ours in names.items() if ours is None]
    biases = [
        name
        for name in others
        if name.endswith(".bias") and meta_name(name.removesuffix("bias") + "weight")
    ]
    if sum(math.prod(stored[name].shape) for name in biases) <= _MAX_BIASES:
        zero = {name for name in biases if not read(stored[name]).any()}
        others = [name for name in others if name not in zero]
    if others:
        raise _unknown(what, others)
    return {ours: stored[name] for name, ours in names.items() if ours is not None}


def n_rows(shapes: Mapping[str, tuple[int, ...]], stated: int) -> int:
    """Return the number of rows of the embedding among weights, or ``stated`` if there is none.

    A config may state the number of another version, with other tokens.

    Raises:
        ValueError: if ``stated`` is no size.
    """
    if not 0 <= stated <= MAX_SIZE:
        raise ValueError(f"vocab_size is {stated}, not a whole number up to {MAX_SIZE}")
    return shapes.get("tok_embeddings.weight", (stated,))[0]


def within_window(length: int, window: int | None) -> tuple[int, str]:
    """Reduce a context length to the attention window of a model, beyond which it is not computed.

    Returns:
        The context length, and a warning, which may be empty.
    """
    if window is None or window >= length:
        return length, ""
    why = "the attention window of the model"
    return window, f"context reduced from {length} to {counted(window, 'token')}, {why}"


def _unknown(what: str, names: list[str]) -> ModelError:
    """Return the error for tensors that no Llama model has."""
    shown = f"tensor {names[0][:80]!r} belongs to no part of a Llama model"
    return foreign_tensors(what, names) or ModelError(what, shown, OF_LLAMA)


def check_tensors(what: str, config: LlamaConfig, found: Mapping[str, tuple[int, ...]]) -> None:
    """Check the shapes found in a file against those that ``config`` requires.

    Raises:
        ModelError: naming the first missing, unknown or misshapen tensor.
    """
    advice = "download all files of one release, or take another model of the llama family"
    # Checked first: a malicious n_layers of 10^9 must not build a table of 10^9 names.
    if config.n_layers > len(found):
        why = (
            f"it says {counted(config.n_layers, 'layer')} but holds {counted(len(found), 'tensor')}"
        )
        raise ModelError(what, why, advice)
    expected = config.tensor_shapes()
    if unknown := [name for name in found if name not in expected]:
        raise _unknown(what, unknown)
    for name, shape in expected.items():
        if name not in found:
            raise ModelError(what, f"tensor {name} is missing", advice)
        if found[name] != shape:
            raise ModelError(what, f"tensor {name} has shape {found[name]}, not {shape}", advice)
