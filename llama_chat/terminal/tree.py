"""Drawing of a conversation with all its branches."""

from collections.abc import Iterator

from rich.cells import cell_len
from rich.text import Text

from llama_chat.chat.conversation import Conversation, Message
from llama_chat.terminal.sanitizer import sanitize

_NAMES = {"user": "you", "assistant": "model", "system": "system"}


def draw_tree(conversation: Conversation, width: int | None = None) -> list[Text]:
    """Draw a line for each message, at most ``width`` columns wide, indented only at forks.

    For two answers to one question, and a turn after the second::

        1 you    Why is the sky blue?
        ├ 2 model  Because …
        └ 3 model  Light of short waves …
          4 you    And at sunset?
          5 model  Then it …                  ● here
    """
    children: dict[Message | None, list[Message]] = {}
    for message in conversation.all:
        children.setdefault(message.parent, []).append(message)
    path = set(conversation.path())
    lines: list[Text] = []
    # A stack, not a recursion: a conversation may have thousands of messages.
    stack = list(_forks(children.get(None, []), ""))
    while stack:
        message, first, rest = stack.pop()
        here = message is conversation.head
        name = f"{message.number} {_NAMES[message.role]:<6}"
        mark = "  ● here" if here else "  (interrupted)" if message.interrupted else ""
        preview = Text(sanitize(message.preview))
        if width is not None:
            left = width - cell_len(f"{first}{name} {mark}")
            preview.truncate(max(left, 1), overflow="ellipsis")
        line = Text(f"{first}{name} {preview}{mark}")
        line.stylize("bold" if message in path else "dim", len(first))
        lines.append(line)
        stack += _forks(children.get(message, []), rest)
    return lines


def _forks(messages: list[Message], indent: str) -> Iterator[tuple[Message, str, str]]:
    """Yield each message with its indent and that of its descendants; the last message first."""
    if len(messages) == 1:
        yield messages[0], indent, indent
        return
    for message in reversed(messages):
        last = message is messages[-1]
        yield message, indent + ("└ " if last else "├ "), indent + ("  " if last else "│ ")
