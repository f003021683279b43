"""The slash commands of the chat."""

import re

from llama_chat.terminal.chat import Chat
from llama_chat.terminal.commands import conversation, files, inspection, sessions, settings
from llama_chat.terminal.commands.command import Command, find
from llama_chat.terminal.commands.help import help_command


def parse_command(line: str) -> tuple[str, str] | None:
    """Split a line into the name of a command and its argument; None if it is a message.

    A line that begins with ``//`` is a message, and so is a path such as ``/etc/hosts``.
    """
    if not line.startswith("/") or line.startswith("//"):
        return None
    name, argument = [*re.split("[ \t]", line[1:], maxsplit=1), ""][:2]
    name, _, below = name.partition("\n")
    return None if "/" in name or below else (name, argument.strip())


def find_command(name: str) -> Command:
    """Find the command ``name``, or the only one whose name begins with it.

    Raises:
        UsageError: if there is none or more than one; with a suggestion.
    """
    return find(COMMANDS, name)


def _exit(chat: Chat, argument: str) -> None:
    chat.leaving = True


GROUPS: dict[str, tuple[Command, ...]] = {
    "Conversation": conversation.COMMANDS,
    "Saved": sessions.COMMANDS,
    "Files": files.COMMANDS,
    "Inspection": inspection.COMMANDS,
    **settings.GROUPS,
}
"""Commands by the heading under which ``/help`` lists them."""

GROUPS["General"] = (
    help_command(GROUPS),
    Command("exit", "", "Leave; so does Ctrl-D.", "/exit", _exit),
)

COMMANDS: dict[str, Command] = {
    command.name: command for commands in GROUPS.values() for command in commands
}
