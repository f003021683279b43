"""The metadata of a GGUF file, read by name and type."""

import reprlib
from typing import Any

from llama_chat.errors import ModelError

DAMAGED = "the file is damaged or of another kind: fetch it again"


class Metadata:
    """Metadata of one file, each value checked as it is asked for.

    What asks for a value raises ``ModelError`` if that is of another type.
    """

    def __init__(self, what: str, values: dict[str, Any]) -> None:
        self.what = what
        self.values = values

    def error(self, why: str, advice: str = DAMAGED) -> ModelError:
        """The error to raise for this file."""
        return ModelError(self.what, why, advice)

    def text(self, key: str) -> str:
        """A text; empty where there is none."""
        value = self.values.get(key, "")
        if not isinstance(value, str):
            raise self.error(f"{key} is {reprlib.repr(value)}, not a text")
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number; without a default it must be there. A list of equal ones will do."""
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
        """A number."""
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(f"{key} is {reprlib.repr(value)}, not a number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise self.error(f"{key} is {reprlib.repr(value)}, neither true nor false")
        return value

    def array(self, key: str, kind: type) -> list[Any]:
        """A list of ``kind``, which must be there."""
        value = self.values.get(key)
        if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
            raise self.error(f"{key} is missing or of another type")
        return value

    def token_id(self, key: str, n_tokens: int) -> int | None:
        """An id of a vocabulary of ``n_tokens``; None where there is none."""
        if key not in self.values:
            return None
        token_id = self.integer(key)
        if not 0 <= token_id < n_tokens:
            raise self.error(f"{key} is {token_id}, past the vocabulary of {n_tokens}")
        return token_id
