"""What Tab offers in a shell: names and values, each with what it means.

Typer asks these functions in a process of its own each time a person presses Tab. So they import
nothing that takes long, and where something is wrong they offer nothing and say nothing.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from llama_chat import starter
from llama_chat.chat.prompt_files import list_prompts
from llama_chat.errors import LlamaChatError
from llama_chat.library import installed_models
from llama_chat.settings import Setting
from llama_chat.terminal.sanitizer import sanitize

Suggestion = tuple[str, str]
"""A word, and what it means."""

_MEANINGS: dict[str, dict[str, str]] = {
    "device": {
        "auto": "CUDA, else MPS, else CPU",
        "cpu": "the processor",
        "cuda": "the first GPU",
        "mps": "the GPU of a Mac",
    },
    "dtype": {
        "auto": "float32 stays; all others become bfloat16 where that is fast",
        "float32": "4 bytes per weight",
        "bfloat16": "2 bytes per weight, with the range of float32",
        "float16": "2 bytes per weight, with a smaller range",
    },
    "quantize": {
        "none": "weights as they are stored",
        "int8": "1 byte per weight",
        "int4": "half a byte per weight",
    },
    "template": {
        "auto": "the one that the model was made for",
        "llama2": "Llama 2 and its relatives",
        "chatml": "Qwen, SmolLM and others",
        "plain": "no markers: for models that only continue text",
    },
    "overflow": {
        "drop-oldest": "no longer show the oldest turns to the model",
        "stop": "refuse the message",
    },
    "markdown": {
        "auto": "as the terminal says",
        "always": "formatted",
        "never": "as the model writes it",
    },
    "color": {
        "auto": "as the terminal, NO_COLOR and FORCE_COLOR say",
        "always": "also into files and pipes",
        "never": "plain text",
    },
}
"""What the values of a setting mean; the device alone may be others too."""

_WORD = re.compile(r"[\w.][\w.,+@%/-]*")
"""What every shell takes for one word as it is. Bash puts in unquoted what it is given."""

_HARMLESS = str.maketrans({"'": "’", '"': "”", "`": "’", "\\": "/", "$": "＄", "[": "(", "]": ")"})
"""Replaces what zsh would run, and what Rich takes for markup, in a text that is not ours."""


def prepare() -> None:
    """Make Typer keep a suggestion on one line where a shell asks for some.

    It breaks lines where the terminal ends, and fish takes each line for another suggestion.
    """
    if "_LLAMA_CHAT_COMPLETE" in os.environ:
        os.environ["TERMINAL_WIDTH"] = "9999"


def completer(setting: Setting) -> Callable[[str], list[Suggestion]] | None:
    """What completes the value of a setting, if anything does."""
    if setting.name == "model":
        return models
    if setting.name == "prompt":
        return prompts
    meanings = _MEANINGS.get(setting.name, {})
    values = [(value, meanings.get(value, "")) for value in setting.choices or meanings]
    return (lambda incomplete: _fitting(incomplete, values)) if values else None


def models(incomplete: str) -> list[Suggestion]:
    """Installed models, and paths."""
    return _with_paths(incomplete, _models())


def prompts(incomplete: str) -> list[Suggestion]:
    """Named prompt files, by folder and name or by name alone, and paths."""
    return _with_paths(incomplete, _prompts(incomplete))


def starters(incomplete: str) -> list[Suggestion]:
    """Models that can be fetched."""
    return _fitting(
        incomplete,
        [
            (name, f"{model.title}, {model.size / 1e6:.0f} MB, {model.licence}")
            for name, model in starter.STARTERS.items()
        ],
    )


def _models() -> Iterator[Suggestion]:
    for name, path in installed_models().items():
        yield name, str(path)


def _prompts(incomplete: str) -> Iterator[Suggestion]:
    for entry in list_prompts():
        short = entry.name.rpartition("/")[2]
        yield (entry.name if entry.name.startswith(incomplete) else short), entry.description


def _paths(incomplete: str) -> Iterator[Suggestion]:
    """What lies in the folder that ``incomplete`` begins to name."""
    folder = incomplete.rpartition("/")[0]
    for path in sorted(Path(folder or ".").iterdir()):
        if not path.name.startswith("."):
            yield (f"{path}/" if path.is_dir() else str(path)), ""


def _fitting(incomplete: str, found: Iterable[Suggestion]) -> list[Suggestion]:
    """Those that begin so, with what they mean made harmless; none where they cannot be listed."""
    try:
        return [
            (word, sanitize(meaning).translate(_HARMLESS))
            for word, meaning in found
            if word.startswith(incomplete) and _WORD.fullmatch(word)
        ]
    except (LlamaChatError, OSError):
        return []


def _with_paths(incomplete: str, found: Iterable[Suggestion]) -> list[Suggestion]:
    """Names and paths that begin so; none where only paths do, which the shell shows better."""
    names = _fitting(incomplete, found)
    return names + _fitting(incomplete, _paths(incomplete)) if names else []
