"""Base class of chat templates, which encodes the text that a template writes.

A template writes the published format as text, and marks the parts that come from messages.
Control tokens are recognised only in the template's own text. Where its tags are ordinary text to
the tokenizer, as in Llama 2, the same tags in a message are encoded character by character, so
that they do not act as tags.
"""

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from itertools import dropwhile, takewhile
from typing import Literal

from llama_chat.chat.conversation import Message, Role
from llama_chat.errors import UsageError
from llama_chat.files import without_final_newline
from llama_chat.tokenizers.base import Span, Tokenizer


@dataclass(frozen=True, slots=True)
class Typed:
    """Text of a message, in which tags and control tokens are plain text."""

    text: str


Part = str | Typed | tuple[int, ...]
"""Text of the template, text of a message, or token ids."""

Run = tuple[str | Typed, ...]
"""Texts that are encoded as one."""

_REPLY = Message("assistant", "B", ids=(-1,))
"""Sample reply, with an id that is no token."""

Origin = Literal["control", "template", "message"]
"""Origin of a token; one that spans template and message text is the message's."""


class ChatTemplate(ABC):
    """Chat template: the format of turns and roles that a model was trained with."""

    name: str
    tags: tuple[str, ...] = ()
    """Tags that mark turns; in a message they are plain text."""
    controls: tuple[str, ...] = ()
    """Control tokens that the tokenizer must have."""
    note: str = ""
    """Line for the user about how the template was chosen, if it needs one."""
    before_reply: str = ""
    """Text between the beginning of the model's turn and its first word."""
    stripped: tuple[Role, ...] = ()
    """Roles whose messages are stripped of white space at both ends."""
    begins_text: bool = False
    """True if a reply follows a control token, so that the tokenizer begins a text with it."""
    leaves_bos: bool = False
    """True if the published template does not write BOS, but leaves it to the tokenizer."""
    texts_apart: bool = False
    """True if the published code encodes each text between control tokens separately, so that the
    tokenizer treats each of them as the first."""

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
        known = (name for name in self.own_controls(tokenizer) if name in tokenizer.control_ids)
        names = sorted(known, key=len, reverse=True)  # of two that match, the longer
        self._control = re.compile(f"({'|'.join(map(re.escape, names)) or '(?!)'})")
        tag = re.compile("|".join(map(re.escape, self.tags)) or "(?!)")
        # A conversation is rendered at every turn, and at every key press for the context meter.
        # The cache must not refer to the template: the reference cycle would outlive a reload.
        self._encode_once = lru_cache(maxsize=1024)(partial(_encode_text, tokenizer, tag))
        self._min_once = lru_cache(maxsize=8)(tokenizer.min_tokens)

    def own_controls(self, tokenizer: Tokenizer) -> Iterable[str]:
        """Return the texts that are control tokens where the template writes them."""
        return {*self.controls, *self.tags}

    @abstractmethod
    def write(self, messages: Sequence[Message], open_reply: bool) -> Iterator[Part]:
        """Yield the parts that ``render`` encodes; see there for the arguments."""

    def render(self, messages: Sequence[Message], *, open_reply: bool = False) -> list[int]:
        """Encode ``messages``: an optional system message, then user and assistant alternating.

        After a user message the ids end where the model's reply begins. After a reply they end
        where the next message begins, or with ``open_reply`` where that reply continues.
        """
        return [token_id for ids, _ in self._runs(messages, open_reply) for token_id in ids]

    def origins(self, messages: Sequence[Message], *, open_reply: bool = False) -> list[Origin]:
        """Return where each of the ids that ``render`` returns comes from."""
        control = set(self._tokenizer.control_ids.values())
        found: list[Origin] = []
        for ids, run in self._runs(messages, open_reply):
            if run is None:
                found += ["control" if token_id in control else "message" for token_id in ids]
            else:
                found += _text_origins(self._tokenizer, ids, run)
        return found

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """Control token with which the template ends a reply, if there is one.

        It follows every reply, or every one but the last. BOS and what begins the next turn do not
        count.
        """
        tokenizer, question = self._tokenizer, Message("user", "A")
        try:
            opening = self._own_runs([question])
            last = self._own_runs([question, _REPLY])
            followed = self._own_runs([question, _REPLY, question])
        except UsageError:  # the template refuses such a conversation
            return frozenset()
        begins = set() if tokenizer.bos_id == tokenizer.eos_id else {tokenizer.bos_id}
        if not any(ids and is_control for ids, is_control in last):
            last = followed
            begins.update(*(ids for ids, _ in opening))
        for (ids, is_control), other in zip(last, followed, strict=False):
            if (ids, is_control) != other:
                break
            if is_control and not begins.issuperset(ids):
                return frozenset(ids)
        return frozenset()

    @property
    def fingerprint(self) -> str:
        """Hash that identifies the template."""
        system, user, reply = (
            Message("system", "S"),
            Message("user", "A"),
            Message("assistant", "B"),
        )
        written: list[list[int]] = []
        for sample in ([user], [user, reply, user], [system, user]):
            with suppress(UsageError):  # the template refuses such a conversation
                written.append(self.render(sample))
        return hashlib.sha256(repr(written).encode()).hexdigest()[:16]

    def _own_runs(self, messages: Sequence[Message]) -> list[tuple[tuple[int, ...], bool]]:
        """Return what the template writes before a text of a message, or else after ``_REPLY``.

        Each control token is an item of its own, with True.
        """
        runs = self._runs(messages, False)
        if _REPLY in messages:
            runs = dropwhile(lambda each: each[0] != _REPLY.ids, runs)
            next(runs, None)
        own = takewhile(lambda each: not any(isinstance(p, Typed) for p in each[1] or ()), runs)
        return [(tuple(ids), run is None) for ids, run in own]

    def encode_reply(self, text: str) -> tuple[int, ...]:
        """Encode the text that a reply begins with; tags in it are plain text."""
        pieces = self._pieces([self.before_reply, Typed(text)])
        runs = self._encode(pieces, prefixed=self.begins_text and self._prefixes_later)
        return tuple(token_id for ids, _ in runs for token_id in ids)

    def find_tags(self, text: str) -> list[str]:
        """Return the tags of this template that occur in ``text``, each once."""
        return [tag for tag in self.tags if tag in text]

    def take_note(self) -> str:
        """Return ``note`` the first time, for the user to read it once."""
        note, self.note = self.note, ""
        return note

    def words(self, message: Message) -> Iterator[Part]:
        """Yield the ids of a message if they are known, else its text in the published format."""
        if message.ids is not None:
            yield message.ids
            return
        if message.role == "assistant":
            yield self.before_reply
        yield Typed(message.content.strip() if message.role in self.stripped else message.content)

    def min_tokens(self, messages: Iterable[Message]) -> int:
        """Return a lower bound of the tokens of ``messages``; see ``Tokenizer.min_tokens``."""
        return sum(
            self._min_once(text.strip() if message.role in self.stripped else text)
            for message in messages
            if message.ids is None
            for text in map(without_final_newline, message.texts)
        )

    @property
    def _prefixes_later(self) -> bool:
        """True if texts after a control token also begin with the space of the tokenizer."""
        return self.texts_apart or self._tokenizer.prefix == "every"

    def _runs(
        self, messages: Sequence[Message], open_reply: bool
    ) -> Iterator[tuple[Sequence[int], Run | None]]:
        """Encode a conversation, with BOS first if the template leaves it out; see ``_encode``."""
        tokenizer = self._tokenizer
        if self.leaves_bos and tokenizer.add_bos and tokenizer.bos_id is not None:
            yield (tokenizer.bos_id,), None
        yield from self._encode(self._pieces(self.write(messages, open_reply)), prefixed=True)

    def _encode(
        self, pieces: Iterable[Part], *, prefixed: bool
    ) -> Iterator[tuple[Sequence[int], Run | None]]:
        """Encode each run of texts between ids as a whole; yield its ids, and the run if any.

        The first text of all is ``prefixed`` with the space of the tokenizer.
        """
        text: list[str | Typed] = []
        for piece in (*pieces, ()):  # empty ids end the last text
            if not isinstance(piece, tuple):
                text.append(piece)
                continue
            if text:
                run = tuple(text)
                yield self._encode_once(run, prefixed), run
                text.clear()
            prefixed = self._prefixes_later
            yield piece, None

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
    tokenizer: Tokenizer, tag: re.Pattern[str], parts: Run, prefixed: bool
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


def _text_origins(tokenizer: Tokenizer, ids: Sequence[int], run: Run) -> list[Origin]:
    """Return where the tokens of a run come from."""
    texts = [
        (isinstance(part, Typed), part if isinstance(part, str) else part.text) for part in run
    ]
    by_byte = [typed for typed, text in texts for _ in text.encode("utf-8", "replace")]
    lengths = [len(tokenizer.token_bytes(token_id)) for token_id in ids]
    by_byte[:0] = [False] * (sum(lengths) - len(by_byte))  # the space of the tokenizer
    found: list[Origin] = []
    begin = 0
    for length in lengths:
        found.append("message" if any(by_byte[begin : begin + length]) else "template")
        begin += length
    return found


def is_open(messages: Sequence[Message], i: int, open_reply: bool) -> bool:
    """True if message ``i`` is a last reply that ``open_reply`` keeps open."""
    return open_reply and i + 1 == len(messages) and messages[i].role == "assistant"


def split_system(messages: Sequence[Message]) -> tuple[str | None, Sequence[Message]]:
    """Return the text of the system message, or None without one, and the turns after it."""
    if messages and messages[0].role == "system":
        return messages[0].content, messages[1:]
    return None, messages
