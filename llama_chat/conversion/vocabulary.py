"""Conversion of any vocabulary to the tables of GGUF."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece

from llama_chat.checkpoints.base import (
    BytePairSource,
    SentencePieceSource,
    SentencePieceTables,
    TokenizerJsonSource,
    TokenizerSource,
)
from llama_chat.checkpoints.small_files import decoding
from llama_chat.errors import ModelError
from llama_chat.tokenizers.base import TokenType, read_file
from llama_chat.tokenizers.bpe import DIGIT_SPLIT, GPT_2_SPLIT, pre_tokenizer_name
from llama_chat.tokenizers.tokenizer_json import read_document

_MAX_TOKENS = 2**22
"""Limit on ids, which are list indices here; the largest vocabularies have 262,144 tokens."""

_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Tokens by their ids, with scores, or with merges in order of priority."""

    tokens: list[str]
    types: Sequence[int]
    scores: list[float] | None = None
    merges: list[str] | None = None
    pre_tokenizer: str | None = None
    """GGUF's name of the pre-tokenizer; None with scores."""

    def padded(self, size: int) -> "Vocabulary":
        """Return a copy with unused tokens at the end, so that each embedding row has a token."""
        missing = range(len(self.tokens), size)
        return Vocabulary(
            [*self.tokens, *(f"[PAD{i}]" for i in missing)],
            [*self.types, *(TokenType.UNUSED for _ in missing)],
            None if self.scores is None else [*self.scores, *(0.0 for _ in missing)],
            self.merges,
            self.pre_tokenizer,
        )


def vocabulary_of(source: TokenizerSource) -> Vocabulary:
    """Return the tables of ``source``, which was checked when its tokenizer was loaded.

    Raises:
        ModelError: if GGUF has no tables for it.
    """
    match source:
        case SentencePieceSource(path):
            with decoding(_label(path)):
                return _of_model(path)
        case SentencePieceTables():
            return Vocabulary(source.tokens, source.types, source.scores)
        case BytePairSource():
            types = [TokenType.NORMAL] * len(source.tokens)
            for i in source.added_ids:
                types[i] = TokenType.USER_DEFINED
            for i in source.control_ids:
                types[i] = TokenType.CONTROL
            return Vocabulary(
                source.tokens, types, merges=source.merges, pre_tokenizer=source.pre_tokenizer
            )
        case TokenizerJsonSource(path):
            with decoding(_label(path)):
                return _of_json(path)


def _label(path: Path) -> str:
    return f"tokenizer {str(path)!r}"


def _of_model(path: Path) -> Vocabulary:
    """Return the tables of a SentencePiece model."""
    model = sentencepiece.SentencePieceProcessor()
    model.LoadFromSerializedProto(read_file(path, _label(path)))
    ids = list(range(model.vocab_size()))

    def type_of(token_id: int) -> TokenType:
        if model.is_unknown(token_id):
            return TokenType.UNKNOWN
        if model.is_control(token_id):
            return TokenType.CONTROL
        if model.is_byte(token_id):
            return TokenType.BYTE
        return TokenType.UNUSED if model.is_unused(token_id) else TokenType.NORMAL

    return Vocabulary(model.id_to_piece(ids), list(map(type_of, ids)), model.get_score(ids))


def _of_json(path: Path) -> Vocabulary:
    """Return the tables of a ``tokenizer.json`` that the library has already read."""
    document: Any = read_document(path, _label(path))
    model = document["model"]
    if model.get("type", "BPE") != "BPE":
        raise _error(path, f"its tokenizer is of the kind {model['type']}")
    ids: dict[str, int] = dict(model["vocab"])
    added = document.get("added_tokens", [])
    ids |= {token["content"]: token["id"] for token in added}
    n_tokens = max(ids.values(), default=-1) + 1
    if n_tokens > _MAX_TOKENS:
        raise _error(path, f"it has a token of id {n_tokens - 1}")
    tokens = [f"[PAD{i}]" for i in range(n_tokens)]
    types = [TokenType.UNUSED] * len(tokens)
    for token, i in ids.items():
        tokens[i], types[i] = token, TokenType.NORMAL
    # Older files contain "left right", newer ones pairs.
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    for token in added:
        types[token["id"]] = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
    if not model.get("byte_fallback"):
        return Vocabulary(tokens, types, merges=merges, pre_tokenizer=_gguf_name(path, document))
    for token, i in ids.items():
        if _BYTE_TOKEN.fullmatch(token):
            types[i] = TokenType.BYTE
    unknown = ids.get(model.get("unk_token") or "")
    if unknown is not None:
        types[unknown] = TokenType.UNKNOWN
    return Vocabulary(tokens, types, _scores(tokens, merges))


def _scores(tokens: Sequence[str], merges: Sequence[str]) -> list[float]:
    """Return scores that give SentencePiece the order of ``merges``: earlier ones score higher."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault(merge.replace(" ", ""), rank)
    return [-float(ranks.get(token, len(merges))) for token in tokens]


def _gguf_name(path: Path, document: Mapping[str, Any]) -> str:
    """Return GGUF's name of the pre-tokenizer.

    Raises:
        ModelError: if it has none.
    """
    rule = document.get("pre_tokenizer") or {}
    splits: list[str] = []
    for part in rule.get("pretokenizers", [rule]):
        match part:
            case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated"}:
                splits.append(pattern)
            case {"type": "Digits", "individual_digits": True}:
                splits.append(DIGIT_SPLIT)
            case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": words}:
                splits += [GPT_2_SPLIT] if words else []
            case _:
                splits.append(str(part))  # matches no name
    whole_words = bool(document["model"].get("ignore_merges"))
    name = pre_tokenizer_name(splits, whole_words=whole_words)
    if name is None:
        raise _error(path, "it divides text in a way that GGUF has no name for")
    return name


def _error(path: Path, why: str) -> ModelError:
    return ModelError(_label(path), why, "convert to safetensors, which copies it")
