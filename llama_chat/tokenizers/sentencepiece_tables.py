"""SentencePiece model file, made from the tables that other formats store.

The file is a protobuf message: https://github.com/google/sentencepiece, sentencepiece_model.proto.
Only the fields that matter are written here, so that the library itself does all encoding.
"""

import struct
from collections.abc import Sequence

from llama_chat.errors import ModelError
from llama_chat.tokenizers.base import DAMAGED, OF_THE_MODEL, TokenType, is_marker

_TYPES = frozenset(TokenType)
_BPE = 2
_MAX_SCORE = 3.4e38
"""Largest score, since the file stores float32."""


def serialize_model(
    *,
    tokens: Sequence[str],
    scores: Sequence[float],
    types: Sequence[int],
    bos_id: int | None,
    eos_id: int | None,
    add_dummy_prefix: bool,
) -> bytes:
    """Serialize a BPE model that does not normalize text; see ``SentencePieceTables``.

    BOS, EOS and the added tokens that look like markers become control tokens.

    Raises:
        ModelError: if the tables are of different lengths, or have a type or score out of range.
    """
    if not len(tokens) == len(scores) == len(types):
        raise _error(f"it has {len(tokens)} tokens, {len(scores)} scores and {len(types)} types")
    named = {bos_id, eos_id}
    model = bytearray()
    for i, (token, score, kind) in enumerate(zip(tokens, scores, types, strict=True)):
        if kind not in _TYPES:
            raise _error(f"token {i} is of the unknown type {kind}")
        if not abs(score) <= _MAX_SCORE:  # true for NaN too
            raise _error(f"the score of token {i} is {score}")
        if (i in named and kind != TokenType.UNKNOWN) or (
            kind == TokenType.USER_DEFINED and is_marker(token)
        ):
            kind = TokenType.CONTROL
        piece = _field(1, token.encode("utf-8", "replace"))
        model += _field(1, piece + _float(2, score) + _number(3, kind))
    trainer = _number(3, _BPE) + _number(35, TokenType.BYTE in types)
    unknown = types.index(TokenType.UNKNOWN) if TokenType.UNKNOWN in types else None
    # The file names these by their pieces; by default BOS and EOS are "<s>" and "</s>".
    for number, token_id in ((45, unknown), (46, bos_id), (47, eos_id)):
        if token_id is not None:
            trainer += _field(number, tokens[token_id].encode("utf-8", "replace"))
    add_prefix, remove_extra, escape = 3, 4, 5
    normalizer = _field(1, b"identity") + _number(add_prefix, add_dummy_prefix)
    normalizer += _number(remove_extra, False) + _number(escape, True)
    return bytes(model + _field(2, trainer) + _field(3, normalizer))


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _float(number: int, value: float) -> bytes:
    return _varint(number << 3 | 5) + struct.pack("<f", value)


def _field(number: int, data: bytes) -> bytes:
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


def _error(why: str) -> ModelError:
    return ModelError(OF_THE_MODEL, why, DAMAGED)
