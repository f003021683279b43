"""SentencePiece model files as bytes: made from tables, and with other types of tokens.

A file is a protobuf message: https://github.com/google/sentencepiece, sentencepiece_model.proto.
The library itself does all encoding; it cannot be told to treat a token as of another type, or to
leave out the space in front.
"""

import re
import struct
from collections.abc import Collection, Iterator, Mapping, Sequence

from llama_chat.errors import ModelError, counted
from llama_chat.tokenizers.vocabulary import DAMAGED, PieceModel, TokenType, Vocabulary

_TYPES = frozenset(TokenType)
_BPE = 2
_MAX_SCORE = 3.4e38
"""Largest score, since the file stores float32."""

_PIECES, _NORMALIZER = 1, 3
"""Fields of the file."""
_PIECE, _SCORE, _TYPE = 1, 2, 3
"""Fields of a piece."""
_USER_DEFINED = re.compile(rb"\x18\x04(?=[\x0a\x12\x1a\x22\x2a]|\Z)")
"""End of a user-defined piece: its type, and the begin of any next field of the file."""


def make_file(vocabulary: Vocabulary, model: PieceModel, control: Collection[int]) -> bytes:
    """Make the file of a BPE model that does not normalize text.

    Raises:
        ModelError: if the tables are of different lengths, or have a type or score out of range.
    """
    tokens, types = vocabulary.pieces, vocabulary.types
    if not len(tokens) == len(model.scores) == len(types):
        n_tokens, n_scores = counted(len(tokens), "token"), counted(len(model.scores), "score")
        why = f"it has {n_tokens}, {n_scores} and {counted(len(types), 'type')}"
        raise ModelError(vocabulary.what, why, DAMAGED)
    data = bytearray()
    for i, (token, score, kind) in enumerate(zip(tokens, model.scores, types, strict=True)):
        if kind not in _TYPES:
            raise ModelError(vocabulary.what, f"token {i} is of the unknown type {kind}", DAMAGED)
        if not abs(score) <= _MAX_SCORE:  # true for NaN too
            raise ModelError(vocabulary.what, f"the score of token {i} is {score}", DAMAGED)
        if i in control and kind != TokenType.UNKNOWN:
            kind = TokenType.CONTROL
        piece = _bytes(_PIECE, token.encode("utf-8", "replace"))
        data += _bytes(_PIECES, piece + _float(_SCORE, score) + _number(_TYPE, kind))
    trainer = _number(3, _BPE) + _number(35, TokenType.BYTE in types)
    unknown = types.index(TokenType.UNKNOWN) if TokenType.UNKNOWN in types else None
    # The file names these by their pieces; by default BOS and EOS are "<s>" and "</s>".
    for number, token_id in ((45, unknown), (46, vocabulary.bos_id), (47, vocabulary.eos_id)):
        if token_id is not None:
            trainer += _bytes(number, tokens[token_id].encode("utf-8", "replace"))
    add_prefix, remove_extra, escape = 3, 4, 5
    normalizer = _bytes(1, b"identity") + _number(add_prefix, True)
    normalizer += _number(remove_extra, False) + _number(escape, True)
    return bytes(data + _bytes(2, trainer) + _bytes(_NORMALIZER, normalizer))


def without_prefix(file: bytes) -> bytes:
    """Return the file of the same model without a space in front of texts.

    A repeated message overrides single fields of the one before it.
    """
    return file + _bytes(_NORMALIZER, _number(3, False))


def read_pieces(file: bytes, what: str) -> Iterator[str]:
    """Yield the pieces of a file that the library refuses.

    Raises:
        ModelError: about ``what``, if the file is damaged.
    """
    for number, _, piece in _fields(file, what):
        if number == _PIECES:
            texts = (text for inner, _, text in _fields(piece, what) if inner == _PIECE)
            yield next(texts, b"").decode("utf-8", "replace")


def user_defined_ids(file: bytes, what: str) -> list[int]:
    """Return the ids of the user-defined pieces, which the library does not tell.

    Raises:
        ModelError: about ``what``, if the file is damaged.
    """
    if not _USER_DEFINED.search(file):
        return []  # as in most files, whose tens of thousands of pieces need not be parsed then
    pieces = [piece for number, _, piece in _fields(file, what) if number == _PIECES]
    return [
        i
        for i, piece in enumerate(pieces)
        if _USER_DEFINED.search(piece) and _type_of(piece, what) == TokenType.USER_DEFINED
    ]


def with_types(file: bytes, types: Mapping[int, TokenType], what: str) -> bytes:
    """Return the file with other types of some pieces, which are given by their ids.

    Raises:
        ModelError: about ``what``, if the file is damaged.
    """
    changed = bytearray()
    token_id = 0
    for number, field, piece in _fields(file, what):
        if number == _PIECES:
            if token_id in types:
                # Of a repeated field the last one counts.
                field = _bytes(_PIECES, piece + _number(_TYPE, types[token_id]))
            token_id += 1
        changed += field
    return bytes(changed)


def _type_of(piece: bytes, what: str) -> int:
    found = [value[0] for number, _, value in _fields(piece, what) if number == _TYPE and value]
    return found[-1] if found else TokenType.NORMAL


def _fields(message: bytes, what: str) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield the number of each field, the whole field, and its value.

    Raises:
        ModelError: about ``what``, if the message is damaged.
    """
    begin, size = 0, len(message)
    while begin < size:
        tag, at = message[begin], begin + 1
        if tag >= 0x80:  # of two bytes or more, which few are
            tag, at = _read_varint(message, begin)
        kind, start = tag & 7, at
        if kind == 2:
            length, start = _read_varint(message, at)
            at = start + length
        elif kind == 0:
            _, at = _read_varint(message, at)
        else:
            at += _FIXED.get(kind, size)
        if at > size:
            raise ModelError(what, "it is not a SentencePiece model, or damaged", DAMAGED)
        yield tag >> 3, message[begin:at], message[start:at]
        begin = at


_FIXED = {1: 8, 5: 4}
"""Bytes of the values of fixed length, by the kind of a field."""


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the integer at ``at``, and the place after it, which is past the end if it is cut."""
    value = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    return value, len(data) + 1


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _float(number: int, value: float) -> bytes:
    return _varint(number << 3 | 5) + struct.pack("<f", value)


def _bytes(number: int, data: bytes) -> bytes:
    """Encode a field that is a string or a message."""
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    """Encode an integer, seven bits per byte, lowest first; the high bit says that more follow."""
    if value <= 0x7F:
        return bytes((value,))
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def scores_of(pieces: Sequence[str], merges: Sequence[tuple[str, str]]) -> list[float]:
    """Return scores that give SentencePiece the order of ``merges``: earlier ones score higher."""
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, rank)
    return [-float(ranks.get(piece, len(merges))) for piece in pieces]
