"""Exchange formats of conversations: a list of messages in JSON, and Markdown."""

from collections.abc import Iterable
from typing import Any, cast

from llama_chat.chat.conversation import Message, Role
from llama_chat.documents import parse_json
from llama_chat.errors import UsageError


def parse_dialog(text: str, where: str) -> list[Message]:
    """Parse a dialog in Meta's format: ``[{"role": "user", "content": "Hello"}, …]``.

    Raises:
        UsageError: if it is not JSON of that shape, or the roles do not alternate.
    """
    what = f"dialog {where!r}"
    shape = 'give a list like [{"role": "user", "content": "Hello"}]'
    try:
        dialog = parse_json(text)
    except ValueError as error:
        raise UsageError(what, str(error), shape) from None
    if not isinstance(dialog, list) or not dialog:
        raise UsageError(what, "it is not a list of messages", shape)
    messages = []
    for number, entry in enumerate(dialog, 1):
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
            raise UsageError(what, f"message {number} has no text as content", shape)
        if entry.get("role") not in ("system", "user", "assistant"):
            raise UsageError(
                what, f"message {number} has an unknown role", "use system, user or assistant"
            )
        messages.append(Message(cast("Role", entry["role"]), entry["content"]))
    turns = messages[1:] if messages[0].role == "system" else messages
    if not turns:
        raise UsageError(what, "it holds a system message only", "add a user message")
    for i, message in enumerate(turns):
        if message.role != ("user", "assistant")[i % 2]:
            raise UsageError(
                what,
                f"message {i + 1 + len(messages) - len(turns)} is of role {message.role}",
                "after a first system message let user and assistant alternate",
            )
    return messages


def to_dialog(messages: Iterable[Message]) -> list[dict[str, Any]]:
    """Return messages as the list that ``parse_dialog`` reads from JSON."""
    return [{"role": message.role, "content": message.content} for message in messages]


def to_markdown(messages: Iterable[Message], title: str) -> str:
    """Return messages as a Markdown document, with a heading for each."""
    names = {"system": "System", "user": "You", "assistant": "Model"}
    parts = [f"# {title}"]
    for message in messages:
        note = " (interrupted)" if message.interrupted else ""
        parts.append(f"## {names[message.role]}{note}\n\n{message.content.strip()}")
    return "\n\n".join(parts) + "\n"
