"""The metadata of a GGUF file, read by name and type."""

import reprlib
from typing import Any

from llama_chat.errors import ModelError, counted

DAMAGED = "the file is damaged or of another kind: download it again"


class Metadata:
    """Metadata of one file, with each value type-checked when it is read.

    Methods that read a value raise ``ModelError`` if it has another type.
    """

    def __init__(self, what: str, values: dict[str, Any]) -> None:
        self.what = what
        self.values = values

    def error(self, why: str, advice: str = DAMAGED) -> ModelError:
        """Make the error for this file."""
        return ModelError(self.what, why, advice)

    def text(self, key: str) -> str:
        """Return a text; empty if it is missing."""
        value = self.values.get(key, "")
        if not isinstance(value, str):
            raise self.error(f"{key} is {reprlib.repr(value)}, not a text")
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        """Return a whole number, also from a list of equal ones; required without ``default``."""
        value = self.values.get(key, default)
        if isinstance(value, list):  # one number for each layer
            if len(set(value)) != 1:
                raise self.error(
                    f"{key} differs between layers", "take a model whose layers are alike"
                )
            value = value[0]
        if value is None:
            raise self.error(f"{key} is missing")
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(f"{key} is {reprlib.repr(value)}, not a whole number")
        return value

    def number(self, key: str, default: float) -> float:
        """Return a number."""
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(f"{key} is {reprlib.repr(value)}, not a number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """Return a boolean."""
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise self.error(f"{key} is {reprlib.repr(value)}, neither true nor false")
        return value

    def array(self, key: str, kind: type) -> list[Any]:
        """Return a list of ``kind``, which is required."""
        value = self.values.get(key)
        if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
            raise self.error(f"{key} is missing or of another type")
        return value

    def token_id(self, key: str, n_tokens: int) -> int | None:
        """Return an id below ``n_tokens``; None if it is missing."""
        if key not in self.values:
            return None
        token_id = self.integer(key)
        if not 0 <= token_id < n_tokens:
            why = f"{key} is {token_id}, past the vocabulary of {counted(n_tokens, 'token')}"
            raise self.error(why, "take another conversion of the model")
        return token_id
