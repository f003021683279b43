"""Answers of servers: conversion of the objects of a stream to events of a generation."""

import math
import time
from collections.abc import Sequence
from typing import Any

from llama_chat.endpoint.refusals import Refusal, refusal_in
from llama_chat.generation.events import Finish, FinishReason, Timings, Token, Usage
from llama_chat.generation.logprobs import Alternatives
from llama_chat.tokenizers.base import without_surrogates

MAX_TEXT = 2**24
"""Most characters of an answer, more than fit in any context."""

_MIN_KEY = 8
"""Shortest key that is hidden; a shorter one may be an ordinary word."""

_LENGTH = ("length", "max_tokens")


class SeenTokens:
    """The tokens that a server has named, numbered as they appear."""

    def __init__(self, first: int = 0) -> None:
        """Begin with none.

        Args:
            first: the number of the first one.
        """
        self._first = first
        self._numbers: dict[bytes, int] = {}
        self._bytes: list[bytes] = []

    def number(self, token: bytes) -> int:
        """Return the number of a token, which may be new."""
        if token not in self._numbers:
            self._numbers[token] = self._first + len(self._bytes)
            self._bytes.append(token)
        return self._numbers[token]

    def __getitem__(self, number: int) -> bytes:
        """Return the token of that number."""
        return self._bytes[number - self._first]


class Hidden:
    """Filter that removes the key from streamed text, however it is split."""

    def __init__(self, key: str | None) -> None:
        """Hide a key; short ones may be words, and are not hidden."""
        self._key = key if key is not None and len(key) >= _MIN_KEY else None
        self._held = ""

    def whole(self, text: str) -> str:
        """Return a whole text without the key."""
        return text if self._key is None else text.replace(self._key, "…")

    def push(self, text: str) -> str:
        """Return the text that can be passed on; a possible beginning of the key is held back."""
        if self._key is None:
            return text
        known = self.whole(self._held + text)
        n = min(len(self._key) - 1, len(known))
        while not known.endswith(self._key[:n]):
            n -= 1
        self._held = known[len(known) - n :]
        return known[: len(known) - n]

    def flush(self) -> str:
        """Return what is held back."""
        held, self._held = self._held, ""
        return held


class Answer:
    """An answer, as far as it has been received."""

    def __init__(self, seen: SeenTokens, hidden: Hidden) -> None:
        """Begin with nothing.

        Args:
            seen: gives tokens with log-probabilities their numbers.
            hidden: hides the key in the text.
        """
        self._seen = seen
        self.is_complete = False
        """True if the server has said why it ended."""
        self.is_filtered = False
        """True if a filter of the server ended it."""
        self.calls_tool = False
        """True if it ended with the call of a tool."""
        self.n_parts = 0
        """Number of parts with text, or with a token."""
        self._hidden = hidden
        self._half = ""
        self._reason: FinishReason = "stop"
        self._usage: dict[str, int] = {}
        self._size = 0
        self._began = time.perf_counter()
        self._first = self._last = 0.0

    def take(self, found: Any) -> list[Token]:
        """Take the next object of the stream; returns the tokens that it has.

        Raises:
            ValueError: if it is no part of an answer; the message says why.
            RefusedInStream: if it is an error.
        """
        if not isinstance(found, dict):
            raise ValueError("a part of it is no JSON object")
        if found.get("error"):
            raise RefusedInStream(refusal_in(found, self._hidden.whole))
        self._take_usage(found.get("usage"))
        choices = found.get("choices")
        if choices is None or choices == []:
            return []
        if not isinstance(choices, list) or not isinstance(choices[0], dict):
            raise ValueError("choices is not a list of objects")
        return self._take_choice(choices[0])

    def _take_choice(self, choice: dict[str, Any]) -> list[Token]:
        if choice.get("index") not in (None, 0):
            return []
        text = _text_of(choice)
        self._size += len(text)
        if self._size > MAX_TEXT:
            raise ValueError(f"it is longer than {MAX_TEXT >> 20} MiB")
        is_part = bool(text) or _thinks(choice)
        text = self._hidden.push(self._joined(text))
        tokens = self._tokens(choice.get("logprobs"), text)
        if not tokens and text:
            tokens = [Token(-1, text, 0.0)]
        if tokens or is_part:
            self._last = time.perf_counter()
            self._first = self._first or self._last
            self.n_parts += max(len(tokens), 1)
        reason = choice.get("finish_reason")
        if reason is not None:
            if not isinstance(reason, str):
                raise ValueError("its finish_reason is not a text")
            self.is_complete = True
            self._reason = "length" if reason in _LENGTH else "stop"
            self.is_filtered = reason == "content_filter"
            self.calls_tool = reason in ("tool_calls", "function_call")
        return tokens

    def _joined(self, text: str) -> str:
        """Return text without surrogates; the first of a pair waits for the other in ``_half``."""
        text, self._half = self._half + text, ""
        if "\ud800" <= text[-1:] <= "\udbff":
            text, self._half = text[:-1], text[-1]
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")

    def _tokens(self, logprobs: Any, text: str) -> list[Token]:
        """Return the tokens of a part, the first one with its text; none if they are not known."""
        entries = _entries(logprobs) if isinstance(logprobs, dict) else []
        tokens = []
        for token, logprob, others in entries:
            top = tuple((self._seen.number(other), p) for other, p in others)
            tokens.append(Token(self._seen.number(token), text, logprob, _sorted(top)))
            text = ""
        return tokens

    def _take_usage(self, usage: Any) -> None:
        """Keep the counts of tokens; impossible ones are ignored."""
        if not isinstance(usage, dict):
            return
        details = usage.get("prompt_tokens_details")
        names = ("prompt_tokens", "completion_tokens")
        found = {name: count for name in names if (count := _count(usage.get(name))) is not None}
        if len(found) == len(names):
            cached = _count(details.get("cached_tokens")) if isinstance(details, dict) else 0
            self._usage = {**found, "cached_tokens": min(cached or 0, found["prompt_tokens"])}

    def flush(self) -> str:
        """Return the text that is held back, of an answer that ends here."""
        half, self._half = self._half, ""
        return self._hidden.push(without_surrogates(half)) + self._hidden.flush()

    def finish(self, reason: FinishReason | None = None) -> Finish:
        """Return the last event; ``reason`` is that of the server unless it is given."""
        usage = self._usage or {
            "prompt_tokens": 0,
            "cached_tokens": 0,
            "completion_tokens": self.n_parts,
        }
        first = self._first or time.perf_counter()
        ttft_s = first - self._began
        return Finish(
            reason or self._reason,
            self.flush(),
            Usage(**usage, counted_by="server" if self._usage else "chunks"),
            Timings(ttft_s, max(self._last - first, 0.0), ttft_s),
            seed=None,
        )


