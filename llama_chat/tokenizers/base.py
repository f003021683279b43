"""What every tokenizer offers, whatever its algorithm."""

import codecs
import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from functools import cached_property
from pathlib import Path

from llama_chat.errors import ModelError, reason


class TokenType(IntEnum):
    """Types of tokens, as SentencePiece and GGUF number them."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


Span = tuple[int, int]
"""Start and end of a run of characters in a text."""

SPACE = "\u2581"
"""How the pieces of SentencePiece write a space."""
MAX_BYTES = 64 * 2**20
"""Of a tokenizer's file; that of Llama 3 has 17 MB."""

OF_THE_MODEL = "tokenizer of the model"
"""What errors call a vocabulary that stands in the file of the model."""
DAMAGED = "the file is damaged or of another kind"


class Tokenizer(ABC):
    """Text to ids and back.

    ``encode`` never adds BOS or EOS and never yields a control id, whatever the text says:
    control ids come from ``control_ids`` alone, so only a template can use them.
    """

    kind: str
    """The algorithm, for people."""
    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    add_bos: bool
    """Whether a raw prompt begins with BOS."""
    dummy_prefix: bool
    """Whether each ``encode`` puts a space in front that is no part of the text."""
    control_ids: Mapping[str, int]
    """Ids of the control tokens by their text."""

    @abstractmethod
    def encode(self, text: str, *, spell: Iterable[Span] = ()) -> list[int]:
        """Encode ``text``.

        The characters in a span of ``spell`` are encoded one by one: the text stays the same and
        the ids differ, so that a tag typed by a person is not the tag of a template.
        """

    @abstractmethod
    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes that ``token_id`` stands for; empty for a control token.

        A single token may hold a part of a character.
        """

    @abstractmethod
    def piece(self, token_id: int) -> str:
        """How the vocabulary itself writes ``token_id``."""

    @cached_property
    def fingerprint(self) -> str:
        """Tells vocabularies apart: with the same one, ids mean the same."""
        pieces = "\0".join(map(self.piece, range(self.vocab_size)))
        return hashlib.sha256(pieces.encode("utf-8", "replace")).hexdigest()[:16]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids``, as a whole text: a dummy prefix in front is dropped.

        Invalid bytes become U+FFFD.
        """
        data = b"".join(map(self.token_bytes, ids))
        if self.dummy_prefix:
            data = data.removeprefix(b" ")
        return codecs.decode(data, "utf-8", "replace")


_MARKER = re.compile(rf"{SPACE}*(<\S+>|\[\S+\]){SPACE}*")


def is_marker(token: str) -> bool:
    """Whether a token that was added to a vocabulary marks a place: ``<…>`` or ``[…]``, no spaces.

    One file calls its ``<|im_start|>`` a control token, and the next an ordinary added one. Here
    all added tokens of that look are control tokens, whatever their file calls them; the others,
    such as a run of spaces, are text.
    """
    return _MARKER.fullmatch(token) is not None


_SURROGATES = re.compile("[\ud800-\udfff]")


def without_surrogates(text: str) -> str:
    """``text`` with lone surrogates, which have no UTF-8, replaced by U+FFFD."""
    return _SURROGATES.sub("\ufffd", text)


def read_file(path: Path, what: str) -> bytes:
    """The bytes of a tokenizer's file.

    Raises:
        ModelError: about ``what``, if it cannot be read or is larger than any such file.
    """
    advice = f"take the {path.name[:60]!r} that came with the model"
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ModelError(what, reason(error), advice) from None
    if not data:
        raise ModelError(what, "it is empty", advice)
    if len(data) > MAX_BYTES:
        raise ModelError(what, f"larger than {MAX_BYTES >> 20} MiB", advice)
    return data
