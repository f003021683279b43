"""Every setting: its name, range and default, and where its value came from.

A setting has one name in four spellings: ``--top-p`` on the command line, ``LLAMA_CHAT_TOP_P`` in
the environment, ``top_p`` in the settings file, ``/top-p`` in the chat. A flag beats the
environment, which beats the file, which beats the default.
"""

import difflib
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from llama_chat.errors import UsageError

Value = str | int | float | bool | tuple[str, ...] | None
Kind = Literal["text", "path", "integer", "number", "choice", "list", "switch"]


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting."""

    name: str
    kind: Kind
    default: Value
    help: str
    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    """Whether ``low`` itself is excluded."""
    values: Mapping[str, str] = field(default_factory=dict)
    """What it may be, and what that means: all there is of a choice, some of a text."""
    short: str | None = None
    """One-letter flag."""
    paths: bool = False
    """Whether a list is one of paths, which the environment gives with ``:`` between them."""
    group: str = "Model"
    """Under which heading ``--help`` lists it."""

    @property
    def flag(self) -> str:
        """Its spelling on the command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def off_flag(self) -> str | None:
        """What turns it off on the command line; None unless it is a switch that is on."""
        return f"--no-{self.flag[2:]}" if self.default is True else None

    @property
    def variable(self) -> str:
        """Its spelling in the environment."""
        return "LLAMA_CHAT_" + self.name.upper()

    @property
    def command(self) -> str:
        """Its spelling in the chat."""
        return "/" + self.name.replace("_", "-")

    @property
    def range(self) -> str:
        """What it may be, in words."""
        match self.kind:
            case "choice":
                return "one of " + ", ".join(self.values)
            case "integer" | "number":
                noun = "a whole number" if self.kind == "integer" else "a number"
                low = f"above {self.low:g}" if self.above else f"from {self.low:g}"
                return f"{noun} {low}" + ("" if self.high == math.inf else f" to {self.high:g}")
            case "list":
                return "a list of paths" if self.paths else "a list of texts"
            case "switch":
                return "true or false"
            case _:
                return "a text"

    def parse(self, text: str) -> Value:
        """Read a value as typed on the command line, in the environment or in the chat.

        Raises:
            ValueError: if it is out of range; the message says the range.
        """
        match self.kind:
            case "integer":
                return self.check(_number(text, int, self.range))
            case "number":
                return self.check(_number(text, float, self.range))
            case "switch":
                words = {"true": True, "1": True, "yes": True, "on": True}
                words |= {"false": False, "0": False, "no": False, "off": False}
                if text.lower() not in words:
                    raise ValueError(f"{_quoted(text)} is not {self.range}")
                return words[text.lower()]
            case "list":
                return self.check(
                    [p for p in text.split(os.pathsep) if p] if self.paths else [text]
                )
            case _:
                return self.check(text)

    def check(self, value: object) -> Value:
        """Check the type and range of a value.

        Raises:
            ValueError: if it does not fit; the message says what would.
        """
        if self.kind == "number" and isinstance(value, int) and not isinstance(value, bool):
            value = float(value) if abs(value) < 2**1023 else math.inf
        match self.kind, value:
            case "integer", bool():
                pass
            case ("integer", int(number)) | ("number", float(number)):
                if self.low <= number <= self.high and not (self.above and number == self.low):
                    return number
            case "switch", bool():
                return value
            case "list", list() | tuple():
                if all(isinstance(item, str) and item for item in value) and not (
                    self.paths and any("\0" in item for item in value)
                ):
                    return tuple(value)
            case "choice", str():
                if value in self.values:
                    return value
            case (("text" | "path"), str()):
                if "\0" not in value:
                    return value
        raise ValueError(f"{_quoted(value)} is not {self.range}")


def _number(text: str, convert: type[int] | type[float], wanted: str) -> int | float:
    try:
        return convert(text)
    except ValueError:  # also a number of too many digits
        raise ValueError(f"{_quoted(text)} is not {wanted}") from None


