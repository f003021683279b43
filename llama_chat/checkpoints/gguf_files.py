"""Files of a GGUF model: one, or several parts."""

import math
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llama_chat.checkpoints.base import label
from llama_chat.checkpoints.gguf_blocks import KNOWN_NAMES, SUPPORTED, BlockType, FloatType
from llama_chat.checkpoints.gguf_header import (
    DEFAULT_ALIGNMENT,
    MAX_ENTRIES,
    GGUFTensor,
    read_header,
)
from llama_chat.checkpoints.gguf_metadata import DAMAGED, Metadata
from llama_chat.checkpoints.weight_files import map_file, read_only
from llama_chat.errors import counted
from llama_chat.gates import gate
from llama_chat.library.layouts import PART_NAME
from llama_chat.parallel.slices import Slice

_ALL_PARTS = "download all parts of one model into one folder, under the names they have"


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Tensor in a mapped file."""

    shape: tuple[int, ...]
    kind: BlockType | FloatType
    begin: int
    """Offset in bytes from the beginning of the file."""
    mapped: mmap.mmap

    @property
    def n_bytes(self) -> int:
        """Size in bytes in the file."""
        return math.prod(self.shape) // self.kind.n_weights * self.kind.n_bytes

    @property
    def end(self) -> int:
        """Offset in bytes of its end."""
        return self.begin + self.n_bytes

    def data(self, part: Slice | None = None) -> NDArray[np.uint8]:
        """View its bytes, or those of some rows, without a copy; those of columns are copied.

        A part in columns begins and ends between blocks.
        """
        whole = np.frombuffer(self.mapped, np.uint8, self.n_bytes, self.begin)
        if part is None:
            return whole
        matrix = whole.reshape(self.shape[0], -1)
        rows, columns = range(len(matrix)), range(matrix.shape[1])
        if part.dim == 0:
            rows = range(part.start, part.stop)
        else:
            blocks = part.start // self.kind.n_weights, part.stop // self.kind.n_weights
            columns = range(*(at * self.kind.n_bytes for at in blocks))
        read_only(whole.ctypes.data, matrix.shape[1], rows, columns)
        found = matrix[rows.start : rows.stop, columns.start : columns.stop]
        return np.ascontiguousarray(found).reshape(-1)

    def floats(self) -> tuple[Tensor, ...]:
        """View its floats, without a copy: the scales and minima of all blocks, or the weights."""
        if isinstance(self.kind, FloatType):
            return (torch.from_numpy(self.data()).view(self.kind.dtype),)
        blocks, layout = self.data().view(self.kind.layout), self.kind.layout
        names = [name for name in layout.names or () if layout[name] == np.float16]
        return tuple(torch.from_numpy(blocks[name]) for name in names)


@dataclass(frozen=True, slots=True)
class GGUFModel:
    """Metadata and tensors of all files of a model."""

    path: Path
    """Path of the first file."""
    name: str
    metadata: Metadata
    tensors: Mapping[str, StoredTensor]

    @property
    def surplus(self) -> int:
        """Bytes of all files after their last tensors, but for the padding of these."""
        alignment = self.metadata.integer("general.alignment", DEFAULT_ALIGNMENT)
        ends: dict[mmap.mmap, int] = {}
        for tensor in self.tensors.values():
            end = -(-tensor.end // alignment) * alignment
            ends[tensor.mapped] = max(end, ends.get(tensor.mapped, 0))
        return sum(max(0, len(mapped) - end) for mapped, end in ends.items())


def open_files(path: Path) -> GGUFModel:
    """Open the file ``path``, and all other parts if it is one of several.

    Only headers are read. Parts are named ``NAME-00001-of-00003.gguf``; the first one has the
    metadata of the model, the others little more than their number.

    Raises:
        ModelError: if a file is damaged or not supported, or if parts are missing, duplicate or of
            different models.
    """
    opened = _open(path)
    metadata = opened.metadata
    n_parts = metadata.integer("split.count", 1)
    if n_parts in (0, 1):
        return opened
    found = PART_NAME.fullmatch(path.stem)
    if found is None or int(found[3]) != n_parts:
        raise metadata.error(f"it is one of {n_parts} parts, but not named as one", _ALL_PARTS)
    names = [f"{found[1]}-{number:05}-of-{found[3]}.gguf" for number in range(1, n_parts + 1)]
    absent = (name for name in names if not path.with_name(name).is_file())
    if missing := list(islice(absent, 4)):  # a malicious number of parts is not counted to its end
        shown = ", ".join(map(repr, missing[:3])) + (" and more" if missing[3:] else "")
        raise metadata.error(f"beside it there is no {shown}", _ALL_PARTS)
    first = opened if path.name == names[0] else _open(path.with_name(names[0]))
    tensors: dict[str, StoredTensor] = {}
    for number, name in enumerate(names):
        part = first if number == 0 else _open(path.with_name(name))
        _check_part(part.metadata, first.metadata.values, number)
        if double := tensors.keys() & part.tensors.keys():
            shown = min(double)[:60]
            raise part.metadata.error(f"tensor {shown!r} is in an earlier part too", _ALL_PARTS)
        tensors |= part.tensors
        if len(tensors) > MAX_ENTRIES:
            raise part.metadata.error(f"the parts have more than {MAX_ENTRIES} tensors")
    n_tensors = first.metadata.integer("split.tensors.count")
    if len(tensors) != n_tensors:
        why = f"its parts should hold {counted(n_tensors, 'tensor')} and hold {len(tensors)}"
        raise first.metadata.error(why, _ALL_PARTS)
    return GGUFModel(first.path, found[1], first.metadata, tensors)


def _check_part(part: Metadata, first: Mapping[str, Any], number: int) -> None:
    """Check that a file is part ``number``, from 0, of the model whose first part is ``first``."""
    stored_number = part.integer("split.no")
    if stored_number != number:
        raise part.error(
            f"it is part {stored_number + 1} under the name of part {number + 1}", _ALL_PARTS
        )
    for key, value in part.values.items():
        if key != "split.no" and first.get(key, value) != value:
            raise part.error(
                f"it is of another model than part 1: {key[:60]!r} differs", _ALL_PARTS
            )


def _open(path: Path) -> GGUFModel:
    """Open one file."""
    what = label(path)
    with gate(what):
        mapped = map_file(path, what)
        header = read_header(memoryview(mapped), path)
        metadata = Metadata(what, header.metadata)
        tensors = {
            name: _stored(metadata, name, tensor, mapped) for name, tensor in header.tensors.items()
        }
    in_order = sorted(tensors, key=lambda name: tensors[name].begin)
    for one, following in pairwise(in_order):
        gap = tensors[following].begin - tensors[one].end
        if not 0 <= gap < header.alignment:
            verb = "overlap" if gap < 0 else "leave a gap"
            raise metadata.error(f"tensors {one[:60]!r} and {following[:60]!r} {verb}")
    return GGUFModel(path, path.stem, metadata, tensors)


def _stored(metadata: Metadata, name: str, tensor: GGUFTensor, mapped: mmap.mmap) -> StoredTensor:
    """Locate a tensor, checking its type and that the file contains all of it."""
    shown = f"tensor {name[:60]!r}"
    kind = SUPPORTED.get(tensor.type)
    if kind is None:
        called = KNOWN_NAMES.get(tensor.type, f"number {tensor.type}")
        known = ", ".join(kind.name for kind in SUPPORTED.values())
        raise metadata.error(
            f"{shown} is of type {called}, which is not supported", f"take a file of {known}"
        )
    if tensor.shape[-1] % kind.n_weights:
        raise metadata.error(f"{shown} has rows of broken blocks", DAMAGED)
    stored = StoredTensor(tensor.shape, kind, tensor.offset, mapped)
    if stored.end > len(mapped):
        raise metadata.error(f"it ends before {shown} does", "download it again")
    return stored
