"""Files of safetensors: a header in JSON, then plain numbers.

The format: https://github.com/huggingface/safetensors#format. The header is held to all of it, and
to what a model of the llama family needs, before a tensor is made.
"""

import json
import math
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeGuard

from torch import Tensor

from llama_chat.checkpoints.base import FLOAT_TYPES
from llama_chat.checkpoints.small_files import FETCH_AGAIN
from llama_chat.checkpoints.weight_files import KNOWN_TYPES, mapped_bytes, mapped_tensor, read_head
from llama_chat.errors import ModelError

_MAX_HEADER = 4 * 2**20
"""Bytes of a header; that of the largest model takes 0.1 MB."""

_MAX_DIMS = 4


@dataclass(frozen=True, slots=True)
class SafetensorsEntry:
    """One tensor, as the header describes it."""

    type: str
    shape: tuple[int, ...]
    begin: int
    """Bytes from the beginning of the file."""
    end: int


def open_safetensors(path: Path, skip: re.Pattern[str]) -> dict[str, Tensor]:
    """Map the tensors of a file into memory.

    Args:
        path: the file.
        skip: what the names of tensors hold that are left out.

    Raises:
        ModelError: if the file is damaged, or holds a tensor of another type than those known.
    """
    read_head(path)
    data = mapped_bytes(path)
    return {
        name: mapped_tensor(data[entry.begin : entry.end], FLOAT_TYPES[entry.type], entry.shape)
        for name, entry in read_header(data.data, path).items()
        if not skip.search(name)
    }


def read_header(data: memoryview, path: Path) -> dict[str, SafetensorsEntry]:
    """Read the header at the beginning of ``data``, the whole file.

    Raises:
        ModelError: if it is not that of a whole file, each byte of which belongs to one tensor.
    """
    what = repr(str(path))
    n_bytes = int.from_bytes(data[:8], "little")
    if len(data) < 8 or n_bytes > len(data) - 8:
        raise ModelError(what, "it ends before its header does", FETCH_AGAIN)
    if n_bytes > _MAX_HEADER:
        raise ModelError(what, "its header is longer than that of any model", FETCH_AGAIN)
    start = 8 + n_bytes
    entries = {
        name: _entry(what, name, value, start)
        for name, value in _parse(what, bytes(data[8:start])).items()
        if name != "__metadata__"
    }
    end = start
    for name, entry in sorted(entries.items(), key=lambda item: item[1].begin):
        if entry.begin != end:
            why = "overlaps another" if entry.begin < end else "has a gap before it"
            raise ModelError(what, f"tensor {name[:60]!r} {why}", FETCH_AGAIN)
        end = entry.end
    if end != len(data):
        why = "it ends before its tensors do" if end > len(data) else "bytes follow its last tensor"
        raise ModelError(what, why, FETCH_AGAIN)
    return entries


def _parse(what: str, header: bytes) -> dict[str, Any]:
    """The JSON object in the header, in which no name stands twice."""
    try:
        parsed = json.loads(header.decode(), object_pairs_hook=_unique)
    except _StandsTwiceError as error:
        raise ModelError(what, f"{error} stands twice in its header", FETCH_AGAIN) from None
    except (ValueError, RecursionError):
        raise ModelError(what, "its header is not JSON", FETCH_AGAIN) from None
    if not isinstance(parsed, dict):
        raise ModelError(what, "its header is not a JSON object", FETCH_AGAIN)
    return parsed


class _StandsTwiceError(Exception):
    """A name stands twice in one object; the message is the name."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = sorted(name for name, _ in pairs)
        twice = next(name for name, other in pairwise(names) if name == other)
        raise _StandsTwiceError(repr(twice[:60]))
    return found


def _entry(what: str, name: str, value: object, start: int) -> SafetensorsEntry:
    """One value of the header, whose numbers fit each other."""
    shown = f"tensor {name[:60]!r}"
    kind, shape, offsets = (
        (value.get("dtype"), value.get("shape"), value.get("data_offsets"))
        if isinstance(value, dict)
        else (None, None, None)
    )
    if not isinstance(kind, str) or not _are_counts(shape) or not _are_counts(offsets):
        raise ModelError(what, f"{shown} is not described as it must be", FETCH_AGAIN)
    if kind not in FLOAT_TYPES:
        raise ModelError(what, f"{shown} is of type {kind[:20]!r}", f"take a file of {KNOWN_TYPES}")
    if len(shape) > _MAX_DIMS or 0 in shape:
        raise ModelError(what, f"{shown} has impossible dimensions", FETCH_AGAIN)
    n_bytes = math.prod(shape) * FLOAT_TYPES[kind].itemsize
    if len(offsets) != 2 or offsets[1] - offsets[0] != n_bytes:
        raise ModelError(what, f"{shown} has not as many bytes as its shape needs", FETCH_AGAIN)
    return SafetensorsEntry(kind, tuple(shape), start + offsets[0], start + offsets[1])


def _are_counts(value: object) -> TypeGuard[list[int]]:
    """Whether ``value`` is a list of whole numbers from 0 (true is none)."""
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
