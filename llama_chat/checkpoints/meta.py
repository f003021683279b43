"""Meta's release layout: ``params.json``, ``consolidated.NN.pth`` and ``tokenizer.model``.

Mistral's own folders are like it, with the names of Meta's tensors and their rotary order.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from llama_chat.checkpoints.base import Checkpoint, TensorInfo, check_tensors, label
from llama_chat.checkpoints.meta_config import (
    head_dim,
    is_mistral,
    is_scaled,
    model_config,
    read_params,
)
from llama_chat.checkpoints.small_files import JsonObject
from llama_chat.checkpoints.template_source import TemplateSource
from llama_chat.checkpoints.torch_archive import open_archive
from llama_chat.checkpoints.weight_files import describe, part_of, release_pages
from llama_chat.checkpoints.weight_folder import open_weights
from llama_chat.errors import ModelError, counted
from llama_chat.library.layouts import MISTRAL_WEIGHTS, TEKKEN, meta_tokenizers
from llama_chat.parallel.slices import Slice
from llama_chat.tokenizers.ranked import read_model_file
from llama_chat.tokenizers.tekken import read_tekken
from llama_chat.tokenizers.vocabulary import Vocabulary

_SPLIT_ROWS = re.compile(r"attention\.w[qkv]|feed_forward\.w[13]|^output")
"""Weights whose shards are stacked along dim 0."""

_SPLIT_COLUMNS = re.compile(r"attention\.wo|feed_forward\.w2")
"""Weights whose shards are stacked along dim 1. All others are the same in every shard, except for
the embedding: its shards are of whole rows in Llama 3, and of columns before."""

_EMBEDDING, _QUERY = "tok_embeddings.weight", "layers.0.attention.wq.weight"

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

    def pieces(self, part: Slice | None) -> Iterator[tuple[Tensor, Slice | None]]:
        """Yield the shards that have some of ``part`` of the weight, and which part of them."""
        if self.dim is None or part is None or part.dim != self.dim:
            yield from ((shard, part) for shard in self.shards)
            return
        begin = 0
        for shard in self.shards:
            length = shard.shape[self.dim]
            start, stop = max(part.start - begin, 0), min(part.stop - begin, length)
            if start < stop:
                yield shard, Slice(self.dim, start, stop)
            begin += length


class MetaCheckpoint(Checkpoint):
    """Folder in Meta's release layout, with any number of shards."""

    format = "Meta"

    def __init__(self, path: Path, params: JsonObject, tokenizer: Path) -> None:
        """Use ``open`` instead."""
        self.path = path
        self.name = path.resolve().name
        self._params, self._tokenizer = params, tokenizer
        self._stored = _merge(path, _open_shards(path), params.size("dim"))
        _check_shards(path, params, self._stored)
        shapes = {name: weight.shape for name, weight in self._stored.items()}
        self.config, warning = model_config(params, shapes)
        check_tensors(label(path), self.config, shapes)
        self.warnings = (f"{label(path)}: {warning}",) if warning else ()
        self.templates = TemplateSource(names=(self.name,), is_meta=not is_mistral(params))
        self.tensors = {
            name: TensorInfo(
                weight.shape,
                describe(weight.shards[0]).type,
                sum(shard.nbytes for shard in weight.shards),
            )
            for name, weight in self._stored.items()
        }

    @classmethod
    def open(cls, path: Path) -> "MetaCheckpoint":
        """Open the folder ``path``, mapping its shards without reading them.

        Raises:
            ModelError: if a file is missing or damaged, or the files do not match.
        """
        return cls(path, read_params(path), _find_tokenizer(path))

    def read_vocabulary(self) -> Vocabulary:
        """See the base class."""
        if self._tokenizer.name == TEKKEN:
            return read_tekken(self._tokenizer)
        return read_model_file(self._tokenizer, is_llama_3_0=not is_scaled(self._params))

    def read(self, name: str, dtype: torch.dtype, part: Slice | None = None) -> Tensor:
        """See the base class."""
        stored = self._stored[name]
        pieces = list(stored.pieces(part))
        if len(pieces) == 1:  # of one file
            return part_of(*pieces[0]).to(dtype)
        merged = torch.empty(part.shape(stored.shape) if part else stored.shape, dtype=dtype)
        dim, start = stored.dim or 0, 0
        for shard, within in pieces:
            found = part_of(shard, within)
            length = found.shape[dim]
            merged.narrow(dim, start, length).copy_(found)
            start += length
        return merged

    def stored(self, name: str) -> tuple[Tensor, ...]:
        """See the base class."""
        return self._stored[name].shards

    def forget(self, name: str) -> None:
        """See the base class."""
        for shard in self._stored[name].shards:
            release_pages(shard)


