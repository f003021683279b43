"""Models of llama2.c: a ``.bin`` of seven integers, then float32 weights in Meta's order.

The format: ``legacy_export`` in https://github.com/karpathy/llama2.c/blob/master/export.py.
"""

import math
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from llama_chat.checkpoints.base import Checkpoint, label
from llama_chat.checkpoints.template_source import TemplateSource
from llama_chat.checkpoints.weight_files import (
    describe,
    mapped_bytes,
    mapped_tensor,
    part_of,
    release_pages,
)
from llama_chat.errors import ModelError
from llama_chat.gates import FETCH_AGAIN, gate
from llama_chat.library.layouts import LLAMA2C_HEADER, LLAMA2C_MAGIC
from llama_chat.model.config import LlamaConfig
from llama_chat.parallel.slices import Slice
from llama_chat.tokenizers.base import read_file
from llama_chat.tokenizers.ranked import read_model_file
from llama_chat.tokenizers.vocabulary import SPACE, PieceModel, TokenType, Vocabulary

_SPECIAL = ["<unk>", "<s>", "</s>"]
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


class Llama2cCheckpoint(Checkpoint):
    """``.bin`` file of llama2.c, mapped into memory."""

    format = "llama2.c"

    def __init__(self, path: Path, config: LlamaConfig, weights: dict[str, Tensor]) -> None:
        """Use ``open`` instead."""
        self.path = path
        self.name = path.stem
        self.config = config
        self._weights = weights
        self.tensors = {name: describe(weight) for name, weight in weights.items()}
        self._tokenizer = _find_tokenizer(path)
        self.templates = TemplateSource(names=(self.name,), is_meta=True)

    @classmethod
    def open(cls, path: Path) -> "Llama2cCheckpoint":
        """Open the file ``path``, reading its header only.

        Raises:
            ModelError: if it is damaged or of another version, or has no tokenizer beside it.
        """
        with gate(label(path)):
            return cls(path, *_open(path))

    def read_vocabulary(self) -> Vocabulary:
        """See the base class."""
        read = read_model_file if self._tokenizer.suffix == ".model" else _read_tables
        return read(self._tokenizer)

    def read(self, name: str, dtype: torch.dtype, part: Slice | None = None) -> Tensor:
        """See the base class."""
        return part_of(self._weights[name], part).to(dtype)

    def stored(self, name: str) -> tuple[Tensor, ...]:
        """See the base class."""
        return (self._weights[name],)

    def forget(self, name: str) -> None:
        """See the base class."""
        release_pages(self._weights[name])


open_checkpoint = Llama2cCheckpoint.open


def _open(path: Path) -> tuple[LlamaConfig, dict[str, Tensor]]:
    """Map the weights of a file whose size is as its header says."""
    data = mapped_bytes(path)
    if data[:4].tobytes() == LLAMA2C_MAGIC:
        version = int.from_bytes(data[4:8].tobytes(), "little")
        raise ModelError(
            label(path), f"version {version} of llama2.c's format", "export it as version 0"
        )
    config = _config(path, LLAMA2C_HEADER.unpack_from(data.data))
    sizes = list(_sections(config))
    n_bytes = LLAMA2C_HEADER.size + 4 * sum(math.prod(shape) for _, shape in sizes)
    if len(data) != n_bytes:
        why = f"{len(data)} bytes, but its header requires {n_bytes}"
        raise ModelError(label(path), why, FETCH_AGAIN)
    weights: dict[str, Tensor] = {}
    at = LLAMA2C_HEADER.size
    for name, shape in sizes:
        end = at + 4 * math.prod(shape)
        tensor = mapped_tensor(data[at:end], torch.float32, shape)
        at = end
        if name.startswith("layers."):
            weights |= {name.format(i): layer for i, layer in enumerate(tensor)}
        elif name:
            weights[name] = tensor
    return config, weights


def _config(path: Path, header: tuple[int, ...]) -> LlamaConfig:
    """Read the config; a negative vocabulary size means that the output matrix is not tied."""
    dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, length = header
    try:
        if n_heads < 1 or dim % n_heads:
            raise ValueError(f"dim {dim} is no multiple of n_heads {n_heads}")
        return LlamaConfig(
            dim=dim,
            n_layers=n_layers,
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=dim // n_heads,
            hidden_dim=hidden_dim,
            vocab_size=abs(vocab_size),
            context_length=length,
            tie_embeddings=vocab_size > 0,
        )
    except ValueError as error:
        raise ModelError(label(path), str(error), FETCH_AGAIN) from None


def _sections(config: LlamaConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield name and shape of each section after the header: a weight, of all layers together.

    The section without a name holds rotary tables, which are not used.
    """
    one = replace(config, n_layers=1).tensor_shapes()  # n_layers is not checked yet
    yield "tok_embeddings.weight", one["tok_embeddings.weight"]
    for part in (
        "attention_norm",
        "attention.wq",
        "attention.wk",
        "attention.wv",
        "attention.wo",
        "ffn_norm",
        "feed_forward.w1",
        "feed_forward.w2",
        "feed_forward.w3",
    ):
        yield (
            f"layers.{{}}.{part}.weight",
            (config.n_layers, *one[f"layers.0.{part}.weight"]),
        )
    yield "norm.weight", one["norm.weight"]
    yield "", (2, config.context_length, config.head_dim // 2)
    if not config.tie_embeddings:
        yield "output.weight", one["output.weight"]


def _find_tokenizer(path: Path) -> Path:
    """Find ``tokenizer.model`` beside the model, or ``tokenizer.bin`` of llama2.c."""
    model, tables = path.with_name("tokenizer.model"), path.with_name("tokenizer.bin")
    if model.exists():
        return model
    if tables.exists():
        return tables
    raise ModelError(
        label(path),
        "no tokenizer.model or tokenizer.bin beside it",
        "download it from the same place",
    )


def _read_tables(path: Path) -> Vocabulary:
    """Read a ``tokenizer.bin``: for each token a score, a length and that many bytes.

    Raises:
        ModelError: if it is damaged, or its vocabulary is not like that of Llama 2.
    """
    what = f"tokenizer {str(path)!r}"
    data = read_file(path, what)
    tokens, scores = [], []
    at = 4  # past the length of the longest token
    with gate(what):
        while at < len(data):
            score, length = struct.unpack_from("<fi", data, at)
            at += 8 + length
            if length < 1 or at > len(data) or not math.isfinite(score):
                raise ValueError("no token is like that")
            tokens.append(data[at - length : at].decode().replace(" ", SPACE))
            scores.append(score)
    n_special = len(_SPECIAL)
    if tokens[n_special : n_special + 256] != _BYTES:
        raise ModelError(
            what, "its tokens 3 to 258 are not the 256 bytes", "take that of the model"
        )
    # In the file, BOS and EOS are surrounded by line breaks, for printing.
    tokens[:n_special] = _SPECIAL
    return Vocabulary(
        what=what,
        pieces=tokens,
        types=[TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL]
        + [TokenType.BYTE] * 256
        + [TokenType.NORMAL] * (len(tokens) - n_special - 256),
        model=PieceModel(scores),
        bos_id=1,
        eos_id=2,
        add_bos=True,
        prefix="every",
    ).checked()
