"""Vocabularies of tiktoken: a rank for the bytes of each token, and no merges.

tiktoken joins those neighbours first that make the token of the lowest rank. Its merges are thus
all pairs of tokens that make a token, in the order of what they make. Of the pairs of one token at
most one ever occurs, since its bytes are always joined in the same order.
"""

import base64
import binascii
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from llama_chat.errors import ModelError, counted
from llama_chat.tokenizers.base import read_file
from llama_chat.tokenizers.bpe import PRE_TOKENIZERS, byte_level_text
from llama_chat.tokenizers.sentencepiece import read_model
from llama_chat.tokenizers.vocabulary import MAX_TOKENS, MergeModel, TokenType, Vocabulary

_MAX_TOKEN = 256
"""Limit on the bytes of a token; the longest of Llama 3 has 128."""
_MAX_BYTES = 2**21
"""Limit on the bytes of all tokens, which are cut in two at each place; Llama 3 has 0.8 million."""
_MAX_MERGES = 2**19
"""Limit on merges; Llama 3 has 280,147."""

_ADVICE = "take the file that came with the model"

_N_SPECIAL = 256
"""Special tokens of Llama 3, which follow those of text; most are reserved."""
_BOS, _EOS = "<|begin_of_text|>", "<|end_of_text|>"
_HEADERS = {6: "<|start_header_id|>", 7: "<|end_header_id|>", 9: "<|eot_id|>"}
_LLAMA_3 = {0: _BOS, 1: _EOS, **_HEADERS}
_LLAMA_3_1 = {**_LLAMA_3, 4: "<|finetune_right_pad_id|>", 8: "<|eom_id|>", 10: "<|python_tag|>"}
"""Special tokens by their place; the others are reserved, and numbered."""


def read_model_file(path: Path, *, is_llama_3_0: bool = False) -> Vocabulary:
    """Read a ``tokenizer.model`` of either kind: SentencePiece, or the ranks of Llama 3.

    Args:
        path: the file.
        is_llama_3_0: True for the special tokens of Llama 3.0, of which later releases named more.

    Raises:
        ModelError: if it is damaged.
    """
    what = f"tokenizer {str(path)!r}"
    data = read_file(path, what)
    if not _is_ranked(data):
        return read_model(path)
    tokens = _parse(what, data)
    names = special_tokens(_LLAMA_3 if is_llama_3_0 else _LLAMA_3_1)
    pieces, model = merge_model(what, tokens, PRE_TOKENIZERS["llama3"].component(), "llama-bpe")
    return Vocabulary(
        what=what,
        pieces=[*pieces, *names],
        types=[TokenType.NORMAL] * len(pieces) + [TokenType.CONTROL] * len(names),
        model=model,
        bos_id=len(pieces) + names.index(_BOS),
        eos_id=len(pieces) + names.index(_EOS),
        add_bos=True,
    ).checked()


def special_tokens(named: dict[int, str]) -> list[str]:
    """Return the special tokens of Llama 3 in their order."""
    numbers = iter(range(_N_SPECIAL))
    return [
        named.get(place) or f"<|reserved_special_token_{next(numbers)}|>"
        for place in range(_N_SPECIAL)
    ]


def merge_model(
    what: str, tokens: Sequence[bytes], component: dict[str, Any], name: str = ""
) -> tuple[list[str], MergeModel]:
    """Return the pieces of tokens in the order of their ranks, and how they are merged.

    Args:
        what: the vocabulary in errors.
        tokens: their bytes, all different.
        component: pre-tokenizer in the JSON of the library.
        name: GGUF's name of it.

    Raises:
        ModelError: if they are too long, or have too many merges.
    """
    if sum(map(len, tokens)) > _MAX_BYTES:
        raise ModelError(what, "its tokens are longer than those of any model", _ADVICE)
    pieces = [byte_level_text(token) for token in tokens]
    known = set(pieces)
    pairs = (
        (piece[:at], piece[at:])
        for piece in pieces
        for at in range(1, len(piece))
        if piece[:at] in known and piece[at:] in known
    )
    merges = list(islice(pairs, _MAX_MERGES + 1))
    if len(merges) > _MAX_MERGES:
        raise ModelError(what, "it has more merges than that of any model", _ADVICE)
    return pieces, MergeModel(merges, component, options={"ignore_merges": True}, name=name)


def decode_token(text: str | bytes) -> bytes | None:
    """Return the bytes of a token in base64; None if it has none, or too many."""
    try:
        token = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return token if 1 <= len(token) <= _MAX_TOKEN else None


def _parse(what: str, data: bytes) -> list[bytes]:
    """Return the tokens of a file of lines, each of a token in base64 and its rank."""
    found: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), 1):
        text, _, rank = line.partition(b" ")
        token = decode_token(text)
        if token is None:
            raise _line_error(what, number, f"{text[:40]!r} is no token in base64")
        if rank != str(number - 1).encode():
            raise _line_error(what, number, f"its rank is {rank[:20]!r}, not {number - 1}")
        if found.setdefault(token, number) != number:
            raise _line_error(what, number, f"its token is that of line {found[token]}")
    if len(found) > MAX_TOKENS - _N_SPECIAL:
        raise ModelError(what, f"it has {counted(len(found), 'token')}", _ADVICE)
    return list(found)


def _line_error(what: str, number: int, why: str) -> ModelError:
    return ModelError(what, f"line {number}: {why}", _ADVICE)


def _is_ranked(data: bytes) -> bool:
    """True if the first line is a token in base64 and its rank."""
    token, _, rank = data.partition(b"\n")[0].strip().partition(b" ")
    return decode_token(token) is not None and rank.isdigit()
