"""Shell completion of names and values, each with its meaning.

Typer calls these functions in a new process at each Tab. So they import nothing slow, and in case
of an error they return no suggestions and print nothing.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import typer

from llama_chat.chat.prompt_files import list_prompts
from llama_chat.errors import LlamaChatError, SaveError, UsageError, reason
from llama_chat.library import installed_models, starter
from llama_chat.settings.setting import Setting
from llama_chat.settings.sources import load_settings
from llama_chat.terminal.sanitizer import sanitize
from llama_chat.terminal.streams import write_own

Suggestion = tuple[str, str]
"""Word, and its meaning."""

_WORD = re.compile(r"[\w.][\w.,+@%/-]*")
"""Words that need no quotes in any shell: bash inserts suggestions unquoted."""

_NAME = re.compile(r"[\w.][\w.,+@%/:-]*")
"""The same with colons, which names of models contain: bash completes up to one."""

_REPLACEMENTS = str.maketrans(
    {"'": "’", '"': "”", "`": "’", "\\": "/", "$": "＄", "[": "(", "]": ")"}
)
"""Replacements for characters that zsh would evaluate or Rich take for markup."""


_REQUEST = "_LLAMA_CHAT_COMPLETE"
"""Variable in which the script of a shell asks for completions."""

_SHELLS = ("bash", "zsh", "fish", "powershell", "pwsh")
"""Shells that Typer has scripts for."""


def is_requested() -> bool:
    """True if the program runs for the completion of a shell."""
    return bool(os.environ.get(_REQUEST))


def prepare() -> None:
    """Check the request, if the program runs for shell completion, and set the width of its answer.

    Typer wraps lines at the width of the terminal, and fish takes each line for a suggestion.

    Raises:
        UsageError: if no script of a shell makes such a request.
    """
    request = os.environ.get(_REQUEST)
    if not request:
        return
    os.environ["TERMINAL_WIDTH"] = "9999"
    instruction, _, shell = request.partition("_")
    has_line = "COMP_WORDS" in os.environ and os.environ.get("COMP_CWORD", "").isdecimal()
    if (
        instruction not in ("complete", "source")
        or shell not in _SHELLS
        or (request == "complete_bash" and not has_line)
    ):
        raise UsageError(
            "completion",
            f"request {request[:40]!r} is not from a completion script",
            "make the script again: llama-chat --show-completion",
        )


def guard_options(options: Iterable[Any]) -> None:
    """Make failures of Typer's own options for completion errors of ours."""
    for option in options:
        if option.name in ("show_completion", "install_completion") and option.callback:
            option.callback = _guarded(option.callback)


def _guarded(callback: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(ctx: typer.Context, option: typer.CallbackParam, value: object) -> object:
        written = StringIO()
        try:
            with redirect_stdout(written), redirect_stderr(written):
                return callback(ctx, option, value)
        except SystemExit:  # the end of a success
            write_own(written.getvalue())
            raise
        except typer.Exit:
            why, advice = "this shell is not known", "call it in bash, zsh or fish"
            raise UsageError(option.opts[0], why, advice) from None
        except (OSError, UnicodeDecodeError) as error:
            why = reason(error) if isinstance(error, OSError) else "a startup file is not UTF-8"
            advice = "store what --show-completion prints yourself"
            raise SaveError(option.opts[0], why, advice) from None

    return guarded


def completer(setting: Setting) -> Callable[[str], list[Suggestion]] | None:
    """Return the function that completes the value of a setting, if there is one."""
    if setting.name == "model":
        return models
    if setting.name == "prompt":
        return prompts
    values = setting.values
    return (lambda incomplete: _matching(incomplete, values.items())) if values else None


def models(incomplete: str) -> list[Suggestion]:
    """Installed models, and paths."""
    return _with_paths(incomplete, _models(), _NAME)


def own_models(incomplete: str) -> list[Suggestion]:
    """Models in our own folder."""
    return _matching(incomplete, _own_models(), _NAME)


def prompts(incomplete: str) -> list[Suggestion]:
    """Named prompt files, by folder and name or by name alone, and paths."""
    return _with_paths(incomplete, _prompts(incomplete))


def conversations(incomplete: str) -> list[Suggestion]:
    """Names of saved conversations, the latest first."""
    return _matching(incomplete, _conversations())


def starters(incomplete: str) -> list[Suggestion]:
    """Models that can be fetched."""
    return _matching(
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
    from llama_chat.chat import store  # every command imports this module

    for name in store.names():
        yield name, ""


def _prompts(incomplete: str) -> Iterator[Suggestion]:
    for entry in list_prompts():
        short = entry.name.rpartition("/")[2]
        yield (entry.name if entry.name.startswith(incomplete) else short), entry.description


def _paths(incomplete: str) -> Iterator[Suggestion]:
    """Yield the visible entries of the folder of the path ``incomplete``."""
    folder = incomplete.rpartition("/")[0]
    for path in sorted(Path(folder or ".").iterdir()):
        if not path.name.startswith("."):
            yield (f"{path}/" if path.is_dir() else str(path)), ""


def _matching(
    incomplete: str, found: Iterable[Suggestion], shape: re.Pattern[str] = _WORD
) -> list[Suggestion]:
    """Return the suggestions that begin with ``incomplete``, made safe; none if listing fails."""
    try:
        return [
            (word, sanitize(meaning).translate(_REPLACEMENTS))
            for word, meaning in found
            if word.startswith(incomplete) and shape.fullmatch(word)
        ]
    except (LlamaChatError, OSError):
        return []


def _with_paths(
    incomplete: str, found: Iterable[Suggestion], shape: re.Pattern[str] = _WORD
) -> list[Suggestion]:
    """Return matching names and paths; none if only paths match: the shell shows these better."""
    names = _matching(incomplete, found, shape)
    return names + _matching(incomplete, _paths(incomplete)) if names else []
