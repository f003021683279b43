"""What Tab offers in a shell: names and values, each with what it means.

Typer asks these functions in a process of its own each time a person presses Tab. So they import
nothing that takes long, and where something is wrong they offer nothing and say nothing.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from llama_chat.chat import store
from llama_chat.chat.prompt_files import list_prompts
from llama_chat.errors import LlamaChatError
from llama_chat.library import installed_models, starter
from llama_chat.settings.setting import Setting
from llama_chat.settings.sources import load_settings
from llama_chat.terminal.sanitizer import sanitize

Suggestion = tuple[str, str]
"""A word, and what it means."""

_WORD = re.compile(r"[\w.][\w.,+@%/-]*")
"""What every shell takes for one word as it is. Bash puts in unquoted what it is given."""

_NAME = re.compile(r"[\w.][\w.,+@%/:-]*")
"""The same with colons, which names of models have: bash completes up to one."""

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
    values = setting.values
    return (lambda incomplete: _fitting(incomplete, values.items())) if values else None


def models(incomplete: str) -> list[Suggestion]:
    """Installed models, and paths."""
    return _with_paths(incomplete, _models(), _NAME)


def own_models(incomplete: str) -> list[Suggestion]:
    """Models in our own folder."""
    return _fitting(incomplete, _own_models(), _NAME)


def prompts(incomplete: str) -> list[Suggestion]:
    """Named prompt files, by folder and name or by name alone, and paths."""
    return _with_paths(incomplete, _prompts(incomplete))


def conversations(incomplete: str) -> list[Suggestion]:
    """Names of saved conversations, the latest first."""
    return _fitting(incomplete, _conversations())


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
    for model in installed_models(load_settings({}, None).model_paths):
        yield model.name, model.summary


def _own_models() -> Iterator[Suggestion]:
    for model in installed_models():
        if model.source == "own":
            yield model.name, model.summary


def _conversations() -> Iterator[Suggestion]:
    for name in store.names():
        yield name, ""


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


def _fitting(
    incomplete: str, found: Iterable[Suggestion], shape: re.Pattern[str] = _WORD
) -> list[Suggestion]:
    """Those that begin so, with what they mean made harmless; none where they cannot be listed."""
    try:
        return [
            (word, sanitize(meaning).translate(_HARMLESS))
            for word, meaning in found
            if word.startswith(incomplete) and shape.fullmatch(word)
        ]
    except (LlamaChatError, OSError):
        return []


def _with_paths(
    incomplete: str, found: Iterable[Suggestion], shape: re.Pattern[str] = _WORD
) -> list[Suggestion]:
    """Names and paths that begin so; none where only paths do, which the shell shows better."""
    names = _fitting(incomplete, found, shape)
    return names + _fitting(incomplete, _paths(incomplete)) if names else []
