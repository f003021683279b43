"""Incremental decoding of ids to text, in complete characters."""

import codecs
from collections.abc import Iterable
from typing import Literal

from llama_chat.tokenizers.base import Tokenizer

Leading = Literal["keep", "dummy", "strip"]
"""Treatment of leading white space: ``keep`` it, as in the continuation of a prompt; remove the
``dummy`` prefix of a complete text; or ``strip`` all of it, as in a chat reply."""


class StreamingDecoder:
    """Incremental decoder of ids.

    The returned texts together are the text of all ids. Invalid UTF-8 becomes U+FFFD; the bytes of
    an incomplete character, at most three, are buffered.
    """

    def __init__(self, tokenizer: Tokenizer, leading: Leading = "keep") -> None:
        self._tokenizer = tokenizer
        self._leading = leading
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._began = False

    def decode(self, ids: Iterable[int]) -> str:
        """Decode several ids; return the text that is complete now."""
        return "".join(map(self.push, ids))

    def push(self, token_id: int) -> str:
        """Decode one id; return the text that is complete now."""
        return self._trim(self._utf8.decode(self._tokenizer.token_bytes(token_id)))

    def flush(self) -> str:
        """Return the rest of the text; an incomplete character becomes U+FFFD."""
        return self._trim(self._utf8.decode(b"", final=True))

    def _trim(self, text: str) -> str:
        if self._began or not text:
            return text
        if self._leading == "strip":
            text = text.lstrip()
        elif self._leading == "dummy" and self._tokenizer.prefix != "never":
            text = text.removeprefix(" ")
            self._began = True
        self._began = self._began or bool(text)
        return text
