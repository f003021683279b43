"""Ids to text as they arrive, never breaking a character."""

import codecs
from collections.abc import Iterable
from typing import Literal

from llama_chat.tokenizers.base import Tokenizer

Leading = Literal["keep", "dummy", "strip"]
"""What to do with white space at the very beginning: ``keep`` it, as in the continuation of a
prompt; drop the ``dummy`` prefix of a whole text; or ``strip`` all of it, as in a chat reply."""


class StreamingDecoder:
    """Turns ids into text one by one.

    All pieces together are the text of all ids, however they come. Bytes that are no UTF-8 become
    U+FFFD; the bytes of an unfinished character wait, at most three of them.
    """

    def __init__(self, tokenizer: Tokenizer, leading: Leading = "keep") -> None:
        self._tokenizer = tokenizer
        self._leading = leading
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._began = False

    def decode(self, ids: Iterable[int]) -> str:
        """Take several ids; returns the text that is certain now."""
        return "".join(map(self.push, ids))

    def push(self, token_id: int) -> str:
        """Take an id; returns the text that is certain now."""
        return self._trim(self._utf8.decode(self._tokenizer.token_bytes(token_id)))

    def flush(self) -> str:
        """End the text; an unfinished character becomes U+FFFD."""
        return self._trim(self._utf8.decode(b"", final=True))

    def _trim(self, text: str) -> str:
        if self._began or not text:
            return text
        if self._leading == "strip":
            text = text.lstrip()
        elif self._leading == "dummy" and self._tokenizer.dummy_prefix:
            text = text.removeprefix(" ")
            self._began = True
        self._began = self._began or bool(text)
        return text
