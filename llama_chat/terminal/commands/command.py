"""What a slash command is."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from llama_chat.chat.conversation import Message
from llama_chat.errors import UsageError
from llama_chat.terminal.chat import Chat

Value = tuple[str, str]
"""A value that an argument may take, and what it means."""


def no_values(chat: Chat, argument: str) -> Iterable[Value]:
    """For a command that has nothing to complete."""
    return ()


@dataclass(frozen=True, slots=True)
class Command:
    """One slash command."""

    name: str
    argument: str
    """How its argument is written; empty if it takes none."""
    help: str
    example: str
    run: Callable[[Chat, str], None]
    values: Callable[[Chat, str], Iterable[Value]] = no_values
    """What may stand behind it; told what stands there now."""
    paths: bool = False
    """Whether a path may stand there too."""

    @property
    def usage(self) -> str:
        """How it is typed."""
        return f"/{self.name} {self.argument}".rstrip()


def whole_number(typed: str, what: str, of: str) -> int:
    """Read a number from 1 that somebody typed behind a command.

    Raises:
        UsageError: if it is none, naming ``what`` command wants the number ``of`` what.
    """
    if not re.fullmatch(r"[1-9]\d{0,8}", typed):
        raise UsageError(what, f"{typed[:40]!r} is not the number of {of}", "give 1 or more")
    return int(typed)


def message_of(chat: Chat, typed: str, what: str) -> Message:
    """The message whose number somebody typed behind a command.

    Raises:
        UsageError: if there is none.
    """
    number = whole_number(typed, what, "a message")
    message = chat.conversation.find(number)
    if message is None:
        raise UsageError(what, f"there is no message {number}", "/tree shows their numbers")
    return message
