"""The slash commands of the chat."""

from llama_chat.errors import UsageError, did_you_mean
from llama_chat.terminal.chat import Chat
from llama_chat.terminal.commands import conversation, files, inspection, settings
from llama_chat.terminal.commands.command import Command, Value

ALIASES = {"quit": "exit", "bye": "exit", "q": "exit", "?": "help", "new": "clear"}
"""Names that these commands have in similar programs."""


def parse_command(line: str) -> tuple[str, str] | None:
    """Split a line into the name of a command and its argument; None if it is a message.

    A line that begins with ``//`` is a message, and so is a path such as ``/etc/hosts``.
    """
    if not line.startswith("/") or line.startswith("//"):
        return None
    name, _, argument = line[1:].partition(" ")
    name, _, below = name.partition("\n")
    return None if "/" in name or below else (name, argument.strip())


def find_command(name: str) -> Command:
    """Find the command ``name``, or the only one whose name begins with it.

    Raises:
        UsageError: if there is none or more than one; with a suggestion.
    """
    name = name.lower()
    name = ALIASES.get(name, name)
    if name in COMMANDS:
        return COMMANDS[name]
    fitting = [command for known, command in COMMANDS.items() if name and known.startswith(name)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = ", ".join("/" + command.name for command in fitting)
        raise UsageError(f"/{name}", "more than one command begins so", names)
    advice = did_you_mean(name, COMMANDS, "/help lists the commands", prefix="/")
    raise UsageError(f"/{name}", "no such command", advice)


def _help(chat: Chat, argument: str) -> None:
    if argument:
        command = find_command(argument.removeprefix("/"))
        chat.renderer.note(f"{command.usage}\n  {command.help}\n  for example: {command.example}")
        return
    for group, commands in GROUPS.items():
        chat.renderer.note(group, "bold")
        chat.renderer.table(
            ("", ""), ((f"  {command.usage}", command.help) for command in commands), fold=True
        )
    chat.renderer.note(
        "Enter sends · Alt-Enter or Ctrl-J begins a new line · Ctrl-R searches what was typed · "
        "Ctrl-G opens the editor · Ctrl-C stops · // in front sends a line that begins with /"
    )


def _names(chat: Chat, argument: str) -> list[Value]:
    return [(command.name, command.help) for command in COMMANDS.values()]


def _exit(chat: Chat, argument: str) -> None:
    chat.leaving = True


_GENERAL = (
    Command("help", "[command]", "This list, or one command.", "/help undo", _help, _names),
    Command("exit", "", "Leave; so does Ctrl-D.", "/exit", _exit),
)

GROUPS: dict[str, tuple[Command, ...]] = {
    "Conversation": conversation.COMMANDS,
    "Files": files.COMMANDS,
    "Looking inside": inspection.COMMANDS,
    "Settings": settings.COMMANDS,
    "General": _GENERAL,
}

COMMANDS: dict[str, Command] = {
    command.name: command for commands in GROUPS.values() for command in commands
}
