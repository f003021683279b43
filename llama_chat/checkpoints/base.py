"""What every checkpoint reader returns."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from llama_chat.checkpoints.float_types import FLOATS
from llama_chat.errors import ModelError
from llama_chat.model.config import LlamaConfig
from llama_chat.quantization.packed import PackedWeight

FLOAT_TYPES: Mapping[str, torch.dtype] = {
    stored: getattr(torch, name) for stored, name in FLOATS.items()
}
"""Float types of stored weights, by their names in GGUF and safetensors."""

FLOAT_NAMES = {dtype: stored for stored, dtype in FLOAT_TYPES.items()}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One stored weight, known before a byte of it is read."""

    shape: tuple[int, ...]
    type: str
    """How it is stored: ``F32``, ``F16``, ``BF16``, ``Q8_0``, ``Q4_1``, …"""
    n_bytes: int

    @property
    def n_weights(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class SentencePieceSource:
    """The vocabulary is a SentencePiece model file."""

    path: Path


@dataclass(frozen=True, slots=True)
class SentencePieceTables:
    """The vocabulary is of the kind of SentencePiece's BPE, given by its tables.

    ``types`` are SentencePiece's own: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused,
    6 byte.
    """

    tokens: list[str]
    scores: list[float]
    types: Sequence[int]
    bos_id: int | None
    eos_id: int | None
    add_bos: bool
    add_dummy_prefix: bool


@dataclass(frozen=True, slots=True)
class TokenizerJsonSource:
    """The vocabulary is a ``tokenizer.json`` of the ``tokenizers`` library.

    The names of BOS and EOS, and whether a prompt begins with BOS, stand beside it in
    ``tokenizer_config.json``.
    """

    path: Path
    bos_token: str | None
    eos_token: str | None
    add_bos: bool | None
    """None where it is not said: the file's own post-processor tells."""


@dataclass(frozen=True, slots=True)
class BytePairSource:
    """The vocabulary is a byte-level BPE given by its tables.

    ``tokens[i]`` is the text of id ``i`` in the byte-level alphabet; a control token or one that
    was added holds its own text. ``merges`` are ``"left right"`` pairs in order of priority.
    ``control_ids`` are the ids that text may never produce. ``added_ids`` are those that were added
    beside the algorithm. ``pre_tokenizer`` names how text is split before merging.
    """

    tokens: list[str]
    merges: list[str]
    control_ids: frozenset[int]
    added_ids: frozenset[int]
    pre_tokenizer: str
    bos_id: int | None
    eos_id: int | None
    add_bos: bool | None
    """None where it is not said: the pre-tokenizer tells."""


TokenizerSource = SentencePieceSource | SentencePieceTables | TokenizerJsonSource | BytePairSource


class Checkpoint(ABC):
    """An opened checkpoint: its description, and its weights one at a time.

    Opening reads headers only. ``tensors`` holds exactly the names and shapes of
    ``config.tensor_shapes()``; a reader whose file differs raises while opening it.
    """

    path: Path
    format: str
    """The name of the layout: ``Meta``, ``Hugging Face``, ``GGUF`` or ``llama2.c``."""
    name: str
    """What to call the model on screen."""
    config: LlamaConfig
    tensors: Mapping[str, TensorInfo]
    tokenizer_source: TokenizerSource
    chat_template: str | None = None
    """Template text found in the file: to be recognised, never to be executed."""
    warnings: tuple[str, ...] = ()
    """Oddities that a person should hear of, one line each."""

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
    def read(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """Read the weight ``name`` as a CPU tensor of ``dtype``.

        Where the file already holds that type the result is a read-only view of the mapped file,
        and no byte is copied.
        """

    def read_packed(self, name: str) -> PackedWeight | None:
        """Read the matrix ``name`` packed, as near to how it is stored as a layout comes.

        Returns:
            None if it is not quantized, or not with numbers that a layout can hold. Views of the
            mapped file where that holds them.
        """
        return None

    def forget(self, name: str) -> None:  # noqa: B027 - most read without a copy
        """Give back the memory that reading the weight ``name`` took; its bytes were copied."""

    def packed_bytes(self, name: str) -> int | None:
        """Bytes that ``read_packed`` gives; None if it gives None."""
        return None


def check_tensors(what: str, config: LlamaConfig, found: Mapping[str, tuple[int, ...]]) -> None:
    """Compare the shapes found in a file with those that ``config`` asks for.

    Raises:
        ModelError: naming the first missing, unknown or misshapen tensor.
    """
    advice = "the file is damaged or of another architecture: fetch it again"
    # A hostile n_layers of 10^9 must not build a table of 10^9 names.
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
