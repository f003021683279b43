"""Error responses of servers, as one line with a next step."""

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any

from llama_chat.documents import parse_json
from llama_chat.endpoint.address import KEY_VARIABLE
from llama_chat.errors import LlamaChatError, PromptTooLongError, UsageError, counted

_MAX_WORDS = 200
"""Characters of the message of a server in an error."""

_TOO_LONG = re.compile(
    r"context[ _](length|window|size)|maximum context|too many tokens|do(es)? not fit|"
    r"prompt is too long|exceeds? the context",
    re.IGNORECASE,
)
"""Words of servers about a prompt that exceeds the context."""

_LONGEST_S = 10.0**9


def plain(text: str, limit: int = _MAX_WORDS) -> str:
    """Return text of a server as part of a line: without control characters, and short."""
    words = " ".join(text[: 4 * limit].split())
    line = "".join(c if c.isprintable() else "\ufffd" for c in words)
    return line if len(line) <= limit else line[: limit - 1] + "…"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Error response of a server."""

    status: int
    message: str = ""
    """Message of the server, in one line."""
    code: str = ""
    retry_after_s: float | None = None
    """Seconds that it asks to wait; None if it does not say."""
    found: Any = field(default=None, compare=False, repr=False)
    """The whole response, if it is JSON."""

    @property
    def is_temporary(self) -> bool:
        """True if the same request may be answered later."""
        return self.status in (429, 503)

    @property
    def is_about_length(self) -> bool:
        """True if the prompt exceeds the context."""
        return self.code == "context_length_exceeded" or (
            self.status in (400, 413, 422, 500) and _TOO_LONG.search(self.message) is not None
        )

    def error(self, what: str) -> LlamaChatError:
        """Return the error about the server ``what``."""
        said = f" ({self.message})" if self.message else ""
        if self.is_about_length:
            return PromptTooLongError(
                what,
                f"the prompt does not fit in its context{said}",
                "shorten it, or begin a new conversation",
            )
        match self.status:
            case 401:
                advice = f"set {KEY_VARIABLE} or --api-key-file"
                return LlamaChatError(what, f"it wants another key{said}", advice)
            case 403:
                advice = f"check {KEY_VARIABLE} or --api-key-file, and the model"
                return LlamaChatError(what, f"it does not allow this{said}", advice)
            case 404:
                why = f"it has no such model or route{said}"
                return UsageError(what, why, "check --endpoint-model and the URL")
            case 429:
                return LlamaChatError(what, f"it was asked too often{said}", self._wait)
            case 400 | 405 | 409 | 413 | 415 | 422:
                why = f"it refuses the request with status {self.status}{said}"
                return LlamaChatError(what, why, "check the settings and --endpoint-model")
        why = f"it failed with status {self.status}{said}" if self.status else f"it failed{said}"
        return LlamaChatError(what, why, self._wait)

    @property
    def _wait(self) -> str:
        if self.retry_after_s is None or self.retry_after_s > 86400:
            return "try again later"
        return f"try again in {counted(math.ceil(self.retry_after_s), 'second')}"


Hide = Callable[[str], str]
"""Function that removes the key from a text of a server."""


def read_refusal(status: int, body: bytes, retry_after: str, hide: Hide) -> Refusal:
    """Parse a response with an error ``status``, in any of the usual shapes."""
    text = body.decode("utf-8", "replace")
    wait = seconds_to_wait(retry_after)
    try:
        return refusal_in(parse_json(text), hide, status, wait)
    except ValueError:
        is_page = text.lstrip()[:1] == "<"
        return Refusal(status, "" if is_page else plain(hide(text)), "", wait)


def refusal_in(
    found: Any, hide: Hide, status: int = 0, retry_after_s: float | None = None
) -> Refusal:
    """Return the error that a JSON value holds, as OpenAI and others write it."""
    error = found.get("error", found) if isinstance(found, dict) else found
    message, code = error, ""
    if isinstance(error, dict):
        message = next((error[k] for k in ("message", "detail", "error") if k in error), "")
        known = error.get("code") or error.get("type")
        code = plain(hide(known), 60) if isinstance(known, str) else ""
    words = message if isinstance(message, str) else "" if message is None else repr(message)
    return Refusal(status, plain(hide(words)), code, retry_after_s, found)


def seconds_to_wait(retry_after: str) -> float | None:
    """Parse the header Retry-After, seconds or a date; None if it is neither."""
    if re.fullmatch(r"\d+(\.\d+)?", retry_after := retry_after.strip()):
        return min(float(retry_after[:300]), _LONGEST_S)
    try:
        until = parsedate_to_datetime(retry_after).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return min(max(until - time.time(), 0.0), _LONGEST_S)
