"""Commands for saved conversations: saving, finding and going on with them."""

from bisect import bisect_right
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import accumulate
from pathlib import Path

from rich.text import Text

from llama_chat.chat import store
from llama_chat.chat.conversation import Conversation
from llama_chat.chat.dialogs import parse_dialog
from llama_chat.chat.prompt_files import read_prompt_text
from llama_chat.chat.records import ModelTag
from llama_chat.errors import LlamaChatError, NothingYetError, UsageError, counted
from llama_chat.files import expand_user, readable_time
from llama_chat.terminal.chat import Chat
from llama_chat.terminal.commands.attachments import drop_unsent
from llama_chat.terminal.commands.command import Command, Value
from llama_chat.terminal.sanitizer import sanitize
from llama_chat.terminal.streams import one_line

_LISTED_MAX = 20
"""Conversations that are listed where none can be picked."""


def _save(chat: Chat, argument: str) -> None:
    if not chat.conversation.all:
        raise NothingYetError("/save")
    chat.file.save(chat.conversation, chat.tag)
    if argument:
        chat.file.rename(_unquoted(argument))
    chat.renderer.note(f"saved as {chat.file.name}")


def _load(chat: Chat, argument: str) -> None:
    name = _unquoted(argument)
    if not argument:
        _sessions(chat, "")
    elif name.endswith(".json"):
        chat.take(_dialog(expand_user(name)), ModelTag())
        chat.file.close()
        drop_unsent(chat)
        _show_end(chat)
    else:
        open_saved(chat, store.find(argument if argument in store.names() else name))


def _unquoted(argument: str) -> str:
    """Return a name without the quotes around it, which a shell needs for blanks."""
    quote, inner = argument[:1], argument[1:-1]
    is_quoted = len(argument) > 1 and quote in "\"'" and argument.endswith(quote)
    return inner if is_quoted and quote not in inner else argument


def open_saved(chat: Chat, path: Path) -> None:
    """Go on with a saved conversation, whose name and last turn are shown.

    Raises:
        UsageError: if it cannot be read.
    """
    chat.open(path)
    drop_unsent(chat)
    chat.renderer.note(f"going on with {path.stem}")
    _show_end(chat)


def _show_end(chat: Chat) -> None:
    earlier = len(chat.conversation.path()) - 2
    if earlier > 0:
        chat.renderer.note(f"{counted(earlier, 'earlier message')}; /history shows all")
    if chat.conversation.head is None and chat.conversation.all:
        chat.renderer.note("all turns are undone; /branch lists them")
    chat.renderer.show(chat.conversation.head)


def _dialog(path: Path) -> Conversation:
    """Read a conversation from a JSON list of messages."""
    messages = parse_dialog(read_prompt_text(path, pipes=False), path.name)
    conversation = Conversation()
    if messages[0].role == "system":
        conversation.system = messages.pop(0).text
    for message in messages:
        conversation.add(message)
    return conversation


def _sessions(chat: Chat, argument: str) -> None:
    entries = store.entries()
    if not entries:
        chat.renderer.note("no conversation is saved yet")
    elif not chat.renderer.plain:
        with suppress(KeyboardInterrupt):
            if name := pick_session(entries, chat.file.path, lambda: chat.interrupts.pending):
                open_saved(chat, store.path_of(name))
    else:
        chat.renderer.table(
            ("", "conversation", "messages", "saved", "begins with"),
            (
                (
                    "●" if entry.path == chat.file.path else "",
                    entry.name,
                    str(entry.n_messages),
                    readable_time(entry.changed),
                    entry.title or entry.problem,
                )
                for entry in entries[:_LISTED_MAX]
            ),
            right=("messages",),
            long={"conversation": 24},
        )
        if (earlier := len(entries) - _LISTED_MAX) > 0:
            chat.renderer.note(f"and {counted(earlier, 'earlier one')}: /search WORDS finds them")
        chat.renderer.note("/load NAME goes on with one")


def pick_session(
    entries: Iterable[store.Entry],
    current: Path | None = None,
    is_ended: Callable[[], bool] = lambda: False,
) -> str | None:
    """Let the user pick a saved conversation, and return its name; see ``picker.pick``."""
    from llama_chat.terminal.picker import PickerRow, pick

    choices = [
        PickerRow(entry.name, _label(entry, is_current=entry.path == current)) for entry in entries
    ]
    return pick("Conversation", choices, _preview, is_ended)


def _label(entry: store.Entry, *, is_current: bool) -> str:
    """Describe a conversation in a line; a name that repeats its first words is left out."""
    name = entry.name if entry.has_own_name or entry.problem else ""
    mark, begins = "●" if is_current else " ", one_line(entry.problem or entry.title)
    cells = f"{mark} {readable_time(entry.changed)}", f"{entry.n_messages:>4}", name, begins
    return "  ".join(filter(None, cells))


def _preview(name: str) -> list[str]:
    """Return the last lines of a saved conversation."""
    from llama_chat.terminal.picker import PREVIEW_LINES

    with suppress(LlamaChatError):
        path = store.read(store.path_of(name)).conversation.path()
        return [
            f"› {message.preview}" if message.role == "user" else message.preview
            for message in path[-PREVIEW_LINES:]
        ]
    return []


def _search(chat: Chat, argument: str) -> None:
    if not argument:
        raise UsageError("/search", "no word is given", "write /search tomatoes")
    found = list(store.search(argument))
    if not found:
        raise UsageError(
            "/search", f"no conversation says {argument[:40]!r}", "/sessions lists them"
        )
    width = chat.renderer.console.width
    for entry, text in found:
        excerpt = Text(sanitize("  " + _excerpt(text, argument, width)))
        excerpt.truncate(width, overflow="ellipsis")
        chat.renderer.line(Text(f"{entry.name}  {readable_time(entry.changed)}", style="bold"))
        chat.renderer.line(excerpt)
    chat.renderer.note("/load NAME goes on with one")


def _excerpt(text: str, words: str, width: int) -> str:
    """Return one line of ``text``, in which ``words`` are within the first columns of ``width``."""
    line = one_line(text)
    ends = list(accumulate(len(character.casefold()) for character in line))
    at = bisect_right(ends, line.casefold().find(one_line(words).casefold()))
    first = max(0, at - width // 6)  # wide characters take two columns
    return ("…" if first else "") + line[first:]


def _session_values(chat: Chat, argument: str) -> Iterable[Value]:
    return [(name, readable_time(changed)) for name, changed in store.dated_names()]


COMMANDS = (
    Command("save", "[name]", "Give the conversation a name.", "/save blue-sky", _save),
    Command(
        "load",
        "[name|FILE.json]",
        "Go on with a saved conversation.",
        "/load blue-sky",
        _load,
        _session_values,
        paths=True,
    ),
    Command("sessions", "", "Pick a saved conversation to go on with.", "/sessions", _sessions),
    Command(
        "search",
        "WORDS",
        "Find the saved conversations that say this.",
        "/search tomatoes",
        _search,
    ),
)
