"""Completion of slash commands and their values."""

from collections.abc import Iterable

from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document

from llama_chat.errors import UsageError
from llama_chat.terminal.commands import COMMANDS, find_command


class CommandCompleter(Completer):
    """Completes the name of a command, then its value, each with what it means."""

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        """Yield what fits before the cursor."""
        text = document.text_before_cursor
        if not text.startswith("/") or "\n" in text:
            return
        name, space, argument = text[1:].partition(" ")
        if not space:
            choices = [(command.name, command.help) for command in COMMANDS.values()]
            word = name
        else:
            try:
                choices = list(find_command(name).values())
            except UsageError:
                return
            word = argument
        for value, meaning in choices:
            if value.startswith(word):
                yield Completion(value, start_position=-len(word), display_meta=meaning)
