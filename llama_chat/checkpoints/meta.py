"""Meta's release layout: ``params.json``, ``consolidated.NN.pth`` and ``tokenizer.model``."""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from llama_chat.checkpoints.base import Checkpoint, TensorInfo, check_tensors
from llama_chat.checkpoints.small_files import FETCH_AGAIN, JsonObject, read_object
from llama_chat.checkpoints.template_source import TemplateSource
from llama_chat.checkpoints.torch_archive import open_archive
from llama_chat.checkpoints.weight_files import describe
from llama_chat.errors import ModelError
from llama_chat.model.config import LlamaConfig
from llama_chat.tokenizers.sentencepiece import read_model
from llama_chat.tokenizers.vocabulary import Vocabulary

_CONTEXT_LENGTH = 4096
"""Context length of Llama 2, which ``params.json`` does not contain."""

_CODE_LLAMA_THETA, _CODE_LLAMA_LENGTH = 1e6, 16_384
"""Rotary base and context length of Code Llama; the base identifies it."""

_SPLIT_ROWS = re.compile(r"attention\.w[qkv]|feed_forward\.w[13]|^output")
"""Weights whose shards are stacked along dim 0."""

_SPLIT_COLUMNS = re.compile(r"attention\.wo|feed_forward\.w2|^tok_embeddings")
"""Weights whose shards are stacked along dim 1. All others are the same in every shard."""

_COMPUTED = re.compile(r"^rope\.freqs$")
"""Tensors to ignore: they are computed here, in float32."""


@dataclass(frozen=True, slots=True)
class _Stored:
    """One weight: its shards in order, and the dimension that they are stacked along."""

    shards: tuple[Tensor, ...]
    dim: int | None

    @property
    def shape(self) -> tuple[int, ...]:
        shape = list(self.shards[0].shape)
        if self.dim is not None:
            shape[self.dim] = sum(shard.shape[self.dim] for shard in self.shards)
        return tuple(shape)


class MetaCheckpoint(Checkpoint):
    """Folder in Meta's release layout, with any number of shards."""

    format = "Meta"

    def __init__(
        self,
        path: Path,
        config: LlamaConfig,
        stored: dict[str, _Stored],
        tokenizer: Path,
        warnings: tuple[str, ...],
    ) -> None:
        """Use ``open`` instead."""
        self.path = path
        self.name = path.resolve().name
        self.config = config
        self._tokenizer = tokenizer
        self.templates = TemplateSource(names=(self.name,), is_meta=True)
        self.warnings = warnings
        self._stored = stored
        self.tensors = {
            name: TensorInfo(
                weight.shape,
                describe(weight.shards[0]).type,
                sum(shard.nbytes for shard in weight.shards),
            )
            for name, weight in stored.items()
        }

    @classmethod
    def open(cls, path: Path) -> "MetaCheckpoint":
        """Open the folder ``path``, mapping its shards without reading them.

        Raises:
            ModelError: if a file is missing or damaged, or the files do not match.
        """
        params = read_object(path / "params.json", "it belongs beside the weights: fetch it")
        files = _shard_files(path)
        shards = [open_archive(file, _COMPUTED) for file in files]
        stored = _merge(path, shards)
        config = _config(path, params, stored)
        check_tensors(_label(path), config, {name: w.shape for name, w in stored.items()})
        warnings: tuple[str, ...] = ()
        if config.norm_eps == 1e-6 and "n_kv_heads" not in params.values:
            warnings = (
                f"{_label(path)}: params.json says norm_eps 1e-06; most of Llama 2 is 1e-05",
            )
        return cls(path, config, stored, _find_tokenizer(path), warnings)

    def read_vocabulary(self) -> Vocabulary:
        """See the base class."""
        return read_model(self._tokenizer)

    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        """See the base class."""
        weight = self._stored[name]
        if weight.dim is None:
            return weight.shards[0].to(dtype)
        merged = torch.empty(weight.shape, dtype=dtype)
        start = 0
        for shard in weight.shards:
            length = shard.shape[weight.dim]
            merged.narrow(weight.dim, start, length).copy_(shard)
            start += length
        return merged


