"""SentencePiece vocabularies, such as that of Llama 2."""

import base64
import binascii
from collections.abc import Iterable
from pathlib import Path

import sentencepiece

from llama_chat.errors import ModelError
from llama_chat.tokenizers.base import Span, Tokenizer, without_surrogates

MAX_BYTES = 64 * 2**20
"""Llama 2's file has half a megabyte."""

_SPACE = "\u2581"
"""How pieces write a space."""


class SentencePieceTokenizer(Tokenizer):
    """The vocabulary of a ``tokenizer.model`` file."""

    kind = "SentencePiece"
    add_bos = True

    def __init__(self, path: Path) -> None:
        """Read ``path``.

        Raises:
            ModelError: if it is not a SentencePiece model.
        """
        self._sp = _open(path)
        self.vocab_size = self._sp.vocab_size()
        self.bos_id = self._known(self._sp.bos_id())
        self.eos_id = self._known(self._sp.eos_id())
        self._pieces = self._sp.id_to_piece(list(range(self.vocab_size)))
        self._bytes = [self._spell_piece(i) for i in range(self.vocab_size)]
        self._byte_ids = {self._bytes[i]: i for i in range(self.vocab_size) if self._sp.is_byte(i)}
        self.control_ids = {
            self._pieces[i]: i
            for i in range(self.vocab_size)
            if self._sp.is_control(i) or self._sp.is_unknown(i)
        }
        probe = self._sp.encode("a", out_type=str)
        self.dummy_prefix = bool(probe) and probe[0].startswith(_SPACE)

    def encode(self, text: str, *, spell: Iterable[Span] = ()) -> list[int]:
        """See the base class."""
        text = without_surrogates(text)
        ids: list[int] = self._sp.encode(text)
        if spans := list(spell):
            ids = self._spell_spans(ids, text, spans)
        return ids

    def token_bytes(self, token_id: int) -> bytes:
        """See the base class."""
        return self._bytes[token_id] if 0 <= token_id < self.vocab_size else b""

    def piece(self, token_id: int) -> str:
        """See the base class."""
        return self._pieces[token_id] if 0 <= token_id < self.vocab_size else f"<{token_id}>"

    def _spell_spans(self, ids: list[int], text: str, spans: list[Span]) -> list[int]:
        """Replace the ids that touch a span of ``text`` by those of their single characters."""
        shift = int(self.dummy_prefix)
        places = [
            (shift + len(text[:start].encode()), shift + len(text[:end].encode()))
            for start, end in spans
        ]
        lengths = [len(self._bytes[token_id]) for token_id in ids]
        if sum(lengths) != shift + len(text.encode()):
            # The vocabulary rewrites text, so nothing can be located: spell all of it.
            places = [(0, sum(lengths))]
        spelled: list[int] = []
        begin = 0
        for token_id, length in zip(ids, lengths, strict=True):
            touched = any(begin < end and start < begin + length for start, end in places)
            spelled += self._spell(token_id) if touched else [token_id]
            begin += length
        return spelled

    def _spell(self, token_id: int) -> list[int]:
        """The ids of the single characters of a piece."""
        if self._sp.is_byte(token_id):
            return [token_id]
        ids: list[int] = []
        for character in self._pieces[token_id]:
            known = self._sp.piece_to_id(character)
            if not self._sp.is_unknown(known):
                ids.append(known)
            else:
                data = character.encode()
                ids += [self._byte_ids.get(data[i : i + 1], known) for i in range(len(data))]
        return ids

    def _spell_piece(self, token_id: int) -> bytes:
        """The bytes of a piece, for the table."""
        if self._sp.is_control(token_id):
            return b""
        if self._sp.is_byte(token_id):
            return bytes([int(self._pieces[token_id][3:-1], 16)])
        if self._sp.is_unknown(token_id):
            return "\ufffd".encode()
        return self._pieces[token_id].replace(_SPACE, " ").encode()

    @staticmethod
    def _known(token_id: int) -> int | None:
        return None if token_id < 0 else token_id


def _open(path: Path) -> sentencepiece.SentencePieceProcessor:
    what = f"tokenizer {str(path)!r}"
    advice = "take the tokenizer.model that came with the model"
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        reason = (error.strerror or "cannot be read").lower()
        raise ModelError(what, reason, advice) from None
    if not data:
        raise ModelError(what, "it is empty", advice)
    if len(data) > MAX_BYTES:
        raise ModelError(what, f"larger than {MAX_BYTES >> 20} MiB", advice)
    if _is_llama_3(data):
        raise ModelError(what, "it is of Llama 3, which has another format", "take a Llama 2 model")
    if data.lstrip()[:1] == b"<":
        raise ModelError(what, "it is a web page, not a tokenizer", "fetch the file itself")
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(data)
        usable = processor.vocab_size() > 0 and processor.unk_id() >= 0
    except (RuntimeError, ValueError):
        usable = False
    if not usable:
        raise ModelError(what, "it is not a SentencePiece model, or damaged", advice)
    return processor


def _is_llama_3(data: bytes) -> bool:
    """Whether the first line is a token in base64 and its rank, as Llama 3 writes them."""
    token, _, rank = data.partition(b"\n")[0].partition(b" ")
    try:
        return bool(base64.b64decode(token, validate=True)) and rank.isdigit()
    except binascii.Error:
        return False
