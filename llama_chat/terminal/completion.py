"""Completion of slash commands and of what may stand behind them."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document

from llama_chat.errors import LlamaChatError
from llama_chat.terminal.commands import COMMANDS, find_command
from llama_chat.terminal.commands.command import Command, Value
from llama_chat.terminal.sanitizer import sanitize

if TYPE_CHECKING:
    from llama_chat.terminal.chat import Chat


class ChatCompleter(Completer):
    """Completes the name of a command, then its values and paths, each with what it means."""

    def __init__(self, chat: "Chat") -> None:
        self._chat = chat
        self._paths = PathCompleter(expanduser=True)
        self._values: tuple[tuple[str, str], list[Value]] | None = None
        """The last values that were looked up, and for what: they cost a look at many files."""

    def forget(self) -> None:
        """Look up values again when they are next wanted."""
        self._values = None

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        """Yield what fits before the cursor."""
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
            last = argument.rpartition(" ")[2]
            yield from self._paths.get_completions(Document(last), complete_event)

    def _values_of(self, command: Command, argument: str) -> list[Value]:
        """Values that the whole words of ``argument`` allow; looked up once for each of these."""
        asked = command.name, argument.rpartition(" ")[0]
        if self._values is None or self._values[0] != asked:
            self._values = asked, list(command.values(self._chat, argument))
        return self._values[1]
