"""Slash commands, and the parsing of their arguments."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from llama_chat.chat.conversation import Message
from llama_chat.errors import UsageError, did_you_mean
from llama_chat.terminal.chat import Chat

ALIASES = {
    "quit": "exit",
    "bye": "exit",
    "q": "exit",
    "?": "help",
    "new": "clear",
    "temp": "temperature",
    "topp": "top-p",
    "topk": "top-k",
    "max": "max-tokens",
    "sys": "system",
    "repeat": "repeat-penalty",
}
"""Names of commands in similar programs, and short forms."""

Value = tuple[str, str]
"""Possible value of an argument, and its meaning."""


def no_values(chat: Chat, argument: str) -> Iterable[Value]:
    """Return no values, for a command without completion."""
    return ()


@dataclass(frozen=True, slots=True)
class Command:
    """Slash command."""

    name: str
    argument: str
    """Syntax of its argument; empty if it takes none."""
    help: str
    example: str
    run: Callable[[Chat, str], None]
    values: Callable[[Chat, str], Iterable[Value]] = no_values
    """Lister of the values that complete the argument typed so far."""
    paths: bool = False
    """True if the argument may be a path too."""
    splits: bool = False
    """True if the argument is split as in a shell, where quotes hold blanks together."""
    rare: bool = False
    """True if a beginning of its name means another command, if one of those begins so."""

    @property
    def usage(self) -> str:
        """Syntax of the command, such as ``/undo [n]``."""
        return f"/{self.name} {self.argument}".rstrip()


def find(commands: Mapping[str, Command], name: str) -> Command:
    """Find the command ``name``, or the only one whose name begins with it.

    Of several, the only one that is not rare.

    Raises:
        UsageError: if there is none or more than one; with a suggestion.
    """
    name = ALIASES.get(name.lower(), name.lower())
    if name in commands:
        return commands[name]
    fitting = [command for known, command in commands.items() if name and known.startswith(name)]
    usual = [command for command in fitting if not command.rare]
    if len(fitting) == 1 or len(usual) == 1:
        return (usual or fitting)[0]
    if fitting:
        names = ", ".join("/" + command.name for command in usual or fitting)
        raise UsageError(f"/{name}", "it is ambiguous", names)
    advice = did_you_mean(name, [*commands, *ALIASES], "/help lists the commands", prefix="/")
    raise UsageError(f"/{name}", "no such command", advice)


def whole_number(typed: str, what: str, of: str) -> int:
    """Parse an argument that is a number from 1.

    Args:
        typed: the argument.
        what: the command, for the error message.
        of: the numbered thing, such as ``a version``, for the error message.

    Raises:
        UsageError: if it is not a number from 1.
    """
    if not re.fullmatch(r"[1-9]\d{0,8}", typed):
        raise UsageError(what, f"{typed[:40]!r} is not the number of {of}", "give 1 or more")
    return int(typed)


def message_of(chat: Chat, typed: str, what: str) -> Message:
    """Find the message whose number is the argument of the command ``what``.

    Raises:
        UsageError: if there is none.
    """
    number = whole_number(typed, what, "a message")
    message = chat.conversation.find(number)
    if message is None:
        raise UsageError(what, f"there is no message {number}", "/tree shows their numbers")
    return message
