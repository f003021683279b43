"""Messages, and the tree that retries and edits make of them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

from llama_chat.chat.prompt_files import Example
from llama_chat.errors import UsageError

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True, eq=False)
class Message:
    """One message; a node of the tree by its ``parent``."""

    role: Role
    content: str
    ids: tuple[int, ...] | None = None
    """The ids that the model wrote, verbatim and without the end of the turn; None for a message
    known only as text, which the template encodes."""
    interrupted: bool = False
    """Whether the reply was stopped before the model ended it."""
    parent: "Message | None" = field(default=None, repr=False)


class Conversation:
    """A system message, examples, and a tree of messages with one current path.

    Nothing here knows of the cache: every change only changes what ``messages`` returns.
    """

    def __init__(self, system: str = "", examples: Sequence[Example] = ()) -> None:
        self.system = system
        self.examples = tuple(examples)
        self._head: Message | None = None
        self._replies: list[Message] = []
        self.n_dropped = 0
        """How many of the oldest turns of the path the model is no longer shown."""

    def path(self) -> list[Message]:
        """The messages said so far on the current path, oldest first."""
        path = []
        message = self._head
        while message is not None:
            path.append(message)
            message = message.parent
        return path[::-1]

    def messages(self) -> list[Message]:
        """What the model is shown: system message, examples, and the turns that are not dropped."""
        shown = [Message("system", self.system)] if self.system else []
        for example in self.examples:
            shown += [Message("user", example.user), Message("assistant", example.assistant)]
        return shown + self.path()[2 * self.n_dropped :]

    def add_user(self, content: str) -> None:
        """Say something, behind a finished reply."""
        self._head = Message("user", content, parent=self._head)

    def add_reply(
        self, content: str, ids: Sequence[int] | None, *, interrupted: bool = False
    ) -> None:
        """Record what the model answered to the last message."""
        verbatim = None if ids is None else tuple(ids)
        self._head = Message("assistant", content, verbatim, interrupted, self._head)
        self._replies.append(self._head)

    def reopen(self) -> Message | None:
        """Go back to the last user message, keeping its reply as a version; None if none."""
        while self._head is not None and self._head.role == "assistant":
            self._head = self._head.parent
        return self._head

    def versions(self) -> list[Message]:
        """All replies ever given to the last user message of the path, oldest first."""
        question = self._head
        if question is not None and question.role == "assistant":
            question = question.parent
        return [reply for reply in self._replies if reply.parent is question]

    def undo(self, turns: int = 1) -> list[Message]:
        """Go back before the last ``turns`` user messages, and return those."""
        undone: list[Message] = []
        while len(undone) < turns and (question := self.reopen()) is not None:
            undone.append(question)
            self._head = question.parent
        self.n_dropped = min(self.n_dropped, len(self.path()) // 2)
        return undone

    def clear(self) -> None:
        """Forget all turns; the system message and the examples stay."""
        self._head = None
        self._replies.clear()
        self.n_dropped = 0

    def drop_oldest(self) -> bool:
        """Stop showing the oldest turn to the model; False if only the last message is left."""
        if len(self.path()) - 2 * self.n_dropped <= 2:
            return False
        self.n_dropped += 1
        return True


def parse_dialog(text: str, where: str) -> list[Message]:
    """Read a dialog as Meta writes it: ``[{"role": "user", "content": "Hello"}, …]``.

    Raises:
        UsageError: if it is not JSON of that shape, or the roles do not alternate.
    """
    what = f"dialog {where!r}"
    shape = 'give a list like [{"role": "user", "content": "Hello"}]'
    try:
        dialog = json.loads(text)
    except (ValueError, RecursionError):
        raise UsageError(what, "it is not JSON", shape) from None
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
