"""Messages, and the tree that retries, edits and branches make of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from llama_chat.files import without_final_newline
from llama_chat.generation.logprobs import TokenLogprobs

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Example:
    """One exchange shown to the model before the conversation."""

    user: str
    assistant: str


@dataclass(frozen=True, slots=True)
class Attachment:
    """A text that stands in front of a message."""

    text: str
    name: str = ""
    """What it is called, as the model is told too; empty for a document from a pipe."""

    @property
    def summary(self) -> str:
        """Its name and its size, for people."""
        n_lines = len(self.text.splitlines())
        return f"{self.name or 'document'}, {n_lines} line{'' if n_lines == 1 else 's'}"

    def __str__(self) -> str:
        text = without_final_newline(self.text)
        return f"{self.name}:\n{text}" if self.name else text


@dataclass(slots=True, eq=False)
class Message:
    """One message; a node of the tree by its ``parent``."""

    role: Role
    text: str
    """What was typed, or what the model wrote."""
    ids: tuple[int, ...] | None = None
    """The ids that the model wrote, verbatim and without the end of the turn; None for a message
    known only as text, which the template encodes."""
    interrupted: bool = False
    """Whether the reply was stopped before the model ended it."""
    attachments: tuple[Attachment, ...] = ()
    parent: "Message | None" = field(default=None, repr=False)
    number: int = 0
    """Its number in the conversation, from 1 in the order of their making; 0 for a system message
    and examples, which are no part of the tree."""
    n_dropped: int = 0
    """How many of the oldest turns before it the model is not shown, since they did not fit."""
    logprobs: TokenLogprobs | None = field(default=None, repr=False)
    """What the model might have written instead; None if that is not known."""

    @property
    def content(self) -> str:
        """What the model is shown: attachments, each with a blank line behind it, and the text."""
        if not self.attachments:
            return self.text
        return "\n\n".join([*map(str, self.attachments), *([self.text] if self.text else [])])

    @property
    def preview(self) -> str:
        """The first line of the text behind the names of the attachments, for lists."""
        names = [f"[{attachment.name or 'document'}]" for attachment in self.attachments]
        lines = [line for line in self.text.splitlines() if line.strip("` \t")] or [self.text]
        telling = next((line for line in lines if not line.startswith("```")), lines[0])
        line = " ".join([*names, telling.strip()])
        return line if len(line) <= 60 else line[:59] + "…"


@dataclass(frozen=True, slots=True)
class Mark:
    """A state of a conversation to which it can return."""

    head: Message | None
    n_messages: int


class Conversation:
    """A system message, examples, and a tree of messages with one current path.

    Nothing here knows of the cache: every change only changes what ``messages`` returns.
    """

    def __init__(self, system: str = "", examples: Sequence[Example] = ()) -> None:
        self.system = system
        self.examples = tuple(examples)
        self.head: Message | None = None
        """The last message of the current path."""
        self._all: list[Message] = []

    @property
    def all(self) -> Sequence[Message]:
        """Every message of every branch, in the order of their numbers."""
        return self._all

    def path(self) -> list[Message]:
        """The messages said so far on the current path, oldest first."""
        return path_to(self.head)

    @property
    def n_dropped(self) -> int:
        """How many of the oldest turns of the path the model is no longer shown."""
        return self.head.n_dropped if self.head else 0

    def preface(self) -> list[Message]:
        """What stands before all turns and is never dropped: system message and examples."""
        shown = [Message("system", self.system)] if self.system else []
        for example in self.examples:
            shown += [Message("user", example.user), Message("assistant", example.assistant)]
        return shown

    def messages(self) -> list[Message]:
        """What the model is shown: system message, examples, and the turns that are not dropped."""
        return self.preface() + self.path()[2 * self.n_dropped :]

    def add(self, message: Message) -> Message:
        """Put ``message`` behind the last one of the path, and return it."""
        message.parent, message.number = self.head, len(self._all) + 1
        self._all.append(message)
        self.head = message
        return message

    def mark(self) -> "Mark":
        """The present state, for ``reset``."""
        return Mark(self.head, len(self._all))

    def reset(self, mark: "Mark") -> None:
        """Drop all messages that were added since ``mark``, and return to its place."""
        self.head = mark.head
        del self._all[mark.n_messages :]

    def question(self) -> Message | None:
        """The last user message of the path; None if there is none."""
        message = self.head
        return message.parent if message is not None and message.role == "assistant" else message

    def children(self, message: Message | None) -> list[Message]:
        """What was said behind ``message``, or first of all for None, oldest first."""
        return [child for child in self._all if child.parent is message]

    def versions(self) -> list[Message]:
        """All replies ever given to the last user message of the path, oldest first."""
        question = self.question()
        return [] if question is None else self.children(question)

    def branches(self) -> list[Message]:
        """The last message of every branch, oldest first."""
        parents = {id(message.parent) for message in self._all}
        return [message for message in self._all if id(message) not in parents]

    def find(self, number: int) -> Message | None:
        """The message of that number; None if there is none."""
        return self._all[number - 1] if 1 <= number <= len(self._all) else None

    def undo(self, turns: int = 1) -> list[Message]:
        """Go back before the last ``turns`` user messages, and return those."""
        undone: list[Message] = []
        while len(undone) < turns and (question := self.question()) is not None:
            undone.append(question)
            self.head = question.parent
        return undone

    def clear(self) -> None:
        """Forget all turns; the system message and the examples stay."""
        self.head = None
        self._all.clear()


def path_to(message: Message | None) -> list[Message]:
    """The messages from the first one to ``message``, oldest first."""
    path = []
    while message is not None:
        path.append(message)
        message = message.parent
    return path[::-1]
