"""Meta's release layout: ``params.json``, ``consolidated.NN.pth`` and ``tokenizer.model``."""

import json
import pickle
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llama_chat.checkpoints.base import (
    Checkpoint,
    SentencePieceSource,
    TensorInfo,
    check_tensors,
)
from llama_chat.errors import ModelError
from llama_chat.model.config import LlamaConfig

CONTEXT_LENGTH = 4096
"""Context of Llama 2; ``params.json`` does not say."""

_SPLIT_ROWS = re.compile(r"attention\.w[qkv]|feed_forward\.w[13]|^output")
"""Weights whose shards are stacked along dim 0."""

_SPLIT_COLUMNS = re.compile(r"attention\.wo|feed_forward\.w2|^tok_embeddings")
"""Weights whose shards are stacked along dim 1. All others are the same in every shard."""

_TYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}

_MAX_PARAMS_BYTES = 2**20

_FETCH_AGAIN = "fetch the file again"


@dataclass(frozen=True, slots=True)
class _Stored:
    """One weight: its shards in order, and the dimension they are stacked along."""

    shards: tuple[Tensor, ...]
    dim: int | None

    @property
    def shape(self) -> tuple[int, ...]:
        shape = list(self.shards[0].shape)
        if self.dim is not None:
            shape[self.dim] = sum(shard.shape[self.dim] for shard in self.shards)
        return tuple(shape)


class MetaCheckpoint(Checkpoint):
    """A folder as Meta releases it, with any number of shards."""

    format = "Meta"

    def __init__(
        self,
        path: Path,
        config: LlamaConfig,
        stored: dict[str, _Stored],
        tokenizer: Path,
        warnings: tuple[str, ...],
    ) -> None:
        """Use ``open``."""
        self.path = path
        self.name = path.resolve().name
        self.config = config
        self.tokenizer_source = SentencePieceSource(tokenizer)
        self.warnings = warnings
        self._stored = stored
        self.tensors = {
            name: TensorInfo(
                weight.shape,
                _TYPES[weight.shards[0].dtype],
                sum(shard.nbytes for shard in weight.shards),
            )
            for name, weight in stored.items()
        }

    @classmethod
    def open(cls, path: Path) -> "MetaCheckpoint":
        """Open the folder ``path``, mapping its shards without reading them.

        Raises:
            ModelError: if a file is missing or damaged, or the files do not fit together.
        """
        params = _read_params(path / "params.json")
        files = _shard_files(path)
        shards = [_open_shard(file) for file in files]
        stored = _merge(path, shards)
        config = _config(path, params, stored)
        check_tensors(_called(path), config, {name: w.shape for name, w in stored.items()})
        warnings: tuple[str, ...] = ()
        if config.norm_eps == 1e-6 and "n_kv_heads" not in params:
            warnings = (
                f"{_called(path)}: params.json says norm_eps 1e-06; most of Llama 2 is 1e-05",
            )
        return cls(path, config, stored, _find_tokenizer(path), warnings)

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


def is_meta(folder: Path) -> bool:
    """Whether ``folder`` looks like a release of Meta's."""
    return (folder / "params.json").exists() or any(folder.glob("consolidated.*.pth"))


def _called(path: Path) -> str:
    return f"model {str(path)!r}"


def _read_params(path: Path) -> dict[str, Any]:
    """The JSON object in ``params.json``."""
    what = repr(str(path))
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_PARAMS_BYTES + 1)
        params = json.loads(data) if len(data) <= _MAX_PARAMS_BYTES else None
    except OSError as error:
        reason = "missing" if not path.exists() else (error.strerror or "unreadable").lower()
        raise ModelError(what, reason, "it belongs beside the weights: fetch it") from None
    except (ValueError, RecursionError):
        raise ModelError(what, "it is not JSON", _FETCH_AGAIN) from None
    if not isinstance(params, dict):
        raise ModelError(what, "it is not a JSON object", _FETCH_AGAIN)
    return params


def _shard_files(folder: Path) -> list[Path]:
    """The shards in order; their numbers must have no gap."""
    files = sorted(folder.glob("consolidated.*.pth"))
    if not files:
        raise ModelError(_called(folder), "no consolidated.*.pth in it", "fetch the weights")
    for number, file in enumerate(files):
        if file.name != f"consolidated.{number:02}.pth":
            raise ModelError(
                _called(folder), f"consolidated.{number:02}.pth is missing", "fetch all shards"
            )
    return files


def _open_shard(path: Path) -> dict[str, Tensor]:
    """Map one shard into memory, running nothing that it may hold."""
    what = repr(str(path))
    _check_archive(path, what)
    try:
        shard = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        raise ModelError(
            what, "it holds more than weights, which may be harmful", "fetch it from its source"
        ) from None
    # What torch raises on an archive whose parts contradict each other.
    except (
        RuntimeError,
        ValueError,
        TypeError,
        KeyError,
        EOFError,
        OSError,
        AttributeError,
        IndexError,
        AssertionError,
        UnicodeDecodeError,
        OverflowError,
        MemoryError,
    ):
        raise ModelError(what, "it is damaged", _FETCH_AGAIN) from None
    if not isinstance(shard, dict):
        raise ModelError(what, "it is not a table of weights", _FETCH_AGAIN)
    for name, weight in shard.items():
        if not isinstance(name, str) or not isinstance(weight, Tensor):
            raise ModelError(what, "it holds more than named weights", _FETCH_AGAIN)
        _check_tensor(what, name, weight)
    shard.pop("rope.freqs", None)  # computed here, in float32
    return shard


