"""Base class of all tokenizers."""

import codecs
import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from functools import cached_property
from pathlib import Path

from llama_chat.errors import ModelError
from llama_chat.files import read_whole
from llama_chat.tokenizers.vocabulary import SPACE, TokenType, Vocabulary

Span = tuple[int, int]
"""Start and end of a run of characters in a text."""

MAX_BYTES = 64 * 2**20
"""Limit on the bytes of a tokenizer file; that of Llama 3 has 17 MB."""
MAX_TABLE_BYTES = 6 * 2**20
"""Limit on the bytes of one that is a table of pieces: the largest have 5 MB, and each piece, of
two bytes or more, takes a hundred in memory."""

LONG_TEXT = 2**18
"""Longest text that is encoded without checking whether it can fit in a context: encoding takes up
to a thousand bytes of memory per character."""

_CHUNK = 2**16
"""Characters whose bytes are counted at a time."""

_PROBE = (
    "a  A\t\r\n\n .,:;!?'\"()[]{}<>|/\\@#$%&*+-=_^~`0123456789 ﬁ ½ ² Ⅷ ｆｕｌｌ ｶﾞ é e\u0301 "
    "가 ㄱ Å Ω \u00ad\u200b\u200d\ufeff\u3000 ß İ Ж ع ש क ไ 你𠮷 𝐀 🏴\U000e0067\U000e007f "
    "\U00012000 ▁ z  "
)
"""Text that every known normalization changes, and that needs tokens for all bytes."""

_HIDDEN = (TokenType.CONTROL, TokenType.UNUSED)


class AtLeast(int):
    """Lower bound of a number of tokens; as a text it says so."""

    def __str__(self) -> str:
        return f"at least {int(self)}"


