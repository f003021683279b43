"""GGUF files of the llama family."""

import re
import reprlib
from pathlib import Path

import torch
from torch import Tensor

from llama_chat.checkpoints.base import (
    Checkpoint,
    TensorInfo,
    check_tensors,
    llama_weights,
    n_rows,
)
from llama_chat.checkpoints.foreign import ADAPTER, EXPERTS, OF_LLAMA, Foreign
from llama_chat.checkpoints.gguf_blocks import BlockType, dequantize, place_blocks
from llama_chat.checkpoints.gguf_files import GGUFModel, StoredTensor, open_files
from llama_chat.checkpoints.gguf_generation import find_defaults
from llama_chat.checkpoints.gguf_metadata import Metadata
from llama_chat.checkpoints.gguf_template import find_templates
from llama_chat.checkpoints.gguf_vocabulary import read_vocabulary, vocabulary_warnings
from llama_chat.checkpoints.weight_files import release_pages
from llama_chat.model.config import MAX_SIZE, LlamaConfig
from llama_chat.model.rope import FrequencyDivisors, LinearScaling, RopeScaling
from llama_chat.parallel.slices import Slice
from llama_chat.quantization.linear import Packed
from llama_chat.tokenizers.vocabulary import Vocabulary

_PARTS = {
    "attn_norm": "attention_norm",
    "attn_q": "attention.wq",
    "attn_k": "attention.wk",
    "attn_v": "attention.wv",
    "attn_output": "attention.wo",
    "ffn_norm": "ffn_norm",
    "ffn_gate": "feed_forward.w1",
    "ffn_down": "feed_forward.w2",
    "ffn_up": "feed_forward.w3",
}

_TOP = {
    "token_embd.weight": "tok_embeddings.weight",
    "output_norm.weight": "norm.weight",
    "output.weight": "output.weight",
}

_ROPE_DIVISORS = "rope_freqs.weight"
"""Tensor with a divisor for each rotary frequency, which is no weight."""


class GGUFCheckpoint(Checkpoint):
    """GGUF model, its files mapped into memory.

    Q and K are in Meta's interleaved rotary order already.
    """

    format = "GGUF"

    def __init__(self, model: GGUFModel) -> None:
        """Use ``open`` instead."""
        metadata = model.metadata
        _check_architecture(metadata)
        self.path = model.path
        # Ollama names files by the hash of their contents.
        stored_name = metadata.text("general.name") if model.name.startswith("sha256-") else ""
        self.name = stored_name or model.name
        stored = dict(model.tensors)
        divisors = stored.pop(_ROPE_DIVISORS, None)
        self._stored = llama_weights(
            metadata.what, stored, _meta_name, lambda tensor: _read(tensor, torch.float32)
        )
        shapes = {name: tensor.shape for name, tensor in self._stored.items()}
        self.config = _config(metadata, shapes, divisors)
        check_tensors(metadata.what, self.config, shapes)
        self.tensors = {
            name: TensorInfo(tensor.shape, tensor.kind.name, tensor.n_bytes)
            for name, tensor in self._stored.items()
        }
        self._metadata = metadata
        self._surplus = model.surplus
        self.templates = find_templates(metadata, model.name)
        self.generation = find_defaults(metadata, self.config.vocab_size)
        found = (*vocabulary_warnings(metadata), self.generation.warning)
        self.warnings = tuple(filter(None, found))

    @classmethod
    def open(cls, path: Path) -> "GGUFCheckpoint":
        """Open the file ``path``, and all other parts if it is one of several; reads headers only.

        Raises:
            ModelError: if it is damaged or not supported.
        """
        return cls(open_files(path))

    def read_vocabulary(self) -> Vocabulary:
        """See the base class."""
        return read_vocabulary(self._metadata)

    def read(self, name: str, dtype: torch.dtype, part: Slice | None = None) -> Tensor:
        """See the base class."""
        return _read(self._stored[name], dtype, part)

    def read_packed(
        self, name: str, device: torch.device, part: Slice | None = None
    ) -> Packed | None:
        """See the base class."""
        tensor = self._stored[name]
        if not isinstance(tensor.kind, BlockType) or len(tensor.shape) != 2:
            return None
        n_rows = tensor.shape[0] if part is None else part.shape(tensor.shape)[0]
        return place_blocks(tensor.data(part), tensor.kind, n_rows, device)

    def stored(self, name: str) -> tuple[Tensor, ...]:
        """See the base class."""
        return self._stored[name].floats()

    @property
    def surplus(self) -> int:
        """See the base class."""
        return self._surplus

    def forget(self, name: str) -> None:
        """See the base class."""
        release_pages(torch.from_numpy(self._stored[name].data()))

    def packed_bytes(self, name: str) -> int | None:
        """See the base class."""
        tensor = self._stored[name]
        if not isinstance(tensor.kind, BlockType) or len(tensor.shape) != 2:
            return None
        return tensor.n_bytes // tensor.kind.n_bytes * tensor.kind.packed_bytes

    def column_grain(self, name: str) -> int:
        """See the base class."""
        return self._stored[name].kind.n_weights


