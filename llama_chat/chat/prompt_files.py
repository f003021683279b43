"""Prompt files: raw text to continue, or TOML with a system message and examples."""

import codecs
from dataclasses import dataclass, field
from pathlib import Path

from llama_chat.chat.conversation import Example
from llama_chat.documents import read_toml
from llama_chat.errors import UsageError, did_you_mean, reason
from llama_chat.files import (
    MAX_PROMPT_BYTES,
    config_home,
    read_start,
    read_text,
    resource,
    without_final_newline,
)
from llama_chat.settings.definitions import SETTINGS
from llama_chat.settings.setting import Value, check

SETTING_KEYS = tuple(
    name
    for name, setting in SETTINGS.items()
    if setting.scope == "sampling" or name == "max_tokens"
)
"""Settings that a structured (TOML) file may contain."""

DEFAULT_PATTERN = "{user} => {assistant}"

_SUFFIXES = (".toml", ".txt")
"""Suffixes of structured and raw prompts; of two with the same name the structured one is used."""


@dataclass(frozen=True, slots=True)
class PromptFile:
    """A prompt, read and checked."""

    name: str
    path: Path
    text: str | None = None
    """The raw prompt; None if the file is structured."""
    description: str = ""
    system: str = ""
    examples: tuple[Example, ...] = ()
    queries: tuple[str, ...] = ()
    """User texts after the examples, for the model to answer."""
    pattern: str = DEFAULT_PATTERN
    """Format of an example for a model that only continues text."""
    stop: tuple[str, ...] = ()
    settings: dict[str, Value] = field(default_factory=dict)
    """Sampling settings, and ``max_tokens``."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings for the user about a raw prompt."""
        what = f"prompt {str(self.path)!r}"
        if self.text == "":
            return (f"{what}: it is empty: the model begins from nothing",)
        if self.text and self.text[-1] in " \t":
            why = "ends in white space, which makes other tokens than the same without"
            return (f"{what}: {why}",)
        return ()

    @property
    def values(self) -> dict[str, Value]:
        """All settings that the file changes, by name."""
        values = dict(self.settings)
        if self.system:
            values["system"] = self.system
        if self.stop:
            values["stop"] = self.stop
        return values

    def renders(self) -> list[str]:
        """Return the texts to continue: the raw text, or one for each query.

        Each consists of the system message, the examples in the pattern, and a query in the
        pattern up to ``{assistant}``. Without queries, one text ends after the examples.
        """
        if self.text is not None:
            return [self.text]
        before, _, after = self.pattern.partition("{assistant}")
        head = [f"{self.system}\n\n"] if self.system else []
        head += [
            before.replace("{user}", example.user) + example.assistant + after + "\n"
            for example in self.examples
        ]
        tails = [before.replace("{user}", query).rstrip(" \t") for query in self.queries]
        shared = "".join(head)
        return [shared + tail for tail in tails] or [shared.rstrip("\n")]


@dataclass(frozen=True, slots=True)
class PromptEntry:
    """A prompt file that can be loaded by name."""

    name: str
    path: Path
    description: str


def load_prompt(wanted: str, *, pipes: bool = True) -> PromptFile:
    """Read a prompt file: by path, else by name from the user's own, else from the bundled ones.

    With ``pipes`` it may be a pipe; see ``files.read_text``.

    Raises:
        UsageError: if there is none, or it is invalid.
        PromptTooLongError: if it is too large.
    """
    path = _find(wanted)
    if path.suffix == ".toml":
        return _structured(wanted, path, pipes=pipes)
    return raw_prompt(read_prompt_text(path, pipes=pipes, must_fit=True), path)


def raw_prompt(text: str, path: Path) -> PromptFile:
    """Return a prompt of raw text, without one final newline.

    An empty text is allowed, with a warning.
    """
    return PromptFile(path.stem, path, text=without_final_newline(text))


def read_prompt_text(path: Path, *, pipes: bool = True, must_fit: bool = False) -> str:
    """Read a text file named by the user; see ``files.read_text``."""
    what = f"file {str(path)!r}"
    return read_text(path, what, "check the path", MAX_PROMPT_BYTES, pipes=pipes, must_fit=must_fit)


def list_prompts() -> list[PromptEntry]:
    """List the prompt files that can be loaded by name; the user's own hide bundled ones."""
    found: dict[str, Path] = {}
    for folder in _folders():
        for path in _files_below(folder):
            found.setdefault(str(path.relative_to(folder).with_suffix("")), path)
    return [PromptEntry(name, path, _describe(path)) for name, path in sorted(found.items())]


def _folders() -> tuple[Path, Path]:
    """Return the folders of named prompts: the user's own, then the bundled ones."""
    return config_home() / "prompts", resource("prompts")


def _files_below(folder: Path) -> list[Path]:
    """List the prompt files below ``folder``, structured ones first."""
    return [
        path
        for suffix in _SUFFIXES
        for path in sorted(folder.glob(f"**/*{suffix}"))
        if _is_file(path)
    ]


def _is_file(path: Path) -> bool:
    """True if ``path`` is a file; False too in a folder without permission."""
    try:
        return path.is_file()
    except OSError:
        return False


