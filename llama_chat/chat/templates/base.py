"""How a template becomes ids, whatever it says.

A template writes text, as its published form does, and marks which of it was typed by a person.
Control tokens are found in the template's own text alone. Where its tags are ordinary text to the
tokenizer, as those of Llama 2 are, the same tags in a message are spelled character by character,
so that they open and close nothing.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Literal

from llama_chat.chat.conversation import Message, Role
from llama_chat.errors import UsageError
from llama_chat.tokenizers.base import Span, Tokenizer


@dataclass(frozen=True, slots=True)
class Typed:
    """Text of a person, or of a reply that is known only as text."""

    text: str


Part = str | Typed | tuple[int, ...]
"""Text of the template, text of a person, or ids that the model wrote."""


class ChatTemplate(ABC):
    """How a model was taught to tell who says what."""

    name: str
    tags: tuple[str, ...] = ()
    """What marks turns; in a message these are plain text."""
    controls: tuple[str, ...] = ()
    """The control tokens that it cannot do without."""
    before_reply: str = ""
    """What stands between the beginning of the model's turn and its first word."""
    stripped: tuple[Role, ...] = ()
    """Around whose messages white space is dropped."""
    dummy_prefix: Literal["every", "first", "never"] = "every"
    """Which texts begin with the dummy prefix of a SentencePiece vocabulary.

    Control tokens divide a conversation into texts. Published fast tokenizers put a space in front
    of every one of them; those published with ``legacy: false`` only at the very beginning, which
    is never where the template itself begins with BOS.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Make it for a vocabulary.

        Raises:
            UsageError: if the tokenizer lacks a control token of the template.
        """
        for control in self.controls:
            if control not in tokenizer.control_ids:
                raise UsageError(
                    f"template {self.name}",
                    f"the tokenizer of this model has no {control}",
                    "choose another with --template",
                )
        self._tokenizer = tokenizer
        names = [name for name in {*self.controls, *self.tags} if name in tokenizer.control_ids]
        self._control = re.compile(f"({'|'.join(map(re.escape, names)) or '(?!)'})")
        tag = re.compile("|".join(map(re.escape, self.tags)) or "(?!)")
        # A conversation is rendered again at every turn, and at every key for the context meter.
        # The cache must not refer to the template: a cycle would outlive a reload.
        self._encode_once = lru_cache(maxsize=1024)(partial(_encode_text, tokenizer, tag))

    @classmethod
    def is_text(cls, text: str) -> bool:
        """True if a template text found in a checkpoint is this template."""
        return False

    @classmethod
    def is_vocabulary(cls, controls: AbstractSet[str]) -> bool:
        """True if the control tokens of a checkpoint without template text mean this template."""
        return False

    @abstractmethod
    def write(self, messages: Sequence[Message], open_reply: bool) -> Iterator[Part]:
        """What ``render`` gives the ids of."""

    def render(self, messages: Sequence[Message], *, open_reply: bool = False) -> list[int]:
        """The ids of ``messages``: an optional system message, then user and assistant in turn.

        Behind a user message the ids end where the model's reply begins. Behind a reply they end
        where the next message begins; or with ``open_reply`` where that reply goes on.
        """
        return self._encode(self.write(messages, open_reply), self.dummy_prefix)

    def encode_reply(self, text: str) -> tuple[int, ...]:
        """The ids of words that a reply is to begin with; tags among them are spelled out."""
        return tuple(self._encode([self.before_reply, Typed(text)], "never"))

    def find_tags(self, text: str) -> list[str]:
        """The tags of this template that occur in ``text``, each once."""
        return [tag for tag in self.tags if tag in text]

    def words(self, message: Message) -> Iterator[Part]:
        """What a message says: as the model wrote it, else as the reference writes it."""
        if message.ids is not None:
            yield message.ids
            return
        if message.role == "assistant":
            yield self.before_reply
        yield Typed(message.content.strip() if message.role in self.stripped else message.content)

    def _encode(self, parts: Iterable[Part], prefix: str) -> list[int]:
        """Encode each text between ids as a whole."""
        ids: list[int] = []
        text: list[str | Typed] = []
        prefixed = prefix != "never"
        for piece in (*self._pieces(parts), ()):  # no ids end the last text
            if not isinstance(piece, tuple):
                text.append(piece)
                continue
            if text:
                ids += self._encode_once(tuple(text), prefixed)
                prefixed = prefix == "every"
                text.clear()
            ids += piece
        return ids

    def _pieces(self, parts: Iterable[Part]) -> Iterator[Part]:
        """Parts, with an id for each control token in the template's own text."""
        for part in parts:
            if isinstance(part, str):
                for i, piece in enumerate(self._control.split(part)):
                    if i % 2:
                        yield (self._tokenizer.control_ids[piece],)
                    elif piece:
                        yield piece
            else:
                yield part


def _encode_text(
    tokenizer: Tokenizer, tag: re.Pattern[str], parts: tuple[str | Typed, ...], prefixed: bool
) -> list[int]:
    """Encode parts as one text, with the tags in typed parts spelled out."""
    # Nothing merges with a newline in front, so what follows it has no dummy prefix.
    text = "" if prefixed or not tokenizer.dummy_prefix else "\n"
    n_extra = len(tokenizer.encode(text))
    spans: list[Span] = []
    for part in parts:
        if isinstance(part, Typed):
            spans += [
                (len(text) + found.start(), len(text) + found.end())
                for found in tag.finditer(part.text)
            ]
            text += part.text
        else:
            text += part
    return tokenizer.encode(text, spell=spans)[n_extra:]


def is_open(messages: Sequence[Message], i: int, open_reply: bool) -> bool:
    """Whether message ``i`` is a reply that goes on."""
    return open_reply and i + 1 == len(messages) and messages[i].role == "assistant"


def split_system(messages: Sequence[Message]) -> tuple[str | None, Sequence[Message]]:
    """The text of the system message if there is one, and the turns behind it."""
    if messages and messages[0].role == "system":
        return messages[0].content, messages[1:]
    return None, messages
