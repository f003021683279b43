"""Chat templates: from messages to ids.

A closed list, rendered here and never from a template text found in a file. Control ids come from
the template alone. Where a template's tags are ordinary text to the tokenizer, as those of Llama 2
are, the same tags in a message are spelled character by character, so that they open and close
nothing.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from llama_chat.chat.conversation import Message
from llama_chat.errors import UsageError
from llama_chat.tokenizers.base import Span, Tokenizer


@dataclass(frozen=True, slots=True)
class _Part:
    """A piece of a segment: text of the template, or of a person."""

    text: str
    typed: bool = False


class ChatTemplate(ABC):
    """How a model was taught to tell who says what."""

    name: str
    tags: tuple[str, ...] = ()
    """What marks turns; in a message these are plain text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        # A conversation is rendered again at every turn, and at every key for the context meter.
        self._encode_once = lru_cache(maxsize=1024)(self._encode_parts)

    @abstractmethod
    def render(self, messages: Sequence[Message], *, open_reply: bool = False) -> list[int]:
        """The ids of ``messages``: an optional system message, then user and assistant in turn.

        Behind a user message the ids end where the model's reply begins. Behind a reply they end
        where the next message begins; or with ``open_reply`` where that reply goes on.
        """

    def encode_reply(self, text: str) -> tuple[int, ...]:
        """The ids of words that a reply is to begin with; tags among them are spelled out."""
        return self._encode(_Part(text, typed=True))

    def find_tags(self, text: str) -> list[str]:
        """The tags of this template that occur in ``text``, each once."""
        return [tag for tag in self.tags if tag in text]

    def _encode(self, *parts: _Part) -> tuple[int, ...]:
        """Encode parts as one text, with the tags in typed parts spelled out."""
        return self._encode_once(parts)

    def _encode_parts(self, parts: tuple[_Part, ...]) -> tuple[int, ...]:
        text = ""
        spans: list[Span] = []
        for part in parts:
            if part.typed and self.tags:
                pattern = "|".join(map(re.escape, self.tags))
                spans += [
                    (len(text) + found.start(), len(text) + found.end())
                    for found in re.finditer(pattern, part.text)
                ]
            text += part.text
        return tuple(self._tokenizer.encode(text, spell=spans))

    def _control(self, name: str) -> int:
        """The id of a control token.

        Raises:
            UsageError: if the tokenizer has none of that name.
        """
        token_id = self._tokenizer.control_ids.get(name)
        if token_id is None:
            raise UsageError(
                f"template {self.name}",
                f"the tokenizer of this model has no {name}",
                "choose another with --template",
            )
        return token_id


class Llama2Template(ChatTemplate):
    """``[INST] … [/INST]`` as Meta encodes it, one ``encode`` per turn."""

    name = "llama2"
    tags = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer)
        self._bos, self._eos = self._control("<s>"), self._control("</s>")

    def render(self, messages: Sequence[Message], *, open_reply: bool = False) -> list[int]:
        """See the base class. The system message is folded into the first user message."""
        system = messages[0].content if messages and messages[0].role == "system" else None
        turns = messages if system is None else messages[1:]
        ids: list[int] = []
        for i in range(0, len(turns), 2):
            parts = self._instruction(turns[i].content, system if i == 0 else None)
            ids.append(self._bos)
            if i + 1 == len(turns):
                ids += self._encode(*parts)
                break
            reply = turns[i + 1]
            is_open = open_reply and i + 2 == len(turns)
            if reply.ids is None:
                typed = _Part(reply.content.strip(), typed=True)
                ids += self._encode(*parts, _Part(" "), typed, _Part("" if is_open else " "))
            else:
                ids += [*self._encode(*parts), *reply.ids]
            if not is_open:
                ids.append(self._eos)
        return ids

    def _instruction(self, user: str, system: str | None) -> list[_Part]:
        """A user message in its tags. White space is stripped around the whole of it."""
        if system is None:
            inner = [_Part(user.strip(), typed=True)]
        else:
            last = user.rstrip()
            close = "\n<</SYS>>" if not last else "\n<</SYS>>\n\n"
            inner = [_Part("<<SYS>>\n"), _Part(system, typed=True), _Part(close)]
            inner.append(_Part(last, typed=True))
        return [_Part("[INST] "), *inner, _Part(" [/INST]")]


class ChatMLTemplate(ChatTemplate):
    """``<|im_start|>role … <|im_end|>``, one line of the template behind each message."""

    name = "chatml"
    tags = ("<|im_start|>", "<|im_end|>")

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer)
        self._start, self._end = self._control("<|im_start|>"), self._control("<|im_end|>")
        self._newline = tokenizer.encode("\n")
        self._reply = tokenizer.encode("assistant\n")

    def render(self, messages: Sequence[Message], *, open_reply: bool = False) -> list[int]:
        """See the base class."""
        ids: list[int] = []
        for message in messages:
            ids.append(self._start)
            if message.ids is None:
                content = _Part(message.content, typed=True)
                ids += self._encode(_Part(message.role + "\n"), content)
            else:
                ids += [*self._reply, *message.ids]
            if not (open_reply and message is messages[-1] and message.role == "assistant"):
                ids += [self._end, *self._newline]
        if messages and messages[-1].role == "user":
            ids += [self._start, *self._reply]
        return ids


class PlainTemplate(ChatTemplate):
    """No roles: the texts one under another, for models that only continue text."""

    name = "plain"

    def render(self, messages: Sequence[Message], *, open_reply: bool = False) -> list[int]:
        """See the base class."""
        tokenizer = self._tokenizer
        ids = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
        for i, message in enumerate(messages):
            before = "\n" if i else ""
            if message.ids is None:
                ids += self._encode(_Part(before + message.content))
            else:
                ids += message.ids
        if messages and messages[-1].role == "user":
            ids += tokenizer.encode("\n")
        return ids


TEMPLATES: dict[str, type[ChatTemplate]] = {
    template.name: template for template in (Llama2Template, ChatMLTemplate, PlainTemplate)
}


def recognise(template_text: str | None, tokenizer: Tokenizer) -> str | None:
    """Tell which template a checkpoint means, by the template text or the tokens in it.

    Returns:
        A name of ``TEMPLATES``, or None if it is none of them.
    """
    if template_text is not None:
        if "<|im_start|>" in template_text:
            return "chatml"
        return "llama2" if "[INST]" in template_text and "<<SYS>>" in template_text else None
    if {"<|im_start|>", "<|im_end|>"} <= tokenizer.control_ids.keys():
        return "chatml"
    # Meta's own release holds no template, and nothing else has these control tokens alone.
    return "llama2" if set(tokenizer.control_ids) <= {"<unk>", "<s>", "</s>"} else None


def choose_template(name: str, template_text: str | None, tokenizer: Tokenizer) -> ChatTemplate:
    """The template called ``name``, or for ``auto`` the one the checkpoint means.

    Raises:
        UsageError: if it means none that is known, or the tokenizer lacks its tokens.
    """
    if name == "auto":
        found = recognise(template_text, tokenizer)
        if found is None:
            raise UsageError(
                "chat template",
                "that of this model is not known",
                f"choose one with --template: {', '.join(TEMPLATES)}",
            )
        name = found
    return TEMPLATES[name](tokenizer)