def _quoted(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer of over 4,300 digits has no decimal text
        text = "a number of thousands of digits"
    return text if len(text) <= 60 else text[:60] + "…"


_DEVICES = {
    "auto": "CUDA, else MPS, else CPU",
    "cpu": "the processor",
    "cuda": "the first GPU",
    "mps": "the GPU of a Mac",
}
_DTYPES = {
    "auto": "float32 stays; all others become bfloat16 where that is fast",
    "float32": "4 bytes per weight",
    "bfloat16": "2 bytes per weight, with the range of float32",
    "float16": "2 bytes per weight, with a smaller range",
}
_QUANTIZE = {
    "auto": "a quantised file stays packed, any other stays as it is",
    "none": "floats of --dtype, however the file is stored",
    "stored": "packed as the file is",
    "int8": "packed anew, about 1 byte per weight",
    "int4": "packed anew, about half a byte per weight",
}
_TEMPLATES = {
    "auto": "the one that the model was made for",
    "llama2": "Llama 2 and its relatives",
    "chatml": "Qwen, SmolLM and others",
    "zephyr": "Zephyr and TinyLlama",
    "llama3": "Llama 3",
    "mistral": "Mistral 7B Instruct",
    "vicuna": "Vicuna",
    "plain": "no markers: for models that only continue text",
}
_OVERFLOW = {
    "drop-oldest": "no longer show the oldest turns to the model",
    "stop": "refuse the message",
}
_COLOR = {
    "auto": "as the terminal, NO_COLOR and FORCE_COLOR say",
    "always": "also into files and pipes",
    "never": "plain text",
}
_KV_DTYPES = {
    "auto": "that of --dtype",
    "int8": "half the memory of bfloat16, at a small loss",
}
_MARKDOWN = {
    "auto": "as the terminal says",
    "always": "formatted",
    "never": "as the model writes it",
}

_MODEL = (
    Setting("model", "path", None, "Model: a folder, a file or a name.", short="-m"),
    Setting("model_paths", "list", (), "Look for models here too; may be given again.", paths=True),
    Setting(
        "device",
        "text",
        "auto",
        "Where to compute: auto, cpu, cuda, mps, or cuda:0,cuda:1.",
        values=_DEVICES,
    ),
    Setting("dtype", "choice", "auto", "Type of the weights in memory.", values=_DTYPES),
    Setting("quantize", "choice", "auto", "How weights are packed in memory.", values=_QUANTIZE),
    Setting(
        "kv_dtype", "choice", "auto", "Type of the cache of keys and values.", values=_KV_DTYPES
    ),
    Setting("context", "integer", None, "Context length in tokens; else the model's.", low=2),
    Setting("offline", "switch", False, "Never use the network; only pull does."),
    Setting("threads", "integer", None, "CPU threads; else one per core.", low=1, high=1024),
    Setting("lookup", "switch", True, "Read ahead what followed the same words before."),
)

_SAMPLING = (
    Setting(
        "temperature", "number", 0.6, "Randomness; 0 takes the likeliest token.", low=0, high=10
    ),
    Setting(
        "top_p",
        "number",
        0.9,
        "Keep the likeliest tokens of this total probability; 1 is off.",
        low=0,
        high=1,
        above=True,
    ),
    Setting("top_k", "integer", 0, "Keep so many likeliest tokens; 0 is off.", low=0, high=10**6),
    Setting(
        "min_p",
        "number",
        0.0,
        "Drop tokens below this fraction of the likeliest; 0 is off.",
        low=0,
        high=1,
    ),
    Setting(
        "repeat_penalty",
        "number",
        1.0,
        "Make recent tokens less likely; 1 is off.",
        low=0,
        high=10,
        above=True,
    ),
    Setting("seed", "integer", None, "For the same answer again.", low=0, high=2**63 - 1),
)

_REPLY = (
    Setting("max_tokens", "integer", 1024, "End a reply after so many tokens.", low=1, high=10**9),
    Setting("stop", "list", (), "End a reply before this text; may be given again."),
    Setting("system", "text", "", "System message: who the model is to be."),
    Setting(
        "prompt", "text", None, "Prompt file with a system message and examples to begin with."
    ),
    Setting("template", "choice", "auto", "Chat template.", values=_TEMPLATES),
    Setting("overflow", "choice", "drop-oldest", "When the context is full.", values=_OVERFLOW),
)

_OUTPUT = (
    Setting("color", "choice", "auto", "Colour on terminals.", values=_COLOR),
    Setting("markdown", "choice", "auto", "Format replies in the chat.", values=_MARKDOWN),
    Setting("plain", "switch", False, "No cursor movement, no toolbar: for screen readers."),
    Setting("no_save", "switch", False, "Keep no conversation and no history on disk."),
    Setting("quiet", "switch", False, "Nothing but the answer and errors.", short="-q"),
    Setting("verbose", "switch", False, "More on stderr: speeds and counts.", short="-v"),
)

SETTINGS: Mapping[str, Setting] = {
    setting.name: replace(setting, group=group)
    for group, settings in (
        ("Model", _MODEL),
        ("Sampling", _SAMPLING),
        ("Reply", _REPLY),
        ("Output", _OUTPUT),
    )
    for setting in settings
}

SAMPLING_NAMES = ("temperature", "top_p", "top_k", "min_p", "repeat_penalty", "seed")
"""The settings that choose the next token."""


@dataclass(frozen=True, slots=True)
class Origin:
    """A value and the place it came from."""

    value: Value
    source: str
    """``default``, ``--top-p``, ``LLAMA_CHAT_TOP_P``, ``/top-p`` or the path of a file."""

    @property
    def given(self) -> bool:
        """Whether it was given for this run, by a flag or in the environment."""
        return self.source.startswith(("--", "LLAMA_CHAT_"))


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings in force."""

    origins: Mapping[str, Origin]

    def __getitem__(self, name: str) -> Value:
        """The value of a setting."""
        return self.origins[name].value

    def text(self, name: str) -> str:
        """The value of a text or choice; empty if unset."""
        value = self[name]
        return value if isinstance(value, str) else ""

    def integer(self, name: str) -> int | None:
        """The value of a whole number, or None if unset."""
        value = self[name]
        return value if isinstance(value, int) else None

    def texts(self, name: str) -> tuple[str, ...]:
        """The value of a list."""
        value = self[name]
        return value if isinstance(value, tuple) else ()

    def replace(self, name: str, value: Value, source: str) -> "Settings":
        """The same with another value, that came from ``source``."""
        return Settings({**self.origins, name: Origin(value, source)})

    def overlay(self, values: Mapping[str, Value], source: str) -> "Settings":
        """Replace values as a prompt file does: those of a settings file, but no flag."""
        changed = {
            name: Origin(value, source)
            for name, value in values.items()
            if not self.origins[name].given
        }
        return Settings({**self.origins, **changed})


def parse(setting: Setting, typed: str, where: str) -> Value:
    """Read a typed value, with ``where`` named in the error.

    Raises:
        UsageError: if it does not fit.
    """
    try:
        return setting.parse(typed)
    except ValueError:
        raise misfit(setting, typed, where) from None


def check(setting: Setting, value: object, where: str) -> Value:
    """Check a value of a file, with ``where`` named in the error.

    Raises:
        UsageError: if it does not fit.
    """
    try:
        return setting.check(value)
    except ValueError:
        raise misfit(setting, value, where) from None


def misfit(setting: Setting, value: object, where: str) -> UsageError:
    """The error for a value that does not fit."""
    return UsageError(where, f"{_quoted(value)} does not fit", f"give {setting.range}")


def suggestion(wrong: str, known: Iterable[str]) -> str:
    """Advice that names the nearest known word."""
    known = sorted(known)
    near = difflib.get_close_matches(wrong, known, n=1)
    return f"did you mean {near[0]}?" if near else "known are " + ", ".join(known)
