"""The command that lists and explains all others."""

from collections.abc import Iterable, Mapping, Sequence

from llama_chat.terminal.chat import Chat
from llama_chat.terminal.commands.command import Command, Value, find

Groups = Mapping[str, Sequence[Command]]
"""Commands by the heading under which they are listed."""

_SENDING = "Enter sends · Alt-Enter or Ctrl-J begins a new line · Ctrl-C stops"
_SEARCHING = "Ctrl-R searches what was typed · Tab completes"
_EDITING = " · Ctrl-G opens the editor"
"""A key that the plain input does not have."""
_ESCAPING = "// in front sends a line that begins with /"


def help_command(groups: Groups) -> Command:
    """Make ``/help`` for the commands that ``groups`` has when it is run."""

    def commands() -> dict[str, Command]:
        return {command.name: command for group in groups.values() for command in group}

    def run(chat: Chat, argument: str) -> None:
        wanted = argument.removeprefix("/").lower()
        group = next((g for heading, g in groups.items() if heading.lower() == wanted), None)
        if not wanted:
            _list_names(chat, groups)
        elif group is not None:
            rows = ((command.usage, command.help) for command in group)
            chat.renderer.table(("", ""), rows, fold=True)
        else:
            _explain(chat, find(commands(), wanted))

    def values(chat: Chat, argument: str) -> Iterable[Value]:
        headings = ((heading.lower(), "these commands") for heading in groups)
        return [*((name, command.help) for name, command in commands().items()), *headings]

    return Command(
        "help", "[command|group]", "All commands, one, or a group.", "/help undo", run, values
    )


def _list_names(chat: Chat, groups: Groups) -> None:
    chat.renderer.table(
        ("", ""),
        (
            (heading, " ".join(f"/{command.name}" for command in group))
            for heading, group in groups.items()
        ),
        fold=True,
    )
    chat.renderer.note("/help NAME explains one; /help sampling, or another group, all of it")
    searching = _SEARCHING if chat.renderer.plain else _SEARCHING + _EDITING
    chat.renderer.note(f"{_SENDING}\n{searching}\n{_ESCAPING}")


def _explain(chat: Chat, command: Command) -> None:
    chat.renderer.note(f"{command.usage}\n  {command.help}\n  for example: {command.example}")
