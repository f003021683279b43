"""Base class of tokenizers with a table of all pieces and their bytes."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from functools import cached_property

from llama_chat.tokenizers.base import LONG_TEXT, SPACE, Span, Tokenizer, without_surrogates

_CHUNK = 2**16
"""Characters whose bytes are counted at a time."""

_PROBE = (
    "a  A\t\r\n\n .,:;!?'\"()[]{}<>|/\\@#$%&*+-=_^~`0123456789 ﬁ ½ ² Ⅷ ｆｕｌｌ ｶﾞ é e\u0301 "
    "가 ㄱ Å Ω \u00ad\u200b\u200d\ufeff\u3000 ß İ Ж ع ש क ไ 你𠮷 𝐀 🏴\U000e0067\U000e007f "
    "\U00012000 ▁ z  "
)
"""Text that the normalizations in use change, and for which only tokens of all bytes suffice."""


class PieceTokenizer(Tokenizer):
    """Tokenizer with a table of pieces, whose algorithm is run by a library."""

    def __init__(
        self, pieces: Sequence[str], table: Sequence[bytes], control_ids: Mapping[str, int]
    ) -> None:
        """Store the tables; ``table[i]`` are the bytes of ``pieces[i]``."""
        self.vocab_size = len(pieces)
        self.control_ids = control_ids
        self._pieces = pieces
        self._bytes = table

    @abstractmethod
    def _encode(self, text: str) -> list[int]:
        """Run the algorithm on a text without lone surrogates."""

    def encode(self, text: str, *, spell: Iterable[Span] = ()) -> list[int]:
        """See the base class."""
        text = self._encodable(without_surrogates(text))
        ids = self._encode(text)
        spans = list(spell)
        return self._spell_spans(ids, text, spans) if spans else ids

    def min_tokens(self, text: str) -> int:
        """See the base class.

        A token of n bytes has n times an nth; no byte of the text can have a smaller share than one
        of the longest token that it occurs in.
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
        """What tokens hold for U+2581; None if not every byte of a text is in one of its tokens."""
        data = b"".join(map(self.token_bytes, self._encode(_PROBE)))
        if self.dummy_prefix:
            data = data.removeprefix(b" ")
        marks = (mark for mark in (SPACE, " ") if _PROBE.replace(SPACE, mark).encode() == data)
        return next(marks, None)

    @cached_property
    def _longest(self) -> list[int]:
        """Length of the longest token that each byte occurs in."""
        longest = [1] * 256
        for data in self._bytes:
            for byte in set(data):
                longest[byte] = max(longest[byte], len(data))
        return longest

    def _encodable(self, text: str) -> str:
        """Replace the characters that the vocabulary cannot encode; none by default."""
        return text

    def token_bytes(self, token_id: int) -> bytes:
        """See the base class."""
        return self._bytes[token_id] if 0 <= token_id < self.vocab_size else b""

    def piece(self, token_id: int) -> str:
        """See the base class."""
        return self._pieces[token_id] if 0 <= token_id < self.vocab_size else f"<{token_id}>"

    def _spell_spans(self, ids: list[int], text: str, spans: list[Span]) -> list[int]:
        """Replace the ids that overlap a span of ``text`` by those of their single characters."""
        lengths = [len(self._bytes[token_id]) for token_id in ids]
        shift = sum(lengths) - len(text.encode())  # bytes of a dummy prefix
        places = [
            (shift + len(text[:start].encode()), shift + len(text[:end].encode()))
            for start, end in spans
        ]
        if shift not in (0, int(self.dummy_prefix)):
            # The vocabulary normalizes text, so no span can be located: spell all of it.
            places = [(0, sum(lengths))]
        spelled: list[int] = []
        begin = 0
        for token_id, length in zip(ids, lengths, strict=True):
            touched = any(begin < end and start < begin + length for start, end in places)
            spelled += self._spell(token_id) if touched else [token_id]
            begin += length
        return spelled

    def _spell(self, token_id: int) -> list[int]:
        """Return the ids of the single characters of a token; the token itself if one has none."""
        data = self._bytes[token_id]
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
        for i, data in enumerate(self._bytes):
            single = 1 <= len(data) <= 4 and len(data.decode("utf-8", "replace")) == 1
            # A character with both a piece and a byte token is encoded as the piece.
            if single and i not in control and (len(self._pieces[i]) == 1 or data not in found):
                found[data] = i
        return found
