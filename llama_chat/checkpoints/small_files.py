"""Small files beside the weights: read whole, limited in size, with each value type-checked."""

import json
import reprlib
from pathlib import Path
from typing import Any

from llama_chat.errors import ModelError
from llama_chat.files import read_whole
from llama_chat.gates import FETCH_AGAIN, gate
from llama_chat.model.config import MAX_SIZE

MAX_BYTES = 2**20
"""Limit on the bytes of one file; those of the largest models take a fifth of it."""

_LARGEST = 10**12
"""Limit on a number; those that describe a model are smaller."""


class JsonObject:
    """A JSON object in a file; a value of null counts as missing.

    Raises:
        ModelError: from each method, if the value has another type.
    """

    def __init__(self, what: str, values: dict[str, Any]) -> None:
        self.what = what
        self.values = values

    def error(self, why: str, advice: str = FETCH_AGAIN) -> ModelError:
        """Make the error for a value that cannot be used."""
        return ModelError(self.what, why, advice)

    def _typed(self, name: str, kind: type, called: str) -> Any:
        value = self.values.get(name)
        if value is not None and not isinstance(value, kind):
            raise self.error(f"{name[:60]} is {reprlib.repr(value)}, not {called}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """Return a number of limited size; without ``default`` it is required."""
        value = self.values.get(name)
        if value is None:
            value = default
        if value is None:
            raise self.error(f"{name} is missing")
        if type(value) not in (int, float) or not abs(value) <= _LARGEST:  # true for NaN too
            raise self.error(f"{name} is {reprlib.repr(value)}, not a number that fits")
        return value

    def size(self, name: str, default: int | None = None) -> int:
        """Return a whole number from 1 to ``MAX_SIZE``; without ``default`` it is required."""
        value = self.number(name, default)
        if not isinstance(value, int) or not 1 <= value <= MAX_SIZE:
            raise self.error(f"{name} is {value}, not a whole number from 1 to {MAX_SIZE}")
        return value

    def flag(self, name: str) -> bool | None:
        """Return a boolean, or None if it is missing."""
        value: bool | None = self._typed(name, bool, "true or false")
        return value

    def text(self, name: str) -> str | None:
        """Return a text, or None if it is missing."""
        value: str | None = self._typed(name, str, "a text")
        return value

    def object(self, name: str) -> "JsonObject":
        """Return a nested object; an empty one if it is missing."""
        return JsonObject(self.what, self._typed(name, dict, "an object") or {})


def read_bytes(path: Path, advice: str) -> bytes:
    """Read a small file.

    Raises:
        ModelError: if it cannot be read, with ``advice``; or if it exceeds ``MAX_BYTES``.
    """
    return read_whole(path, repr(str(path)), advice, MAX_BYTES)


def read_optional(path: Path, advice: str) -> JsonObject:
    """Read the JSON object in a small file as ``read_object`` does; empty if there is none."""
    return read_object(path, advice) if path.exists() else JsonObject(repr(str(path)), {})


def read_object(path: Path, advice: str) -> JsonObject:
    """Read the JSON object in a small file.

    Raises:
        ModelError: as ``read_bytes`` does, or if the file is not a JSON object.
    """
    what = repr(str(path))
    data = read_bytes(path, advice)
    with gate(what, why="it is not JSON"):
        values = json.loads(data)
    if not isinstance(values, dict):
        raise ModelError(what, "it is not a JSON object", FETCH_AGAIN)
    return JsonObject(what, values)
