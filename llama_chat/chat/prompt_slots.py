"""Slots of prompt files: ``{{stdin}}``, ``{{file:PATH}}`` and ``{{name}}``.

They are filled after the file is parsed, so a value never acts as TOML syntax. Slots in a value are
not filled, and like any text a value never becomes a control token.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

from llama_chat.chat.conversation import Example
from llama_chat.chat.prompt_files import PromptFile
from llama_chat.errors import UsageError, did_you_mean
from llama_chat.files import (
    MAX_PROMPT_BYTES,
    expand_user,
    prompt_too_large,
    read_text,
    without_final_newline,
)

STDIN = "stdin"
"""Name of the slot of stdin, which no variable can have."""

NAME = r"[^\W\d][\w.-]*"
"""Pattern of the names of slots."""

_SLOT = re.compile(
    r"\{\{ *(?:file: *(?P<path>[^{}\s](?:[^{}\n]*[^{}\s])?)|(?P<name>" + NAME + r")) *\}\}"
)

_ESCAPE = "{{"
"""Prefix that makes a slot plain text; it is removed."""


def slot_names(prompt: PromptFile) -> set[str]:
    """Return the names in the slots of a prompt file, ``stdin`` among them."""
    slots = (slot for text in _texts(prompt) for slot, is_escaped in _slots(text) if not is_escaped)
    return {slot["name"] for slot in slots if slot["name"]}


def fill(
    prompt: PromptFile, values: Mapping[str, str], stdin: Callable[[], str] | None = None
) -> PromptFile:
    """Fill the slots in the texts of a prompt file.

    Args:
        prompt: the file; paths in it are relative to its folder.
        values: texts by the names of slots.
        stdin: reads the text of ``{{stdin}}``; None where there is none to read.

    Raises:
        UsageError: if a slot has no value, or its file cannot be read.
        PromptTooLongError: if a text becomes too long.
    """
    what, names = f"prompt {str(prompt.path)!r}", slot_names(prompt)
    for name in sorted(names - values.keys() - {STDIN}):
        advice = did_you_mean(name, values, f"give --var {name[:60]}=TEXT", prefix="--var ")
        raise UsageError(what, f"slot {{{{{name[:60]}}}}} has no value", advice)
    if STDIN in names:
        if stdin is None:
            raise UsageError(what, "there is no stdin for {{stdin}}", "use ask, or {{file:PATH}}")
        values = {**values, STDIN: stdin()}
    filled = partial(_fill, what, values, cache(partial(_read, what, prompt.path.parent)))
    return replace(
        prompt,
        text=None if prompt.text is None else filled(prompt.text),
        system=filled(prompt.system),
        examples=tuple(
            Example(filled(each.user), filled(each.assistant)) for each in prompt.examples
        ),
        queries=tuple(map(filled, prompt.queries)),
    )


def _texts(prompt: PromptFile) -> Iterator[str]:
    """Yield the texts of a prompt file that may have slots."""
    yield from (prompt.text or "", prompt.system, *prompt.queries)
    for example in prompt.examples:
        yield from (example.user, example.assistant)


def _slots(text: str) -> Iterator[tuple[re.Match[str], bool]]:
    """Yield the slots in a text, each with whether it is escaped."""
    done = 0
    for slot in _SLOT.finditer(text):
        yield slot, text.endswith(_ESCAPE, done, slot.start())
        done = slot.end()


def _fill(what: str, values: Mapping[str, str], read: Callable[[str], str], text: str) -> str:
    parts: list[str] = []
    done, left = 0, MAX_PROMPT_BYTES
    for slot, is_escaped in _slots(text):
        if is_escaped:
            before, value = slot.start() - len(_ESCAPE), slot[0]
        else:
            before = slot.start()
            value = read(slot["path"]) if slot["path"] else values[slot["name"]]
        parts += [text[done:before], value]
        done = slot.end()
        left -= len(value.encode("utf-8", "replace"))
        if left < 0:  # a few slots of a large text would fill the memory
            raise prompt_too_large(f"{what} with its slots filled")
    return "".join([*parts, text[done:]])


def _read(what: str, folder: Path, path: str) -> str:
    slot = f"{what}, slot {f'{{{{file:{path[:80]}}}}}'!r}"
    file = folder / expand_user(path)
    return without_final_newline(
        read_text(file, slot, "check the path", MAX_PROMPT_BYTES, pipes=False, must_fit=True)
    )