class RefusedInStream(Exception):
    """The server has sent an error in place of the rest of an answer."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


def _text_of(choice: dict[str, Any]) -> str:
    """Return the text of a part: of a chat or a completion, a stream or a whole answer."""
    parts = [choice.get("text")]
    for name in ("delta", "message"):
        content = choice.get(name)
        if isinstance(content, dict):
            parts += [content.get("content"), content.get("refusal")]
        elif content is not None:
            raise ValueError(f"its {name} is no object")
    texts = [part for part in parts if part is not None]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("its text is not a string")
    return "".join(texts)


def _thinks(choice: dict[str, Any]) -> bool:
    """True if a part belongs to a reasoning, which is not shown."""
    content = choice.get("delta")
    return isinstance(content, dict) and bool(
        content.get("reasoning_content") or content.get("reasoning")
    )


_Entry = tuple[bytes, float, list[tuple[bytes, float]]]
"""A token with its log-probability, and others at its position."""


def _entries(logprobs: dict[str, Any]) -> list[_Entry]:
    """Return the log-probabilities of a part, of a chat or a completion; none if they are odd."""
    try:
        if isinstance(logprobs.get("content"), list):
            return [
                (*_entry(each), [_entry(other) for other in each.get("top_logprobs") or ()])
                for each in logprobs["content"]
            ]
        tokens, found = logprobs.get("tokens") or (), logprobs.get("token_logprobs") or ()
        top: Sequence[Any] = logprobs.get("top_logprobs") or [None] * len(tokens)
        return [
            (
                _bytes(token),
                _logprob(logprob),
                [(_bytes(other), _logprob(p)) for other, p in (others or {}).items()],
            )
            for token, logprob, others in zip(tokens, found, top, strict=True)
        ]
    except (TypeError, ValueError, AttributeError, KeyError, OverflowError):
        return []


def _entry(entry: dict[str, Any]) -> tuple[bytes, float]:
    data = entry.get("bytes")
    token = bytes(data) if isinstance(data, list) and len(data) < 4096 else _bytes(entry["token"])
    return token, _logprob(entry["logprob"])


def _bytes(token: str) -> bytes:
    return without_surrogates(token).encode()


def _logprob(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise ValueError("a log-probability is no number")
    return max(min(float(value), 0.0), -1e4)


def _sorted(alternatives: Alternatives) -> Alternatives:
    return tuple(sorted(alternatives, key=lambda each: -each[1]))


def _count(value: object) -> int | None:
    """Return a number of tokens; None for what cannot be one."""
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 0 <= value < 2**31 else None
