"""One setting: type, range, names, and parsing and validation of its values."""

import math
import os
import re
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from llama_chat.errors import UsageError

Value = str | int | float | bool | tuple[str, ...] | None
Kind = Literal["text", "path", "integer", "number", "choice", "list", "switch", "size", "time"]
Scope = Literal["load", "sampling", "reply", "display", "program"]
"""Part of the program that a change affects: the model (which is loaded again), sampling, the next
reply, the display, or only the program as a whole."""

_WORDS = {"true": True, "1": True, "yes": True, "on": True}
_WORDS |= {"false": False, "0": False, "no": False, "off": False}

_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)\s?([KMGT]?)(i?B)?", re.ASCII | re.IGNORECASE)

_TIME = re.compile(r"(\d{1,9}(?:\.\d{1,6})?) ?([smh]?)", re.ASCII)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "": 1}

_KEY = "setting"
"""Key of the ``Setting`` in the metadata of a dataclass field."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Definition of one setting."""

    kind: Kind
    default: Value
    help: str
    example: str
    scope: Scope
    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    """Exclude ``low`` itself."""
    values: Mapping[str, str] = field(default_factory=dict)
    """Values with their meanings: all those of a choice, examples of a text."""
    short: str | None = None
    """One-letter flag."""
    is_paths: bool = False
    """True for a list of paths, which are separated by ``:`` in text."""
    name: str = ""
    group: str = ""
    """Heading in ``--help`` and in the settings file."""

    @property
    def flag(self) -> str:
        """Name on the command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def off_flag(self) -> str | None:
        """Flag that turns a switch off; None unless it is on by default."""
        return f"--no-{self.flag[2:]}" if self.default is True else None

    @property
    def variable(self) -> str:
        """Name in the environment."""
        return "LLAMA_CHAT_" + self.name.upper()

    @property
    def command(self) -> str:
        """Name in the chat."""
        return "/" + self.name.replace("_", "-")

    @property
    def range(self) -> str:
        """Possible values in words."""
        match self.kind:
            case "choice":
                return "one of " + ", ".join(self.values)
            case "integer" | "number":
                noun = "a whole number" if self.kind == "integer" else "a number"
                low = f"above {self.low}" if self.above else f"from {self.low}"
                return f"{noun} {low}" + ("" if self.high == math.inf else f" to {self.high}")
            case "list":
                return "a list of paths" if self.is_paths else "a list of texts"
            case "switch":
                return "true or false"
            case "size":
                return "a size such as 512M or 8G"
            case "time":
                return "a time such as 90s, 10m or 1h"
            case _:
                return "a text"

    def parse(self, typed: str) -> Value:
        """Read a value as typed on the command line, in the environment or in the chat.

        Raises:
            ValueError: if it is out of range; the message states the range.
        """
        value: object = typed
        match self.kind:
            case "integer" | "number":
                try:
                    value = int(typed) if self.kind == "integer" else float(typed)
                except ValueError:  # no number, or one of too many digits
                    value = typed
            case "switch":
                value = _WORDS.get(typed.lower(), typed)
            case "list":
                paths = [path for path in typed.split(os.pathsep) if path]
                value = paths if self.is_paths else [unescape(typed)]
        return self.check(value)

    def check(self, value: object) -> Value:
        """Check the type and range of a value.

        Raises:
            ValueError: if it is out of range; the message states the range.
        """
        value = self._of_integer(value)
        match self.kind, value:
            case "integer", bool():
                pass
            case ("integer", int(number)) | ("number", float(number)):
                if self.low <= number <= self.high and not (self.above and number == self.low):
                    return number + 0  # 0 is also written -0
            case "switch", bool():
                return value
            case "list", list() | tuple():
                if all(isinstance(item, str) and item for item in value) and not (
                    self.is_paths and any("\0" in item for item in value)
                ):
                    return tuple(value)
            case "choice", str():
                if value in self.values:
                    return value
            case (("size" | "time"), str(text)) if _MEASURES[self.kind](text):
                return text
            case (("text" | "path"), str()):
                if "\0" not in value:
                    return value
        raise ValueError(f"{_quoted(value)} is not {self.range}")

    def _of_integer(self, value: object) -> object:
        """Convert an integer to a number, size or time if this kind is one; keep anything else."""
        if not isinstance(value, int) or isinstance(value, bool):
            return value
        if self.kind in ("size", "time"):
            return f"{value}" if abs(value) < 2**63 else ""
        if self.kind == "number":
            return float(value) if abs(value) < 2**1023 else math.inf
        return value


def bytes_of(size: str) -> int:
    """Return the bytes of a size, 0 if it is none: ``8G`` and ``8GiB`` are 2^33, ``8GB`` 8e9."""
    found = _SIZE.fullmatch(size.strip())
    if found is None:
        return 0
    number, unit, suffix = found.groups()
    factor = 1000 if (suffix or "").upper() == "B" else 1024
    return int(float(number) * factor ** " KMGT".index(unit.upper() or " "))


def unescape(typed: str) -> str:
    r"""Replace ``\n`` by a new line and ``\t`` by a tab, which shells make hard to type."""
    return typed.replace(r"\n", "\n").replace(r"\t", "\t")


def parse(setting: Setting, typed: str, where: str) -> Value:
    """Read a typed value; see ``Setting.parse``.

    Raises:
        UsageError: about ``where``, if it is out of range.
    """
    try:
        return setting.parse(typed)
    except ValueError:
        raise _misfit(setting, typed, where) from None


def seconds_of(time: str) -> float | None:
    """Return the seconds of a time such as ``10``, ``90s`` or ``1h``; None if it is none."""
    found = _TIME.fullmatch(time.strip())
    return None if found is None else float(found[1]) * _SECONDS[found[2]]


_MEASURES: Mapping[str, Callable[[str], bool]] = {
    "size": lambda text: bytes_of(text) > 0,
    "time": lambda text: seconds_of(text) is not None,
}
"""Checks of texts that stand for a number with a unit, by the kind of the setting."""


def check(setting: Setting, value: object, where: str) -> Value:
    """Check a value of a file; see ``Setting.check``.

    Raises:
        UsageError: about ``where``, if it is out of range.
    """
    try:
        return setting.check(value)
    except ValueError:
        raise _misfit(setting, value, where) from None


def _misfit(setting: Setting, value: object, where: str) -> UsageError:
    return UsageError(where, f"{_quoted(value)} does not fit", f"give {setting.range}")


_SHORT = reprlib.Repr()
"""Abbreviates values that are nested deeply or have many parts, without visiting all of them."""
_SHORT.maxstring = _SHORT.maxother = 80


def _quoted(value: object) -> str:
    try:
        text = _SHORT.repr(value)
    except ValueError:  # an integer of over 4,300 digits has no decimal text
        text = "a number of thousands of digits"
    return text if len(text) <= 60 else text[:60] + "…"


def define(
    kind: Kind, default: Value, meaning: str, *, scope: Scope, example: str, **more: Any
) -> Any:
    """Return a dataclass field that defines a setting; see ``Setting`` for the arguments."""
    setting = Setting(kind, default, meaning, example, scope, **more)
    return field(default=default, metadata={_KEY: setting})


def setting_of(metadata: Mapping[str, Any]) -> Setting:
    """Return the setting in the metadata of a field made by ``define``."""
    setting: Setting = metadata[_KEY]
    return setting
