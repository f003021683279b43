"""Completion of slash commands and their arguments."""

import asyncio
import re
import shlex
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING

from prompt_toolkit.application import get_app
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.completion import (
    CompleteEvent,
    Completer,
    Completion,
    PathCompleter,
    ThreadedCompleter,
)
from prompt_toolkit.document import Document

from llama_chat.errors import LlamaChatError
from llama_chat.terminal.commands import COMMANDS, find_command
from llama_chat.terminal.commands.command import Command, Value
from llama_chat.terminal.sanitizer import sanitize

if TYPE_CHECKING:
    from llama_chat.terminal.chat import Chat

_SPECIAL = re.compile(r"""[\s"'\\]""")
"""Character that a word has only in quotes."""

_IN_QUOTES = re.compile(r'["\\]')
"""Character that has a backslash in front of it in quotes."""


class ChatCompleter(Completer):
    """Completer of command names, then of their values and paths, each with its meaning."""

    def __init__(self, chat: "Chat") -> None:
        self._chat = chat
        self._paths = PathCompleter(expanduser=True)
        self._values: tuple[tuple[str, str], list[Value]] | None = None
        """Last values, and the command and words they are for; listing them may read many files."""

    def forget(self) -> None:
        """List values anew at the next completion."""
        self._values = None

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        """Yield completions of the text before the cursor."""
        text = document.text_before_cursor
        if not text.startswith("/") or "\n" in text:
            return
        name, space, argument = text[1:].partition(" ")
        if not space:
            for command in COMMANDS.values():
                if command.name.startswith(name.lower()):
                    yield Completion(
                        command.name, start_position=-len(name), display_meta=command.help
                    )
            return
        try:
            command = find_command(name)
            values = self._values_of(command, argument)
        except LlamaChatError:
            return
        for value, meaning in values:
            if value.startswith(argument):
                yield Completion(
                    value, start_position=-len(argument), display_meta=sanitize(meaning)
                )
        if command.paths and complete_event.completion_requested:
            # Only for Tab: a listing of files while a name is typed would be noise.
            complete = self._quoted_paths if command.splits else self._paths_from
            with suppress(ValueError):  # a NUL is in no path
                yield from complete(argument, complete_event)

    def _paths_from(self, path: str, event: CompleteEvent) -> Iterable[Completion]:
        return self._paths.get_completions(Document(path), event)

    def _quoted_paths(self, argument: str, event: CompleteEvent) -> Iterable[Completion]:
        """Complete the last word of ``argument``, in quotes if it needs them."""
        word, path = _last_word(argument)
        for found in self._paths_from(path, event):
            full = path + found.text
            if _SPECIAL.search(full):
                escaped = _IN_QUOTES.sub(r"\\\g<0>", full)
                full = f'"{escaped}"'
            yield Completion(full, -len(word), display=found.display)

    def _values_of(self, command: Command, argument: str) -> list[Value]:
        """List the values for the complete words of ``argument``; cached until these change."""
        asked = command.name, argument.rpartition(" ")[0]
        if self._values is None or self._values[0] != asked:
            self._values = asked, list(command.values(self._chat, argument))
        return self._values[1]


def _last_word(argument: str) -> tuple[str, str]:
    """Return the last word as it is typed, perhaps with an open quote, and its text."""
    for start in (0, *(blank.end() for blank in re.finditer(r"\s", argument))):
        word = argument[start:]
        for end in ("x", 'x"', "x'"):
            with suppress(ValueError):  # another quote is open
                shlex.split(argument[:start])
                text, *more = shlex.split(word + end)
                if not more:
                    return word, text.removesuffix("x")
    return "", ""


class MenuCompleter(ThreadedCompleter):
    """Completer for the menu, which lists completions in a thread: keys do not wait for a disk.

    prompt-toolkit lists completions of one text at a time, and of what is typed meanwhile only if
    it begins with that text. They are listed here otherwise: after Ctrl-C, for example.
    """

    _listed = ""
    _typed = ""

    def follow(self, buffer: Buffer) -> None:
        """Complete what is typed in ``buffer`` while other completions are listed."""
        buffer.on_text_insert += self._on_typed
        buffer.on_completions_changed += self._on_listed

    async def get_completions_async(
        self, document: Document, complete_event: CompleteEvent
    ) -> AsyncGenerator[Completion, None]:
        """See ``ThreadedCompleter``."""
        self._listed = document.text
        async with aclosing(super().get_completions_async(document, complete_event)) as found:
            async for completion in found:
                yield completion

    def _on_typed(self, buffer: Buffer) -> None:
        self._typed = buffer.text

    def _on_listed(self, buffer: Buffer) -> None:
        if buffer.complete_state is None and buffer.text == self._typed != self._listed:
            asyncio.get_running_loop().call_soon(self._complete, buffer)  # not before all ends

    def _complete(self, buffer: Buffer) -> None:
        if buffer.complete_while_typing() and not get_app().is_done:
            buffer.start_completion(complete_event=CompleteEvent(text_inserted=True))
