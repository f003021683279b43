"""The small files beside the weights: read whole, bounded, each value checked when asked for."""

import json
import reprlib
from pathlib import Path
from typing import Any

from llama_chat.errors import ModelError, reason

MAX_BYTES = 2**20
"""Of one file; those of the largest models take a fifth of that."""

FETCH_AGAIN = "fetch the file again"

_LARGEST = 10**12
"""No number that describes a model is larger."""


class JsonObject:
    """A JSON object of a file. A value of null counts as one that is not there.

    Raises:
        ModelError: from each method, if the value is of another type than asked for.
    """

    def __init__(self, what: str, values: dict[str, Any]) -> None:
        self.what = what
        self.values = values

    def error(self, why: str, advice: str = FETCH_AGAIN) -> ModelError:
        """The error for a value that cannot be used."""
        return ModelError(self.what, why, advice)

    def _typed(self, name: str, kind: type, called: str) -> Any:
        value = self.values.get(name)
        if value is not None and not isinstance(value, kind):
            raise self.error(f"{name[:60]} is {reprlib.repr(value)}, not {called}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A number that fits; without ``default`` it must be there."""
        value = self.values.get(name)
        if value is None:
            value = default
        if value is None:
            raise self.error(f"{name} is missing")
        # NaN is larger than nothing, so that it is refused where it matters and by its name.
        if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > _LARGEST:
            raise self.error(f"{name} is {reprlib.repr(value)}, not a number that fits")
        return value

    def size(self, name: str, default: int | None = None) -> int:
        """A whole number above 0; without ``default`` it must be there."""
        value = self.number(name, default)
        if not isinstance(value, int) or value < 1:
            raise self.error(f"{name} is {value}, not a whole number above 0")
        return value

    def flag(self, name: str) -> bool | None:
        """True, false, or None if it is not said."""
        value: bool | None = self._typed(name, bool, "true or false")
        return value

    def text(self, name: str) -> str | None:
        """A text, or None if there is none."""
        value: str | None = self._typed(name, str, "a text")
        return value

    def object(self, name: str) -> "JsonObject":
        """An object inside this one; an empty one if there is none."""
        return JsonObject(self.what, self._typed(name, dict, "an object") or {})


def read_bytes(path: Path, advice: str) -> bytes:
    """All of a small file.

    Raises:
        ModelError: if it cannot be read or is larger than ``MAX_BYTES``; ``advice`` says what to
            do if it is missing.
    """
    what = repr(str(path))
    try:
        if path.exists() and not path.is_file():  # opening a named pipe would wait for ever
            raise ModelError(what, "it is not a file", advice)
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        why = "missing" if isinstance(error, FileNotFoundError) else reason(error)
        raise ModelError(what, why, advice) from None
    if len(data) > MAX_BYTES:
        raise ModelError(what, f"larger than {MAX_BYTES >> 20} MiB", FETCH_AGAIN)
    return data


def read_object(path: Path, advice: str) -> JsonObject:
    """The JSON object that a small file holds.

    Raises:
        ModelError: as ``read_bytes`` does, or if the file is not a JSON object.
    """
    what = repr(str(path))
    data = read_bytes(path, advice)
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        raise ModelError(what, "it is not JSON", FETCH_AGAIN) from None
    if not isinstance(values, dict):
        raise ModelError(what, "it is not a JSON object", FETCH_AGAIN)
    return JsonObject(what, values)
