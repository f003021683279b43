"""The header of a GGUF file: metadata, and the position of each tensor.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Every length is checked
against the remaining bytes before use, and the size of a header is limited, so that a malicious one
is refused in little time and memory, however large its file.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_chat.checkpoints.base import label
from llama_chat.errors import ModelError, counted
from llama_chat.library.layouts import GGUF_MAGIC

_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_STRING, _ARRAY = 8, 9
_MAX_DIMS = 4
_MAX_HEADER = 32 * 2**20
"""Limit on bytes of a header; one with 262,144 tokens and their merges takes 16 MB."""
MAX_ENTRIES = 2**16
"""Limit on metadata values, and on tensors; the largest models have some thousand."""
_MAX_ITEMS = 2**22
"""Limit on elements of all lists; those 262,144 tokens, with scores and types, have 1.3 million."""
DEFAULT_ALIGNMENT = 32
"""Bytes to a multiple of which tensors are padded, unless the metadata say."""


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """Description of one tensor in the header."""

    shape: tuple[int, ...]
    """``(out, in)``; the header has the dimensions in reverse order."""
    type: int
    offset: int
    """Offset in bytes from the beginning of the file."""


@dataclass(frozen=True, slots=True)
class GGUFHeader:
    """Contents of the header."""

    metadata: dict[str, Any]
    tensors: dict[str, GGUFTensor]
    alignment: int
    """Bytes to a multiple of which each tensor is padded."""


class _Reader:
    """Sequential reader of values, never past the end of the header."""

    def __init__(self, data: memoryview, what: str) -> None:
        self.data = data[:_MAX_HEADER]
        self.at = 0
        self._bounded = len(data) > _MAX_HEADER
        self._what = what
        self._items_left = _MAX_ITEMS

    def error(self, why: str) -> ModelError:
        return ModelError(self._what, why, "the file is cut off or damaged: download it again")

    def cut_off(self, at: int) -> ModelError:
        """Make the error for a value that extends past the end."""
        if self._bounded:
            return self.error("its header is longer than that of any model")
        return self.error(f"it ends in the middle of something, at byte {at}")

    def take(self, n_bytes: int) -> int:
        """Skip ``n_bytes``, and return the offset of their beginning."""
        begin = self.at
        if n_bytes > len(self.data) - begin:
            raise self.cut_off(begin)
        self.at = begin + n_bytes
        return begin

    def count_items(self, n_items: int) -> None:
        """Count the elements of a list against the limit, before they become objects."""
        self._items_left -= n_items
        if self._items_left < 0:
            raise self.error("its lists are longer than those of any model")

    def scalar(self, layout: str) -> Any:
        return struct.unpack_from(layout, self.data, self.take(struct.calcsize(layout)))[0]

    def string(self) -> str:
        begin = self.take(self.scalar("<Q"))
        return str(self.data[begin : self.at], "utf-8", "replace")

    def strings(self, count: int) -> list[str]:
        """Read strings, in an inlined loop, since a vocabulary has a hundred thousand."""
        if count * 8 > len(self.data) - self.at:
            raise self.error(f"a list of {counted(count, 'text')} does not fit in it")
        self.count_items(count)
        data, at, end = self.data, self.at, len(self.data)
        length_of = struct.Struct("<Q").unpack_from
        found: list[str] = []
        try:
            for _ in range(count):
                if end - at < 8:
                    raise self.cut_off(at)
                at += 8 + (length := length_of(data, at)[0])
                if at > end:
                    raise self.cut_off(end)
                found.append(str(data[at - length : at], "utf-8"))
        except UnicodeDecodeError:
            raise self.error(f"text {len(found)} of a list is not UTF-8") from None
        self.at = at
        return found

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            raise self.error(f"unknown type of value {kind}")
        element, count = self.scalar("<I"), self.scalar("<Q")
        if element == _STRING:
            return self.strings(count)
        if element in _SCALARS:
            kind_of_one = _SCALARS[element][1]
            begin = self.take(count * struct.calcsize("<" + kind_of_one))
            self.count_items(count)
            return list(struct.unpack_from(f"<{count}{kind_of_one}", self.data, begin))
        # The format allows nested lists, but llama.cpp does not read them, so no model has any.
        raise self.error(
            "nested lists" if element == _ARRAY else f"unknown type of value {element}"
        )


def read_header(data: memoryview, path: Path) -> GGUFHeader:
    """Read the header at the beginning of ``data``, the whole file.

    Raises:
        ModelError: if it is not a whole GGUF header of version 2 or 3.
    """
    what = label(path)
    reader = _Reader(data, what)
    if bytes(data[:4]) != GGUF_MAGIC:
        raise ModelError(what, "not a GGUF file", "download it again")
    reader.take(4)
    _check_version(reader.scalar("<I"), what)
    n_tensors, n_values = reader.scalar("<Q"), reader.scalar("<Q")
    metadata: dict[str, Any] = {}
    for _ in range(n_values):
        key = reader.string()
        if not key or key in metadata:
            raise reader.error(f"a name of its metadata is duplicate or empty: {key[:60]!r}")
        if len(metadata) == MAX_ENTRIES:
            raise reader.error(f"it has more than {MAX_ENTRIES} metadata values")
        metadata[key] = reader.value(reader.scalar("<I"))
    found: dict[str, GGUFTensor] = {}
    for _ in range(n_tensors):
        name = reader.string()
        if not name or name in found:
            raise reader.error(f"a tensor's name is duplicate or empty: {name[:60]!r}")
        if len(found) == MAX_ENTRIES:
            raise reader.error(f"it has more than {MAX_ENTRIES} tensors")
        found[name] = _tensor(reader, name)
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 8 or alignment & (alignment - 1):
        raise reader.error(f"alignment is {str(alignment)[:40]}, not a power of 2 from 8")
    start = -(-reader.at // alignment) * alignment
    for name, tensor in found.items():
        if tensor.offset % alignment:
            raise reader.error(f"tensor {name[:60]!r} is not aligned")
    tensors = {n: GGUFTensor(t.shape, t.type, start + t.offset) for n, t in found.items()}
    return GGUFHeader(metadata, tensors, alignment)


def _check_version(version: int, what: str) -> None:
    if version in (2, 3):
        return
    if int.from_bytes(version.to_bytes(4, "little"), "big") in (2, 3):
        raise ModelError(what, "it is a big-endian GGUF file", "take a little-endian one")
    raise ModelError(what, f"GGUF version {version} is not known", "take version 2 or 3")


def _tensor(reader: _Reader, name: str) -> GGUFTensor:
    n_dims = reader.scalar("<I")
    if not 1 <= n_dims <= _MAX_DIMS:
        raise reader.error(f"tensor {name[:60]!r} has {n_dims} dimensions")
    dims = [reader.scalar("<Q") for _ in range(n_dims)]
    if not all(0 < dim < 2**40 for dim in dims):
        raise reader.error(f"tensor {name[:60]!r} has impossible dimensions")
    return GGUFTensor(tuple(reversed(dims)), reader.scalar("<I"), reader.scalar("<Q"))