open_checkpoint = GGUFCheckpoint.open


def _read(tensor: StoredTensor, dtype: torch.dtype, part: Slice | None = None) -> Tensor:
    """Read a tensor as floats: a view of the mapped file if it holds that type, else a copy."""
    data, kind = tensor.data(part), tensor.kind
    shape = tensor.shape if part is None else part.shape(tensor.shape)
    if isinstance(kind, BlockType):
        return dequantize(data, kind, dtype).view(shape)
    return torch.from_numpy(data).view(kind.dtype).to(dtype).view(shape)


def _meta_name(name: str) -> str | None:
    """Translate the name of a tensor to Meta's; None if no Llama model has it."""
    if name in _TOP:
        return _TOP[name]
    found = re.fullmatch(r"blk\.(0|[1-9]\d{0,5})\.(\w+)\.weight", name)
    if found is None or found[2] not in _PARTS:
        return None
    return f"layers.{found[1]}.{_PARTS[found[2]]}.weight"


def _part(kind: str) -> Foreign:
    """Describe a file that belongs to a model, such as an ``imatrix``."""
    return Foreign(f"it is no model, but its {reprlib.repr(kind)}", "take the file of the model")


def _check_architecture(metadata: Metadata) -> None:
    """Refuse other kinds of files and architectures, before the names of tensors are checked."""
    kind = metadata.text("general.type") or "model"
    if kind != "model":
        raise metadata.error(*(ADAPTER if kind == "adapter" else _part(kind)))
    architecture = metadata.text("general.architecture")
    if not architecture:
        raise metadata.error("general.architecture is missing")
    if architecture != "llama":
        raise metadata.error(f"its architecture is {reprlib.repr(architecture)}", OF_LLAMA)
    if metadata.integer("llama.expert_count", 0):
        raise metadata.error(*EXPERTS)


def _config(
    metadata: Metadata, shapes: dict[str, tuple[int, ...]], divisors: StoredTensor | None
) -> LlamaConfig:
    """Read the config of the model, refusing unsupported features."""
    if not shapes:
        raise metadata.error("it holds no weights", "take the file of the whole model")
    dim, n_heads = (
        metadata.integer("llama.embedding_length"),
        metadata.integer("llama.attention.head_count"),
    )
    try:
        head_dim = metadata.integer("llama.attention.key_length", dim // n_heads)
        if metadata.integer("llama.rope.dimension_count", head_dim) != head_dim:
            raise ValueError("only a part of each head is rotated")
        value_length = metadata.integer("llama.attention.value_length", head_dim)
        if value_length != head_dim:
            raise ValueError(f"its values have {value_length} numbers, and its keys {head_dim}")
        return LlamaConfig(
            dim=dim,
            n_layers=metadata.integer("llama.block_count"),
            n_heads=n_heads,
            n_kv_heads=metadata.integer("llama.attention.head_count_kv", n_heads),
            head_dim=head_dim,
            hidden_dim=metadata.integer("llama.feed_forward_length"),
            vocab_size=n_rows(shapes, metadata.integer("llama.vocab_size", 0)),
            norm_eps=metadata.number("llama.attention.layer_norm_rms_epsilon", 1e-5),
            rope_theta=metadata.number("llama.rope.freq_base", 10_000.0),
            context_length=metadata.integer("llama.context_length"),
            tie_embeddings="output.weight" not in shapes,
            rope_scaling=_rope_scaling(metadata, divisors, head_dim),
        )
    except (ValueError, ZeroDivisionError) as error:
        why = "head_count is 0" if isinstance(error, ZeroDivisionError) else str(error)
        raise metadata.error(why) from None


def _rope_scaling(
    metadata: Metadata, divisors: StoredTensor | None, head_dim: int
) -> RopeScaling | None:
    """Read the rotary scaling: one factor, precomputed divisors, or both.

    A factor without a type means linear scaling; ``scale_linear`` is its older name, and 0 means
    that it is not set.

    Raises:
        ValueError: if a number is out of range.
    """
    kind = metadata.text("llama.rope.scaling.type") or "linear"
    if kind not in ("linear", "none"):
        raise metadata.error(
            f"its rotary scaling is {reprlib.repr(kind)}",
            "take a model with linear scaling or none",
        )
    if not 1 <= metadata.integer("llama.rope.scaling.original_context_length", 1) <= MAX_SIZE:
        raise ValueError("original_context_length is out of range")
    older = metadata.number("llama.rope.scale_linear", 1.0)
    factor = metadata.number("llama.rope.scaling.factor", older) or 1.0
    if kind == "none":
        factor = 1.0
    if divisors is not None:
        if divisors.shape != (head_dim // 2,):
            raise ValueError(f"{_ROPE_DIVISORS} does not fit heads of {head_dim}")
        return FrequencyDivisors(
            tuple(factor * divisor for divisor in _read(divisors, torch.float32).tolist())
        )
    return None if factor == 1.0 else LinearScaling(factor)
