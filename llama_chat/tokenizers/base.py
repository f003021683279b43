"""Base class of all tokenizers."""

import codecs
import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from functools import cached_property
from pathlib import Path

from llama_chat.errors import ModelError
from llama_chat.files import read_whole


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
"""Space in the pieces of SentencePiece."""
MAX_BYTES = 64 * 2**20
"""Size limit of a tokenizer file; that of Llama 3 has 17 MB."""
MAX_TABLE_BYTES = 6 * 2**20
"""Size limit of one that is a table of pieces: the largest have 5 MB, and each piece, of two bytes
or more, takes a hundred in memory."""

LONG_TEXT = 2**18
"""Characters of a text that is encoded without asking whether it may fit in a context: encoding
takes up to a thousand times as many bytes of memory."""

OF_THE_MODEL = "tokenizer of the model"
"""Name in errors of a vocabulary that is stored in the file of the model."""
DAMAGED = "the file is damaged or of another kind"


class AtLeast(int):
    """Lower bound of a number of tokens; as a text it says so."""

    def __str__(self) -> str:
        return f"at least {int(self)}"


class Tokenizer(ABC):
    """Conversion of text to token ids and back.

    ``encode`` never adds BOS or EOS and never returns a control id, whatever the text is:
    control ids come from ``control_ids`` alone, so only a template can use them.
    """

    kind: str
    """Name of the algorithm, for display."""
    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    add_bos: bool
    """True if a raw prompt begins with BOS."""
    dummy_prefix: bool
    """True if ``encode`` prepends a space that is not part of the text."""
    control_ids: Mapping[str, int]
    """Ids of the control tokens by their text."""

    @abstractmethod
    def encode(self, text: str, *, spell: Iterable[Span] = ()) -> list[int]:
        """Encode ``text``.

        The characters in a span of ``spell`` are encoded one by one: the text stays the same and
        the ids differ, so that a tag typed by the user does not act as a tag of the template.
        """

    def min_tokens(self, text: str) -> int:
        """Return a lower bound of ``len(encode(text))``, without encoding it.

        It is 0 for a text of up to ``LONG_TEXT`` characters, and if no bound is known. The bounds
        of parts of a text add up to one of the whole.
        """
        return 0

    @abstractmethod
    def token_bytes(self, token_id: int) -> bytes:
        """Return the UTF-8 bytes of ``token_id``; empty for a control token.

        A token may contain only a part of a character.
        """

    @abstractmethod
    def piece(self, token_id: int) -> str:
        """Return ``token_id`` as written in the vocabulary."""

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the vocabulary: if it is the same, ids mean the same."""
        pieces = "\0".join(map(self.piece, range(self.vocab_size)))
        return hashlib.sha256(pieces.encode("utf-8", "replace")).hexdigest()[:16]

    def decode(self, ids: Sequence[int]) -> str:
        """Decode ``ids`` as a complete text: a leading dummy prefix is removed.

        Invalid bytes become U+FFFD.
        """
        data = b"".join(map(self.token_bytes, ids))
        if self.dummy_prefix:
            data = data.removeprefix(b" ")
        return codecs.decode(data, "utf-8", "replace")


_MARKER = re.compile(rf"{SPACE}*(<\S+>|\[\S+\]){SPACE}*")


def is_marker(token: str) -> bool:
    """True if a token added to a vocabulary has the pattern ``<…>`` or ``[…]``, without spaces.

    Some files declare ``<|im_start|>`` a control token, others an ordinary added token. Here all
    added tokens of that pattern are control tokens; the others, such as a run of spaces, are text.
    """
    return _MARKER.fullmatch(token) is not None


_SURROGATES = re.compile("[\ud800-\udfff]")


def without_surrogates(text: str) -> str:
    """Replace lone surrogates, which have no UTF-8 encoding, by U+FFFD."""
    return _SURROGATES.sub("\ufffd", text)


def read_file(path: Path, what: str, max_bytes: int = MAX_TABLE_BYTES) -> bytes:
    """Read a tokenizer file.

    Raises:
        ModelError: about ``what``, if it cannot be read, is empty, or exceeds ``max_bytes``.
    """
    advice = f"take the {path.name[:60]!r} that came with the model"
    data = read_whole(path, what, advice, max_bytes)
    if not data:
        raise ModelError(what, "it is empty", advice)
    return data