class Tokenizer(ABC):
    """Conversion of text to token ids and back; the algorithm is run by a library.

    ``encode`` never adds BOS or EOS and never returns a control id, whatever the text is:
    control ids come from ``control_ids`` alone, so only a template can use them.
    """

    kind: str
    """Name of the algorithm, for display."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocab_size = len(vocabulary.pieces)
        self.bos_id, self.eos_id = vocabulary.bos_id, vocabulary.eos_id
        self.add_bos, self.add_eos = vocabulary.add_bos, vocabulary.add_eos
        self.prefix = vocabulary.prefix
        """Texts in front of which the vocabulary puts a space."""
        self.control_ids: Mapping[str, int] = vocabulary.control_ids()
        """Ids of the control tokens by their text."""
        self.rowless = vocabulary.rowless
        """Ids of tokens without a row in the embedding, by their text; never returned."""
        self.added = vocabulary.added
        """Rules of added tokens by their ids, those of control tokens among them."""
        self._what = vocabulary.what
        self._pieces, self._types = vocabulary.pieces, vocabulary.types

    @abstractmethod
    def _encode(self, text: str, prefixed: bool) -> list[int]:
        """Run the algorithm on a text without lone surrogates."""

    @abstractmethod
    def _piece_bytes(self, token_id: int) -> bytes:
        """Return the bytes of a token of text."""

    def encode(self, text: str, *, spell: Iterable[Span] = (), prefixed: bool = True) -> list[int]:
        """Encode ``text``.

        Args:
            text: any text.
            spell: spans of characters that are encoded one by one: the text stays the same and the
                ids differ, so that a tag typed by the user does not act as a tag of the template.
            prefixed: False for a text that does not begin with the space of ``prefix``.
        """
        text = self._encodable(without_surrogates(text))
        ids = self._encode(text, prefixed)
        spans = list(spell)
        return self._spell_spans(ids, text, spans) if spans else ids

    def min_tokens(self, text: str) -> int:
        """Return a lower bound of ``len(encode(text))``, without encoding it.

        It is 0 for a text of up to ``LONG_TEXT`` characters, and if no bound is known. The bounds
        of parts of a text add up to one of the whole.

        A byte is 1/n of a token of n bytes. So each byte of the text is at least 1/n of a token,
        where n is the length of the longest token that contains the byte.
        """
        mark = self._mark if len(text) > LONG_TEXT else None
        if mark is None:
            return 0
        import numpy as np  # slow, and not needed by most commands

        text = self._encodable(without_surrogates(text)).replace(SPACE, mark)
        counts = np.zeros(256, int)
        for start in range(0, len(text), _CHUNK):
            data = text[start : start + _CHUNK].encode()
            counts += np.bincount(np.frombuffer(data, np.uint8), minlength=256)
        return int(sum(map(Fraction, counts.tolist(), self._longest)))

    @cached_property
    def _mark(self) -> str | None:
        """Text of tokens for U+2581; None if not every byte of a text is in one of its tokens."""
        data = b"".join(map(self.token_bytes, self._encode(_PROBE, True)))
        if self.prefix != "never":
            data = data.removeprefix(b" ")
        marks = (mark for mark in (SPACE, " ") if _PROBE.replace(SPACE, mark).encode() == data)
        return next(marks, None)

    @cached_property
    def _longest(self) -> list[int]:
        """Length of the longest token that each byte occurs in."""
        longest = [1] * 256
        for data in map(self.token_bytes, range(self.vocab_size)):
            for byte in set(data):
                longest[byte] = max(longest[byte], len(data))
        return longest

    def _encodable(self, text: str) -> str:
        """Replace the characters that the vocabulary cannot encode; none by default."""
        return text

    def token_bytes(self, token_id: int) -> bytes:
        """Return the UTF-8 bytes of ``token_id``; empty for a token that is not shown.

        A token may contain only a part of a character.
        """
        if not 0 <= token_id < self.vocab_size:
            return b""
        kind = self._types[token_id]
        if kind == TokenType.UNKNOWN:
            return "\ufffd".encode()
        if kind in _HIDDEN or token_id == self.bos_id or token_id == self.eos_id:
            return b""
        return self._piece_bytes(token_id)

    def piece(self, token_id: int) -> str:
        """Return ``token_id`` as written in the vocabulary."""
        return self._pieces[token_id] if 0 <= token_id < self.vocab_size else f"<{token_id}>"

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the vocabulary: if it is the same, ids mean the same."""
        pieces = "\0".join(self._pieces)
        return hashlib.sha256(pieces.encode("utf-8", "replace")).hexdigest()[:16]

    def decode(self, ids: Sequence[int]) -> str:
        """Decode ``ids`` as a complete text: a leading space of ``prefix`` is removed.

        Invalid bytes become U+FFFD.
        """
        data = b"".join(map(self.token_bytes, ids))
        if self.prefix != "never":
            data = data.removeprefix(b" ")
        return codecs.decode(data, "utf-8", "replace")

    def _spell_spans(self, ids: list[int], text: str, spans: list[Span]) -> list[int]:
        """Replace the ids that overlap a span of ``text`` by those of their single characters."""
        lengths = [len(self.token_bytes(token_id)) for token_id in ids]
        shift = sum(lengths) - len(text.encode())  # bytes of the space of ``prefix``
        offsets = _byte_offsets(text, spans)
        places = sorted((shift + offsets[start], shift + offsets[end]) for start, end in spans)
        if shift not in (0, int(self.prefix != "never")):
            # More than the prefix was added or left out, so no span can be located: spell all.
            places = [(0, sum(lengths))]
        spelled: list[int] = []
        begin = next_place = 0
        for token_id, length in zip(ids, lengths, strict=True):
            while next_place < len(places) and places[next_place][1] <= begin:
                next_place += 1
            touched = next_place < len(places) and places[next_place][0] < begin + length
            spelled += self._spell(token_id) if touched else [token_id]
            begin += length
        return spelled

    def _spell(self, token_id: int) -> list[int]:
        """Return the ids of the single characters of a token; the token itself if one has none."""
        data = self.token_bytes(token_id)
        try:
            characters = [character.encode() for character in data.decode()]
        except UnicodeDecodeError:  # it contains a part of a character
            characters = [data]
        known = self._characters
        ids: list[int] = []
        for character in characters:
            whole = [character] if character in known else [bytes([byte]) for byte in character]
            if not all(part in known for part in whole):
                return [token_id]
            ids += [known[part] for part in whole]
        return ids

    @cached_property
    def _characters(self) -> dict[bytes, int]:
        """Ids of one-character pieces and of single-byte tokens, by their bytes."""
        control = set(self.control_ids.values())
        found: dict[bytes, int] = {}
        for i, piece in enumerate(self._pieces):
            data = self.token_bytes(i)
            single = 1 <= len(data) <= 4 and len(data.decode("utf-8", "replace")) == 1
            # A character with both a piece and a byte token is encoded as the piece.
            if single and i not in control and (len(piece) == 1 or data not in found):
                found[data] = i
        return found


def _byte_offsets(text: str, spans: Iterable[Span]) -> dict[int, int]:
    """Return the number of UTF-8 bytes before each start and end of a span."""
    offsets: dict[int, int] = {}
    at = n_bytes = 0
    for place in sorted({place for span in spans for place in span}):
        n_bytes += len(text[at:place].encode())
        at = place
        offsets[place] = n_bytes
    return offsets


def piece_bytes(piece: str, kind: int) -> bytes:
    """Return the bytes of a token of SentencePiece."""
    if kind == TokenType.BYTE:
        return bytes.fromhex(piece[3:-1])
    return piece.replace(SPACE, " ").encode("utf-8", "replace")


_SURROGATES = re.compile("[\ud800-\udfff]")


def without_surrogates(text: str) -> str:
    """Replace lone surrogates, which have no UTF-8 encoding, by U+FFFD."""
    return text if text.isascii() else _SURROGATES.sub("\ufffd", text)


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