def _describe(path: Path) -> str:
    """Return a one-line description of a prompt file, for lists."""
    try:
        if path.suffix == ".toml":
            table, _ = read_toml(path, "", "", pipes=False)
            description = table.get("description", "")
            if not isinstance(description, str):
                return "cannot be read"
        else:
            # A decoder for streams: the last character may be cut off.
            start = codecs.getincrementaldecoder("utf-8-sig")().decode(read_start(path, 4096))
            description = start.strip().partition("\n")[0]
    except (UsageError, UnicodeDecodeError):
        return "cannot be read"
    return " ".join(description.split())[:70]


def _find(wanted: str) -> Path:
    what = f"prompt {wanted[:80]!r}"
    try:
        path = Path(wanted).expanduser()
        if path.exists() and not (path.is_dir() and "/" not in wanted):
            return path
        for folder in _folders():
            if found := _named(folder, path, what):
                return found
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: unknown ~name
        raise UsageError(what, reason(error), "check the path") from None
    if path.is_dir():
        raise UsageError(what, "it is a folder", "name a file in it")
    names = [entry.name for entry in list_prompts()]
    if len(wanted.split()) > 1 and not path.suffix[1:].isalpha():
        raise UsageError(what, "no such file", "pipe a text itself to llama-chat complete -")
    if "/" in wanted or path.suffix[1:].isalpha():
        advice = did_you_mean(wanted, names, "check the path")
    else:
        advice = did_you_mean(wanted, names, cutoff=0.4)
    raise UsageError(what, "no such file and no prompt of that name", advice)


def _named(folder: Path, wanted: Path, what: str) -> Path | None:
    """Find ``wanted`` in ``folder``: by its path there, else by its file name, else None."""
    if wanted.is_absolute() or ".." in wanted.parts:
        return None
    for suffix in ("",) if wanted.suffix in _SUFFIXES else _SUFFIXES:
        exact = folder / f"{wanted}{suffix}"
        if exact.is_file():
            return exact
    found: dict[Path, Path] = {}
    for path in _files_below(folder):
        if str(wanted) in (path.name, path.stem):
            found.setdefault(path.parent, path)
    if len(found) > 1:
        names = ", ".join(str(path.relative_to(folder)) for path in found.values())
        raise UsageError(what, "several have this name", f"name one of {names}")
    return next(iter(found.values()), None)


_TEXT_KEYS = ("description", "system", "pattern")


def _structured(name: str, path: Path, *, pipes: bool) -> PromptFile:
    what = f"prompt {str(path)!r}"
    table, _ = read_toml(path, what, "check the path", pipes=pipes)
    known = [*_TEXT_KEYS, "examples", "stop", *SETTING_KEYS]
    for key in table:
        if key not in known:
            raise UsageError(what, f"unknown key {key[:60]!r}", did_you_mean(key, known))
    for key in _TEXT_KEYS:
        if not isinstance(table.get(key, ""), str):
            raise UsageError(what, f"{key} is not a text", "put it in quotes")
    pattern = table.get("pattern", DEFAULT_PATTERN)
    if pattern.count("{user}") != 1 or pattern.count("{assistant}") != 1:
        raise UsageError(what, "pattern lacks its two places", f'write "{DEFAULT_PATTERN}"')
    if pattern.index("{user}") > pattern.index("{assistant}"):
        raise UsageError(what, "pattern has the answer first", f'write "{DEFAULT_PATTERN}"')
    stop = table.get("stop", [])
    if not isinstance(stop, list) or not all(isinstance(s, str) and s for s in stop):
        raise UsageError(what, "stop is not a list of texts", 'write stop = ["\\n"]')
    examples, queries = _examples(what, table.get("examples", []))
    system = table.get("system", "")
    if not system.strip() and not examples and not queries:
        raise UsageError(what, "neither system nor examples", "add one of them")
    return PromptFile(
        name,
        path,
        description=table.get("description", ""),
        system=system,
        examples=examples,
        queries=queries,
        pattern=pattern,
        stop=tuple(stop),
        settings={
            key: check(SETTINGS[key], table[key], f"{what}, {key}")
            for key in SETTING_KEYS
            if key in table
        },
    )


def _examples(what: str, entries: object) -> tuple[tuple[Example, ...], tuple[str, ...]]:
    """Return the complete examples, and the user texts after them that have no answer."""
    shape = 'write [[examples]] with user = "…" and assistant = "…"'
    if not isinstance(entries, list):
        raise UsageError(what, "examples is not a list", shape)
    examples: list[Example] = []
    queries: list[str] = []
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or not entry.keys() <= {"user", "assistant"}:
            raise UsageError(what, f"example {number} has other keys", shape)
        user, assistant = entry.get("user"), entry.get("assistant")
        if not isinstance(user, str) or not isinstance(assistant, str | None):
            raise UsageError(what, f"example {number} is not of texts", shape)
        if assistant is None:
            queries.append(user)
        elif queries:
            raise UsageError(
                what, f"example {number} follows one without an answer", "put the open ones last"
            )
        else:
            examples.append(Example(user, assistant))
    return tuple(examples), tuple(queries)
