"""OpenAI-compatible answers, from the events of continuations."""

import codecs
import secrets
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from llama_chat.errors import LlamaChatError, PromptTooLongError, UsageError, error_facts
from llama_chat.generation.events import Event, Finish, Token, Usage, finish_facts
from llama_chat.server.client import CLOSING, OWN_KEY
from llama_chat.tokenizers.base import Tokenizer

_REASONS = {"stop": "stop", "length": "length", "context": "length", "interrupted": "stop"}


class ServerClosingError(LlamaChatError):
    """The server ends before an answer does."""

    def __init__(self) -> None:
        super().__init__("server", "it is shutting down", "try again")


def error_body(
    message: str, kind: str, code: str | None = None, *, field: str | None = None
) -> dict[str, Any]:
    """Return an error in the shape that clients expect.

    Args:
        message: what is wrong.
        kind: its type.
        code: its code, if it has one.
        field: name of the field of the request that it is about, if it is about one.
    """
    return {"error": {"message": message, "type": kind, "param": field, "code": code}}


def error_of(error: LlamaChatError) -> tuple[int, dict[str, Any]]:
    """Return the HTTP status and the body for an error of a request, with its parts."""
    if isinstance(error, ServerClosingError):
        return 503, error_body("the server is shutting down", "server_error", CLOSING)
    status, kind, code = 500, "server_error", None
    if isinstance(error, PromptTooLongError):
        status, kind, code = 400, "invalid_request_error", "context_length_exceeded"
    elif isinstance(error, UsageError):
        status, kind = 400, "invalid_request_error"
    return status, {**error_body(str(error), kind, code), OWN_KEY: error_facts(error)}


@dataclass
class Choice:
    """One continuation, as far as it is generated."""

    tokens: list[Token] = field(default_factory=list)
    text: str = ""
    finish: Finish | None = None

    def add(self, event: Event) -> None:
        """Add its next event."""
        self.text += event.text
        if isinstance(event, Finish):
            self.finish = event
        else:
            self.tokens.append(event)


class _Offset:
    """Number of characters before the next token of a choice, whose last one may be cut."""

    def __init__(self) -> None:
        self._n = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def take(self, token: bytes) -> int:
        """Return the offset of a token, and go past it."""
        start = self._n
        self._n += len(self._decoder.decode(token))
        return start


class Format:
    """Formatter of one answer: of a chat, or of a raw completion."""

    def __init__(
        self,
        *,
        chat: bool,
        model: str,
        tokenizer: Tokenizer,
        n: int,
        n_logprobs: int | None,
        tells_tokens: bool,
    ) -> None:
        """Begin an answer, with an id of its own.

        Args:
            chat: True for replies of a chat.
            model: name of the model.
            tokenizer: its vocabulary.
            n: number of choices for each prompt.
            n_logprobs: number of alternatives for each token; None for no log-probabilities.
            tells_tokens: add the whole event of each token.
        """
        self.has_chunk_per_token = tells_tokens or n_logprobs is not None
        """True for a chunk per token, even if the token completes no text."""
        self._tells_tokens = tells_tokens
        self._n = n
        self._chat = chat
        self._model = model
        self._tokenizer = tokenizer
        self._n_logprobs = n_logprobs
        self._offsets: defaultdict[int, _Offset] = defaultdict(_Offset)
        self._id = ("chatcmpl-" if chat else "cmpl-") + secrets.token_hex(12)
        self._created = int(time.time())

    def whole(self, choices: Sequence[Choice], echoes: Sequence[str] = ()) -> dict[str, Any]:
        """Return the whole answer, once all choices have ended."""
        found = []
        for i, choice in enumerate(choices):
            text = (echoes[i] if echoes else "") + choice.text
            content: dict[str, Any] = {"text": text}
            if self._chat:
                content = {"message": {"role": "assistant", "content": text, "refusal": None}}
            found.append(
                {
                    "index": i,
                    **content,
                    "logprobs": self._logprobs(i, choice.tokens),
                    "finish_reason": self._reason(choice.finish),
                }
            )
        kind = "chat.completion" if self._chat else "text_completion"
        return {**self._head(kind), "choices": found, "usage": self.usage(choices)}

    def first_chunk(self, index: int, echo: str) -> dict[str, Any]:
        """Return the chunk before the first token of a choice."""
        content = {"delta": {"role": "assistant", "content": ""}} if self._chat else {"text": echo}
        return self._chunk(index, content, None, None)

    def chunk(
        self, index: int, event: Event, described: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Return the chunk for an event of a choice; the last one has ``described``, too."""
        content: dict[str, Any] = {"text": event.text}
        if self._chat:
            content = {"delta": {"content": event.text} if event.text else {}}
        is_last = isinstance(event, Finish)
        tokens = [] if isinstance(event, Finish) else [event]
        reason = self._reason(event) if isinstance(event, Finish) else None
        logprobs = None if is_last else self._logprobs(index, tokens)
        chunk = self._chunk(index, content, logprobs, reason)
        if isinstance(event, Token) and self._tells_tokens:
            chunk[OWN_KEY] = {"token": asdict(event)}
        if isinstance(event, Finish):
            chunk[OWN_KEY] = {"finish": finish_facts(event), "described": dict(described or {})}
        return chunk

    def usage_chunk(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """Return the chunk with the counts at the end of a stream."""
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        return {**self._head(kind), "choices": [], "usage": self.usage(choices)}

    def usage(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """Return the counts of tokens; a prompt that several choices continue counts once."""
        written, first = 0, dict[int, Usage]()  # that of the first choice of each prompt
        for i, choice in enumerate(choices):
            if choice.finish is not None:
                written += choice.finish.usage.completion_tokens
                first.setdefault(i // self._n, choice.finish.usage)
        prompt = sum(usage.prompt_tokens for usage in first.values())
        cached = sum(usage.cached_tokens for usage in first.values())
        return {
            "prompt_tokens": prompt,
            "completion_tokens": written,
            "total_tokens": prompt + written,
            "prompt_tokens_details": {"cached_tokens": cached},
        }

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}

    def _chunk(self, index: int, content: Any, logprobs: Any, reason: str | None) -> dict[str, Any]:
        choice = {"index": index, **content, "logprobs": logprobs, "finish_reason": reason}
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        return {**self._head(kind), "choices": [choice]}

    @staticmethod
    def _reason(finish: Finish | None) -> str | None:
        return None if finish is None else _REASONS[finish.reason]

    def _logprobs(self, index: int, tokens: Sequence[Token]) -> dict[str, Any] | None:
        n = self._n_logprobs
        if n is None:
            return None
        if self._chat:
            return {
                "content": [
                    self._entry(token.id, token.logprob)
                    | {"top_logprobs": [self._entry(*other) for other in token.alternatives[:n]]}
                    for token in tokens
                ],
                "refusal": None,
            }
        return {
            "tokens": [self._text(token.id) for token in tokens],
            "text_offset": [self._offsets[index].take(self._bytes(token.id)) for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [
                {self._text(other): logprob for other, logprob in token.alternatives[:n]}
                for token in tokens
            ],
        }

    def _entry(self, token_id: int, logprob: float) -> dict[str, Any]:
        data = self._bytes(token_id)
        return {"token": self._text(token_id), "logprob": logprob, "bytes": list(data)}

    def _bytes(self, token_id: int) -> bytes:
        return self._tokenizer.token_bytes(token_id)

    def _text(self, token_id: int) -> str:
        return self._bytes(token_id).decode("utf-8", "replace")
