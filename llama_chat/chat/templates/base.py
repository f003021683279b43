"""Base class of chat templates, which encodes what a template writes.

A template writes the published format as text, and marks the parts that come from messages.
Control tokens are recognised only in the template's own text. Where its tags are ordinary text to
the tokenizer, as in Llama 2, the same tags in a message are encoded character by character, so
that they do not act as tags.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import lru_cache, partial

from llama_chat.chat.conversation import Message, Role
from llama_chat.errors import UsageError
from llama_chat.tokenizers.base import Span, Tokenizer


@dataclass(frozen=True, slots=True)
class Typed:
    """Text of a message, in which tags and control tokens are plain text."""

    text: str


Part = str | Typed | tuple[int, ...]
"""Text of the template, text of a message, or token ids."""


class ChatTemplate(ABC):
    """Chat template: the format of turns and roles that a model was trained with."""

    name: str
    tags: tuple[str, ...] = ()
    """Tags that mark turns; in a message they are plain text."""
    controls: tuple[str, ...] = ()
    """Control tokens that the tokenizer must have."""
    before_reply: str = ""
    """Text between the beginning of the model's turn and its first word."""
    stripped: tuple[Role, ...] = ()
    """Roles whose messages are stripped of white space at both ends."""
    leaves_bos: bool = False
    """True if the published template does not write BOS, but leaves it to the tokenizer."""
    texts_apart: bool = False
    """True if the published code encodes each text between control tokens by itself, so that every
    one of them is a first one for the tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Create the template for a tokenizer.

        Raises:
            UsageError: if the tokenizer lacks a control token of the template.
        """
        for control in self.controls:
            if control not in tokenizer.control_ids:
                lacking = "embedding" if control in tokenizer.rowless else "tokenizer"
                raise UsageError(
                    f"template {self.name}",
                    f"the {lacking} of this model has no {control}",
                    "choose another with --template",
                )
        self._tokenizer = tokenizer
        names = [name for name in {*self.controls, *self.tags} if name in tokenizer.control_ids]
        self._control = re.compile(f"({'|'.join(map(re.escape, names)) or '(?!)'})")
        tag = re.compile("|".join(map(re.escape, self.tags)) or "(?!)")
        # A conversation is rendered at every turn, and at every key press for the context meter.
        # The cache must not refer to the template: the reference cycle would outlive a reload.
        self._encode_once = lru_cache(maxsize=1024)(partial(_encode_text, tokenizer, tag))

    @classmethod
    def is_text(cls, text: str) -> bool:
        """True if a template text found in a checkpoint is this template."""
        return False

    @classmethod
    def is_vocabulary(cls, controls: AbstractSet[str]) -> bool:
        """True if the control tokens of a checkpoint without template text are this template's."""
        return False

    @abstractmethod
    def write(self, messages: Sequence[Message], open_reply: bool) -> Iterator[Part]:
        """Yield the parts that ``render`` encodes; see there for the arguments."""

    def render(self, messages: Sequence[Message], *, open_reply: bool = False) -> list[int]:
        """Encode ``messages``: an optional system message, then user and assistant alternating.

        After a user message the ids end where the model's reply begins. After a reply they end
        where the next message begins, or with ``open_reply`` where that reply continues.
        """
        ids = self._encode(self.write(messages, open_reply), prefixed=True)
        bos_id = self._tokenizer.bos_id
        added = self.leaves_bos and self._tokenizer.add_bos
        return [bos_id, *ids] if added and bos_id is not None else ids

    def encode_reply(self, text: str) -> tuple[int, ...]:
        """Encode the text that a reply begins with; tags in it are plain text."""
        return tuple(self._encode([self.before_reply, Typed(text)], prefixed=False))

    def find_tags(self, text: str) -> list[str]:
        """Return the tags of this template that occur in ``text``, each once."""
        return [tag for tag in self.tags if tag in text]

    def words(self, message: Message) -> Iterator[Part]:
        """Yield the ids of a message if known, else its text as in the published format."""
        if message.ids is not None:
            yield message.ids
            return
        if message.role == "assistant":
            yield self.before_reply
        yield Typed(message.content.strip() if message.role in self.stripped else message.content)

    def _encode(self, parts: Iterable[Part], *, prefixed: bool) -> list[int]:
        """Encode parts, each run of texts between ids as a whole.

        The first text of all is ``prefixed`` with the space of the tokenizer; the later ones too if
        each has it.
        """
        ids: list[int] = []
        text: list[str | Typed] = []
        later = self.texts_apart or self._tokenizer.prefix == "every"
        for piece in (*self._pieces(parts), ()):  # empty ids end the last text
            if not isinstance(piece, tuple):
                text.append(piece)
                continue
            if text:
                ids += self._encode_once(tuple(text), prefixed)
                text.clear()
            ids += piece
            prefixed = later
        return ids

    def _pieces(self, parts: Iterable[Part]) -> Iterator[Part]:
        """Yield the parts, with ids for the control tokens in the template's own text."""
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
    """Encode parts as one text, and the tags in typed parts character by character."""
    text = ""
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
    return tokenizer.encode(text, spell=spans, prefixed=prefixed)


def is_open(messages: Sequence[Message], i: int, open_reply: bool) -> bool:
    """True if message ``i`` is a last reply that ``open_reply`` keeps open."""
    return open_reply and i + 1 == len(messages) and messages[i].role == "assistant"


def split_system(messages: Sequence[Message]) -> tuple[str | None, Sequence[Message]]:
    """Return the text of the system message, or None without one, and the turns after it."""
    if messages and messages[0].role == "system":
        return messages[0].content, messages[1:]
    return None, messages
