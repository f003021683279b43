"""GGUF files of the llama family."""

import math
import re
import reprlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llama_chat.checkpoints.base import Checkpoint, TensorInfo, check_tensors
from llama_chat.checkpoints.gguf_blocks import KNOWN_NAMES, SUPPORTED, BlockType, dequantize
from llama_chat.checkpoints.gguf_header import MAGIC, GGUFHeader, GGUFTensor, read_header
from llama_chat.checkpoints.gguf_metadata import DAMAGED, Metadata
from llama_chat.checkpoints.gguf_vocabulary import read_vocabulary
from llama_chat.errors import ModelError
from llama_chat.model.config import LlamaConfig

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


class GGUFCheckpoint(Checkpoint):
    """A GGUF file, mapped into memory.

    Files of the llama family hold Q and K in Meta's interleaved rotary order already.
    """

    format = "GGUF"

    def __init__(self, path: Path, data: NDArray[np.uint8], header: GGUFHeader) -> None:
        """Use ``open``."""
        metadata = Metadata(_called(path), header.metadata)
        self.path = path
        self.name = path.stem
        self._data = data
        self._stored = {
            _meta_name(path, name): (tensor, _block_type(path, name, tensor, len(data)))
            for name, tensor in header.tensors.items()
        }
        shapes = {name: tensor.shape for name, (tensor, _) in self._stored.items()}
        self.config = _config(metadata, shapes)
        check_tensors(_called(path), self.config, shapes)
        self.tensors = {
            name: TensorInfo(tensor.shape, kind.name, _n_bytes(tensor, kind))
            for name, (tensor, kind) in self._stored.items()
        }
        self.tokenizer_source = read_vocabulary(metadata, self.config.vocab_size)
        self.chat_template = metadata.text("tokenizer.chat_template") or None

    @classmethod
    def open(cls, path: Path) -> "GGUFCheckpoint":
        """Open the file ``path``, reading its header only.

        Raises:
            ModelError: if it is damaged, or of a kind that is not supported.
        """
        try:
            # Copy on write, because torch warns of memory it may not write; nothing ever does.
            data = np.memmap(path, dtype=np.uint8, mode="c")
        except (OSError, ValueError) as error:
            reason = (getattr(error, "strerror", None) or "it is empty").lower()
            raise ModelError(_called(path), reason, "fetch it again") from None
        return cls(path, data, read_header(data.data, path))

    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        """See the base class."""
        tensor, kind = self._stored[name]
        stored = self._data[tensor.offset : tensor.offset + _n_bytes(tensor, kind)]
        if kind.dtype is None:
            return dequantize(stored, kind, dtype).view(tensor.shape)
        return torch.from_numpy(stored).view(kind.dtype).view(tensor.shape).to(dtype)


def is_gguf(path: Path) -> bool:
    """Whether the file ``path`` means to be GGUF, by its first bytes or its name."""
    try:
        if not path.is_file():  # opening a named pipe would wait for its writer for ever
            return False
        with path.open("rb") as file:
            return file.read(4) == MAGIC or path.suffix == ".gguf"
    except OSError:
        return path.suffix == ".gguf"


def _called(path: Path) -> str:
    return f"model {str(path)!r}"


def _meta_name(path: Path, name: str) -> str:
    """The name Meta gives to the tensor ``name``."""
    if name in _TOP:
        return _TOP[name]
    if name == "rope_freqs.weight":
        raise ModelError(
            _called(path), "its rotary frequencies are scaled", "that is not supported yet"
        )
    found = re.fullmatch(r"blk\.(0|[1-9]\d{0,5})\.(\w+)\.weight", name)
    if found is None or found[2] not in _PARTS:
        raise ModelError(
            _called(path), f"tensor {name[:60]!r} belongs to no part of a Llama model", DAMAGED
        )
    return f"layers.{found[1]}.{_PARTS[found[2]]}.weight"


def _block_type(path: Path, name: str, tensor: GGUFTensor, file_size: int) -> BlockType:
    """The format of a tensor, all of which lies in the file."""
    shown = f"tensor {name[:60]!r}"
    kind = SUPPORTED.get(tensor.type)
    if kind is None:
        called = KNOWN_NAMES.get(tensor.type, f"number {tensor.type}")
        known = ", ".join(kind.name for kind in SUPPORTED.values())
        raise ModelError(
            _called(path),
            f"{shown} is of type {called}, which is not supported yet",
            f"take a file of {known}",
        )
    if tensor.shape[-1] % kind.n_weights:
        raise ModelError(_called(path), f"{shown} has rows of broken blocks", DAMAGED)
    if tensor.offset + _n_bytes(tensor, kind) > file_size:
        raise ModelError(_called(path), f"it ends before {shown} does", "fetch it again")
    return kind


def _n_bytes(tensor: GGUFTensor, kind: BlockType) -> int:
    return math.prod(tensor.shape) // kind.n_weights * kind.n_bytes


def _config(metadata: Metadata, shapes: dict[str, tuple[int, ...]]) -> LlamaConfig:
    """The shape of the model, checked for what is not supported."""
    architecture = metadata.text("general.architecture")
    if architecture != "llama":
        raise metadata.error(
            f"its architecture is {reprlib.repr(architecture)}", "take a model of the llama family"
        )
    if metadata.integer("llama.expert_count", 0):
        raise metadata.error("it is a mixture of experts", "take a dense model")
    _refuse_rotary_scaling(metadata)
    embedding = shapes.get("tok_embeddings.weight")
    if embedding is None or len(embedding) != 2:
        raise metadata.error("tensor token_embd.weight is missing")
    dim, n_heads = (
        metadata.integer("llama.embedding_length"),
        metadata.integer("llama.attention.head_count"),
    )
    try:
        head_dim = metadata.integer("llama.attention.key_length", dim // n_heads)
        if metadata.integer("llama.rope.dimension_count", head_dim) != head_dim:
            raise ValueError("only a part of each head is rotated")
        return LlamaConfig(
            dim=dim,
            n_layers=metadata.integer("llama.block_count"),
            n_heads=n_heads,
            n_kv_heads=metadata.integer("llama.attention.head_count_kv", n_heads),
            head_dim=head_dim,
            hidden_dim=metadata.integer("llama.feed_forward_length"),
            vocab_size=embedding[0],
            norm_eps=metadata.number("llama.attention.layer_norm_rms_epsilon", 1e-5),
            rope_theta=metadata.number("llama.rope.freq_base", 10_000.0),
            context_length=metadata.integer("llama.context_length"),
            tie_embeddings="output.weight" not in shapes,
        )
    except (ValueError, ZeroDivisionError) as error:
        why = "head_count is 0" if isinstance(error, ZeroDivisionError) else str(error)
        raise metadata.error(why) from None


def _refuse_rotary_scaling(metadata: Metadata) -> None:
    """Refuse positions that are scaled: read as if they were not, they give nonsense.

    A factor without a type means linear scaling, and ``scale_linear`` is its older name.
    """
    kind = metadata.text("llama.rope.scaling.type") or "linear"
    older = metadata.number("llama.rope.scale_linear", 1.0)
    factor = metadata.number("llama.rope.scaling.factor", older)
    if kind == "none" or (kind == "linear" and factor in (0.0, 1.0)):
        return
    raise metadata.error(
        f"its rotary scaling is {reprlib.repr(kind)} by {factor:g}", "that is not supported yet"
    )