open_checkpoint = MetaCheckpoint.open


def _label(path: Path) -> str:
    return f"model {str(path)!r}"


def _shard_files(folder: Path) -> list[Path]:
    """List the shards in order; their numbers must have no gap."""
    files = sorted(folder.glob("consolidated.*.pth"))
    if not files:
        raise ModelError(_label(folder), "no consolidated.*.pth in it", "fetch the weights")
    for number, file in enumerate(files):
        if file.name != f"consolidated.{number:02}.pth":
            raise ModelError(
                _label(folder), f"consolidated.{number:02}.pth is missing", "fetch all shards"
            )
    return files


def _merge(path: Path, shards: list[dict[str, Tensor]]) -> dict[str, _Stored]:
    """Collect the shards of each weight, without copying any."""
    first = shards[0]
    for number, shard in enumerate(shards):
        if shard.keys() == first.keys():
            odd = [name for name in first if not _same_layout(shard[name], first[name])]
        else:
            odd = sorted(shard.keys() ^ first.keys())
        if odd:
            raise ModelError(
                _label(path),
                f"shards 0 and {number} differ in tensor {odd[0][:60]!r}",
                "take all shards from one release",
            )
    stored = {}
    for name, weight in first.items():
        dim = _split_dim(name) if len(shards) > 1 and weight.dim() == 2 else None
        parts = (weight,) if dim is None else tuple(shard[name] for shard in shards)
        stored[name] = _Stored(parts, dim)
    return stored


def _same_layout(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype


def _split_dim(name: str) -> int | None:
    """Return the dimension along which Meta divides a weight among shards."""
    if _SPLIT_ROWS.search(name):
        return 0
    return 1 if _SPLIT_COLUMNS.search(name) else None


def _config(path: Path, params: JsonObject, stored: dict[str, _Stored]) -> LlamaConfig:
    """Read the config from ``params.json``, with the vocabulary size of the embedding."""
    embedding = stored.get("tok_embeddings.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ModelError(_label(path), "tensor tok_embeddings.weight is missing", FETCH_AGAIN)
    dim, n_heads = params.size("dim"), params.size("n_heads")
    theta = params.number("rope_theta", 10_000.0)
    width, n_shards = embedding.shape[1], len(embedding.shards)
    if width and dim > width and dim % width == 0:
        total = n_shards * dim // width
        raise ModelError(
            _label(path), f"{n_shards} of {total} shards are there", "fetch the missing ones"
        )
    if params.values.get("vocab_size") != -1:  # Llama 2 leaves it open
        params.size("vocab_size", 1)
    if dim % n_heads:
        raise params.error(f"dim {dim} is no multiple of n_heads {n_heads}")
    try:
        return LlamaConfig(
            dim=dim,
            n_layers=params.size("n_layers"),
            n_heads=n_heads,
            n_kv_heads=params.size("n_kv_heads", n_heads),
            head_dim=dim // n_heads,
            hidden_dim=_hidden_dim(
                dim, params.size("multiple_of", 256), params.number("ffn_dim_multiplier", 1.0)
            ),
            vocab_size=embedding.shape[0],
            norm_eps=params.number("norm_eps", 1e-5),
            rope_theta=theta,
            context_length=_CODE_LLAMA_LENGTH if theta >= _CODE_LLAMA_THETA else _CONTEXT_LENGTH,
        )
    except ValueError as error:
        raise params.error(str(error)) from None


def _hidden_dim(dim: int, multiple_of: int, multiplier: float) -> int:
    """Compute the width of the feed-forward layer as Meta's code does from ``params.json``."""
    hidden = int(multiplier * int(2 * 4 * dim / 3))
    return -(-hidden // multiple_of) * multiple_of


def _find_tokenizer(path: Path) -> Path:
    """Find ``tokenizer.model`` in the folder, or beside it as with Meta's download script."""
    for folder in (path, path.resolve().parent):
        if (folder / "tokenizer.model").exists():
            return folder / "tokenizer.model"
    raise ModelError(
        _label(path), "no tokenizer.model in it or beside it", "fetch it from the same release"
    )