open_checkpoint = MetaCheckpoint.open


def _open_shards(folder: Path) -> list[dict[str, Tensor]]:
    """Map the shards in order; their numbers must have no gap."""
    files = sorted(folder.glob("consolidated.*.pth"))
    if not files and any(folder.glob(f"{MISTRAL_WEIGHTS}*")):
        return [open_weights(folder, (MISTRAL_WEIGHTS,), _COMPUTED)]
    if not files:
        why = f"no consolidated.*.pth or {MISTRAL_WEIGHTS} in it"
        raise ModelError(label(folder), why, "download the weights")
    for number, file in enumerate(files):
        if file.name != f"consolidated.{number:02}.pth":
            raise ModelError(
                label(folder), f"consolidated.{number:02}.pth is missing", "download all shards"
            )
    return [open_archive(file, _COMPUTED) for file in files]


def _merge(path: Path, shards: list[dict[str, Tensor]], dim: int) -> dict[str, _Stored]:
    """Collect the shards of each weight of a model of width ``dim``, without copying any."""
    first = shards[0]
    for number, shard in enumerate(shards):
        if shard.keys() == first.keys():
            odd = [name for name in first if not _same_layout(shard[name], first[name])]
        else:
            odd = sorted(shard.keys() ^ first.keys())
        if odd:
            raise ModelError(
                label(path),
                f"shards 0 and {number} differ in tensor {odd[0][:60]!r}",
                "take all shards from one release",
            )
    stored = {}
    for name, weight in first.items():
        along = _split_dim(name, weight, dim) if len(shards) > 1 and weight.dim() == 2 else None
        parts = (weight,) if along is None else tuple(shard[name] for shard in shards)
        stored[name] = _Stored(parts, along)
    return stored


def _same_layout(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype


def _split_dim(name: str, shard: Tensor, dim: int) -> int | None:
    """Return the dimension along which Meta divides a weight among shards."""
    if name == _EMBEDDING:
        return 0 if shard.shape[1] == dim else 1
    if _SPLIT_ROWS.search(name):
        return 0
    return 1 if _SPLIT_COLUMNS.search(name) else None


def _check_shards(path: Path, params: JsonObject, stored: dict[str, _Stored]) -> None:
    """Check that there is an embedding, and that no shard is missing, as the names cannot."""
    for name in (_EMBEDDING, _QUERY):
        if name not in stored or len(stored[name].shape) != 2:
            raise ModelError(label(path), f"tensor {name} is missing", "download all files again")
    query = stored[_QUERY]
    n_rows, n_shards = query.shape[0], len(query.shards)
    whole = params.size("n_heads") * head_dim(params)
    if whole > n_rows and whole % n_rows == 0:
        why = f"{n_shards} of {counted(n_shards * whole // n_rows, 'shard')} are there"
        raise ModelError(label(path), why, "download the missing ones")


def _find_tokenizer(path: Path) -> Path:
    """Find the tokenizer in the folder, or beside it as with Meta's download script."""
    for folder in (path, path.resolve().parent):
        if found := meta_tokenizers([entry.name for entry in folder.iterdir()]):
            return folder / found[0]
    why = f"no tokenizer.model or {TEKKEN} in it or beside it"
    raise ModelError(label(path), why, "download it from the same release")