def _check_tensor(what: str, name: str, weight: Tensor) -> None:
    shown = repr(name[:60])
    if weight.layout != torch.strided or weight.device.type != "cpu":
        raise ModelError(what, f"tensor {shown} is not stored as plain numbers", _FETCH_AGAIN)
    if weight.dtype not in _TYPES and name != "rope.freqs":
        kinds = "float32, float16 and bfloat16"
        raise ModelError(what, f"tensor {shown} is of type {weight.dtype}", f"known are {kinds}")
    if not weight.is_contiguous():
        raise ModelError(what, f"tensor {shown} is not stored row by row", _FETCH_AGAIN)


def _check_archive(path: Path, what: str) -> None:
    """Look at a file before torch does, for mistakes with a better name than "damaged"."""
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise ModelError(what, (error.strerror or "unreadable").lower(), "check it") from None
    if not head:
        raise ModelError(what, "it is empty", _FETCH_AGAIN)
    if head.startswith(b"version https://git-lfs"):
        raise ModelError(what, "it is a git-lfs pointer, not the weights", "run git lfs pull")
    if head.lstrip()[:1] == b"<":
        raise ModelError(what, "it is a web page, not the weights", _FETCH_AGAIN)
    if not head.startswith(b"PK\x03\x04"):
        raise ModelError(what, "not a checkpoint that torch has written since 2020", _FETCH_AGAIN)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, EOFError):
        raise ModelError(what, "it is cut off or damaged", _FETCH_AGAIN) from None
    size = path.stat().st_size
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if packed or sum(entry.file_size for entry in entries) > size:
        raise ModelError(what, "its parts are packed or overlap", _FETCH_AGAIN)


def _merge(path: Path, shards: list[dict[str, Tensor]]) -> dict[str, _Stored]:
    """Put the shards of each weight together, without copying any."""
    first = shards[0]
    for number, shard in enumerate(shards):
        if shard.keys() == first.keys():
            odd = [name for name in first if not _alike(shard[name], first[name])]
        else:
            odd = sorted(shard.keys() ^ first.keys())
        if odd:
            raise ModelError(
                _called(path),
                f"shards 0 and {number} differ in tensor {odd[0][:60]!r}",
                "take all shards from one release",
            )
    stored = {}
    for name, weight in first.items():
        dim = _split_dim(name) if len(shards) > 1 and weight.dim() == 2 else None
        parts = (weight,) if dim is None else tuple(shard[name] for shard in shards)
        stored[name] = _Stored(parts, dim)
    return stored


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype


def _split_dim(name: str) -> int | None:
    """The dimension along which Meta divides a weight among shards."""
    if _SPLIT_ROWS.search(name):
        return 0
    return 1 if _SPLIT_COLUMNS.search(name) else None


def _config(path: Path, params: dict[str, Any], stored: dict[str, _Stored]) -> LlamaConfig:
    """The shape that ``params.json`` says, with the vocabulary of the embedding."""
    what = repr(str(path / "params.json"))

    def number(name: str, default: float | None = None) -> Any:
        value = params.get(name, default)
        if value is None:
            raise ModelError(what, f"{name} is missing", _FETCH_AGAIN)
        if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 10**9:
            raise ModelError(
                what, f"{name} is {str(value)[:40]!r}, not a number that fits", _FETCH_AGAIN
            )
        return value

    embedding = stored.get("tok_embeddings.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ModelError(_called(path), "tensor tok_embeddings.weight is missing", _FETCH_AGAIN)
    dim, n_heads = number("dim"), number("n_heads")
    width, n_shards = embedding.shape[1], len(embedding.shards)
    if isinstance(dim, int) and width and dim > width and dim % width == 0:
        total = n_shards * dim // width
        raise ModelError(
            _called(path), f"{n_shards} of {total} shards are there", "fetch the missing ones"
        )
    try:
        return LlamaConfig(
            dim=dim,
            n_layers=number("n_layers"),
            n_heads=n_heads,
            n_kv_heads=number("n_kv_heads", n_heads),
            head_dim=_head_dim(dim, n_heads),
            hidden_dim=_hidden_dim(
                dim, number("multiple_of", 256), number("ffn_dim_multiplier", 1.0)
            ),
            vocab_size=embedding.shape[0],
            norm_eps=number("norm_eps", 1e-5),
            rope_theta=number("rope_theta", 10_000.0),
            context_length=CONTEXT_LENGTH,
        )
    except (ValueError, TypeError, OverflowError) as error:
        raise ModelError(what, str(error), _FETCH_AGAIN) from None


def _head_dim(dim: int, n_heads: int) -> int:
    if not isinstance(dim, int) or not isinstance(n_heads, int) or n_heads < 1 or dim % n_heads:
        raise ValueError(f"dim {dim} is no multiple of n_heads {n_heads}")
    return dim // n_heads


def _hidden_dim(dim: int, multiple_of: int, multiplier: float) -> int:
    """Width of the feed-forward layer, as Meta computes it from ``params.json``."""
    if not isinstance(multiple_of, int) or multiple_of < 1:
        raise ValueError(f"multiple_of is {multiple_of}")
    hidden = int(multiplier * int(2 * 4 * dim / 3))
    return -(-hidden // multiple_of) * multiple_of


def _find_tokenizer(path: Path) -> Path:
    """``tokenizer.model`` in the folder, or beside it as Meta's download script puts it."""
    for folder in (path, path.resolve().parent):
        if (folder / "tokenizer.model").exists():
            return folder / "tokenizer.model"
    raise ModelError(
        _called(path), "no tokenizer.model in it or beside it", "fetch it from the same release"
    )
