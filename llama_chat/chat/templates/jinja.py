"""Any chat template that a model ships, rendered by Jinja in a process of its own."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache, partial

from llama_chat.chat.conversation import Message
from llama_chat.chat.templates import masking
from llama_chat.chat.templates.base import ChatTemplate, Part, Typed, is_open
from llama_chat.chat.templates.jinja_renderer import JinjaRenderer
from llama_chat.chat.templates.masking import Written
from llama_chat.errors import UsageError
from llama_chat.tokenizers.base import Tokenizer, without_surrogates

_TAG = re.compile(r"<<?/?[^\s<>'\"{}]{1,60}>>?|\[/?[A-Z][A-Za-z_]{1,40}\]")
"""Tags in the text of a template, such as ``<|user|>``, ``<<SYS>>`` and ``[/INST]``."""

_NO_TIME = datetime.min.isoformat()

_SAMPLE = (Message("user", "A"), Message("assistant", "B"), Message("user", "C"))


@dataclass(frozen=True, slots=True)
class _Turn:
    """A message as the template is given it."""

    role: str
    content: str
    is_sought: bool
    """True to find it again as a whole."""


class JinjaTemplate(ChatTemplate):
    """Template text of a model.

    Its control tokens are recognised in its own text. Tags that are ordinary text to the tokenizer
    are spelled in messages, as in the templates implemented here.
    """

    name = "jinja"

    def __init__(self, tokenizer: Tokenizer, text: str, tokens: Mapping[str, str]) -> None:
        """Render a short conversation, to learn how the template begins a reply.

        Args:
            tokenizer: the tokenizer of the model.
            text: the template.
            tokens: the tokens that it may name, such as ``bos_token``.

        Raises:
            UsageError: if the template is refused or fails.
        """
        renderer = JinjaRenderer(text)
        # The cache must not refer to the template: the reference cycle would outlive a reload.
        controls = tuple(tokenizer.control_ids)
        self._write = lru_cache(maxsize=64)(partial(_write, renderer, dict(tokens), controls))
        self._fingerprint = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]
        self._has_clock = "strftime_now" in text
        try:
            asked, *others = samples = self._samples()
        except UsageError:
            renderer.close()
            raise
        self._prompt = asked.own()[-1]
        """Text between a user message and the reply to it."""
        self.before_reply = _blanks_before_reply(self._prompt, others)
        own = "\n".join(part for sample in samples for part in sample.own())
        # BOS and EOS, which a template names, are no tags: text of theirs is plain in any case.
        written = set(_TAG.findall(own)) - set(tokens.values())
        self.tags = tuple(sorted({*_TAG.findall(text), *written}))
        super().__init__(tokenizer)
        self.begins_text = bool(self._prompt) and not self._control.split(self._prompt)[-1]

    @property
    def fingerprint(self) -> str:
        """Hash of its text, which may write the date."""
        return self._fingerprint

    def own_controls(self, tokenizer: Tokenizer) -> Iterable[str]:
        """See the base class."""
        return tokenizer.control_ids

    def min_tokens(self, messages: Iterable[Message]) -> int:
        """Return 0: a template may leave out any part of a message."""
        return 0

    def find_tags(self, text: str) -> list[str]:
        """Return the tags of this template and the control tokens that occur in ``text``."""
        controls = (name for name in self._tokenizer.control_ids if name in text)
        return list(dict.fromkeys([*super().find_tags(text), *controls]))

    def write(self, messages: Sequence[Message], open_reply: bool) -> Iterator[Part]:
        """See the base class. A conversation without a user message may have no beginning yet."""
        if not messages:
            return
        last = messages[-1]
        if not is_open(messages, len(messages) - 1, open_reply):
            try:
                written = self._written(messages)
            except UsageError:
                if any(each.role == "user" for each in messages):
                    raise
                return
            yield from self._parts(messages, written)
        elif last.ids is None and (begun := self._begun(messages)) is not None:
            yield from self._parts(messages, begun)
        else:
            if before := messages[:-1]:
                yield from self._parts(before, self._written(before))
            yield from self.words(last)

    def _written(self, messages: Sequence[Message], sought: Message | None = None) -> Written:
        """Return what the template writes for ``messages``, asking for a reply to a user message.

        Messages with ids and ``sought`` are found again in it.
        """
        turns = tuple(_turn(message, message is sought) for message in messages)
        return self._write(turns, messages[-1].role == "user", self._now())

    def _now(self) -> str:
        """Return the time that the template is told: to the minute, so that it need not write anew.

        Its prefix also stays the same for so long, if it writes the time.
        """
        if not self._has_clock:
            return _NO_TIME
        return datetime.now().isoformat(timespec="minutes")

    def _begun(self, messages: Sequence[Message]) -> Written | None:
        """Return what the template writes up to the end of the last message, known as text."""
        written = self._written(messages, sought=messages[-1])
        content = messages[-1].content
        for i, (start, end, index) in enumerate(written.messages):
            if index == len(messages) - 1:
                blanks = content[len(content.rstrip()) :]
                end += len(blanks) if written.text.startswith(blanks, end) else 0
                spans = [*written.messages[:i], (start, end, index)]
                return Written(written.text[:end], spans)
        return None

    def _parts(self, messages: Sequence[Message], written: Written) -> Iterator[Part]:
        """Yield the parts of what was written, with the ids of messages whose ids are known."""
        follows_ids = False
        for own, span in zip(written.own(), [*written.messages, None], strict=True):
            start, end, index = span or (0, 0, None)
            ids = None if index is None else messages[index].ids
            if follows_ids and self._control.match(own.lstrip()):
                own = own.lstrip()  # the model ended its reply with that token
            if ids is not None:
                own = self._as_asked(own)
            yield own
            if ids is not None:
                yield ids
            elif end > start:
                yield Typed(written.text[start:end])
            follows_ids = ids is not None

    def _as_asked(self, own: str) -> str:
        """Return the text before a reply as the model saw it, if it differs in its last blanks."""
        asked = self._prompt.rstrip()
        if asked and own.rstrip().endswith(asked):
            return own.rstrip().removesuffix(asked) + self._prompt
        return own

    def _samples(self) -> list[Written]:
        """Return what the template writes for samples; all but the first may fail."""
        found = [self._written(_SAMPLE[:1])]
        for messages in (_SAMPLE, (Message("system", "S"), *_SAMPLE)):
            with suppress(UsageError):
                found.append(self._written(messages, sought=_SAMPLE[1]))
        return found


def _blanks_before_reply(prompt: str, samples: Sequence[Written]) -> str:
    """Return the blanks before a reply that the template does not write to ask for it."""
    for written in samples:
        for own, (_, _, index) in zip(written.own(), written.messages, strict=False):
            blanks = own.removeprefix(prompt)
            if index is not None and own.startswith(prompt) and not blanks.strip():
                return blanks
    return ""


def _turn(message: Message, is_sought: bool) -> _Turn:
    content = without_surrogates(message.content)
    if message.ids is not None:
        return _Turn(message.role, content.strip(), True)
    return _Turn(message.role, content, is_sought)


def _write(
    renderer: JinjaRenderer,
    tokens: Mapping[str, str],
    controls: Sequence[str],
    turns: Sequence[_Turn],
    asks: bool,
    now: str,
) -> Written:
    """Render a conversation; see ``masking.write``.

    Raises:
        UsageError: if the template fails or exceeds a limit.
    """
    roles = [turn.role for turn in turns]
    variables = {"tools": None, "documents": None, **tokens, "add_generation_prompt": asks}

    def render(contents: Sequence[str], masked: Sequence[str]) -> tuple[str, str | None]:
        return renderer.render(roles, contents, masked, variables=variables, now=now)

    contents = [turn.content for turn in turns]
    sought = [turn.is_sought for turn in turns]
    return masking.write(render, contents, sought, words=renderer.words, controls=controls)
