"""Description of a vocabulary, the same for every source."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from pathlib import Path
from typing import Any, Literal

from llama_chat.errors import ModelError, counted

MAX_TOKENS = 2**20
"""Limit on ids, which are list indices here; the largest vocabularies have 262,144 tokens."""

MAX_GAPS = 2**16
"""Limit on ids below the largest that no token has: each gets a name."""

DAMAGED = "the file is damaged or of another kind"

SPACE = "\u2581"
"""Space in the pieces of SentencePiece."""

END_TOKENS = (
    "</s>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
)
"""Control tokens with which models of the family end a turn or a text."""

Prefix = Literal["every", "first", "never"]
"""Texts in front of which a vocabulary puts a space.

Control tokens and added tokens divide a prompt into texts: the space comes before ``every`` one of
them, before the ``first`` if the prompt begins with it, or ``never``.
"""


class TokenType(IntEnum):
    """Types of tokens, as SentencePiece and GGUF number them."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    """Not shown in output: a special token in the words of Hugging Face."""
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class AddedToken:
    """Token that is found in a text before the rest of it is encoded."""

    text: str
    special: bool = True
    """True if it is not shown in output."""
    lstrip: bool = False
    """True if it takes the white space before it along."""
    rstrip: bool = False
    """True if it takes the white space after it along."""
    single_word: bool = False
    """True if it is not found within a word."""
    normalized: bool = False
    """True if it is looked for in the normalized text."""


@dataclass(frozen=True, slots=True)
class PieceModel:
    """SentencePiece's algorithm."""

    scores: Sequence[float]
    """Score of each piece; the pieces of a model file are never fewer."""
    file: bytes = b""
    """The model file, or empty if there are only tables."""


@dataclass(frozen=True, slots=True)
class MergeModel:
    """Byte pair encoding by a list of merges, as the ``tokenizers`` library runs it."""

    merges: Sequence[tuple[str, str]]
    """Pairs of tokens in order of priority."""
    pre_tokenizer: Mapping[str, Any] | None
    """Component of the library, in its JSON."""
    normalizer: Mapping[str, Any] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the library's BPE."""
    byte_level: bool = True
    """True if the tokens are written in the byte-level alphabet, False if in SentencePiece's."""
    name: str = ""
    """GGUF's name of the pre-tokenizer, if the checkpoint gives it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """Tokens by their ids, and all that a checkpoint says about them."""

    what: str
    """Name in errors."""
    pieces: Sequence[str]
    types: Sequence[int]
    """``TokenType`` of each piece."""
    model: PieceModel | MergeModel
    added: Mapping[int, AddedToken] = field(default_factory=dict)
    """Tokens that are found in a text as a whole, by id."""
    bos_id: int | None = None
    eos_id: int | None = None
    add_bos: bool = False
    """True if a raw prompt begins with BOS."""
    add_eos: bool = False
    """True if a raw prompt ends with EOS."""
    prefix: Prefix = "never"
    rowless: Mapping[str, int] = field(default_factory=dict)
    """Tokens that the model has no embedding of, and their ids."""
    file: Path | None = None
    """Tokenizer file that it was read from."""

    def checked(self) -> "Vocabulary":
        """Return the vocabulary itself, if its pieces can be told apart.

        A control token may be written like one of text, unless it is SentencePiece's.

        Raises:
            ModelError: naming a token that is empty, or two that are the same.
        """
        groups: dict[bool, list[tuple[int, str]]] = {}
        apart = isinstance(self.model, MergeModel)
        for i, (piece, kind) in enumerate(zip(self.pieces, self.types, strict=True)):
            if kind != TokenType.UNUSED:
                groups.setdefault(apart and kind == TokenType.CONTROL, []).append((i, piece))
        for group in groups.values():
            if why := odd_piece(group):
                raise ModelError(self.what, why, "take another conversion of the model")
        return self

    def control_ids(self) -> dict[str, int]:
        """Return the tokens that no text may become, by their text, in the order of their ids.

        They are the control tokens, BOS and EOS, added tokens that look like markers, and tokens
        of any type that look like those of chats.
        """
        odd = [i for i, kind in enumerate(self.types) if kind != TokenType.NORMAL]
        found = {i for i in odd if self.types[i] in (TokenType.CONTROL, TokenType.UNKNOWN)}
        found |= {
            i for i in odd if self.types[i] == TokenType.USER_DEFINED and is_marker(self.pieces[i])
        }
        closed = [i for i, piece in enumerate(self.pieces) if piece.endswith((">", "]"))]
        found |= {i for i in closed if is_chat_token(self.pieces[i])}
        found |= {i for i in (self.bos_id, self.eos_id) if i is not None}
        return {self.pieces[i]: i for i in sorted(found)}

    def with_added(self, tokens: Mapping[int, AddedToken]) -> "Vocabulary":
        """Return a copy with added tokens, which replace those of the same id.

        Raises:
            ModelError: if an id is out of range.
        """
        last = max(tokens, default=-1)
        if min(tokens, default=0) < 0 or last >= MAX_TOKENS:
            raise ModelError(
                self.what, f"an id is no whole number from 0 to {MAX_TOKENS - 1}", DAMAGED
            )
        check_gaps(self.what, last + 1, len(self.pieces) + len(tokens))
        grown = self.padded(last + 1, "<{}>")
        pieces, types = list(grown.pieces), list(grown.types)
        for i, token in tokens.items():
            pieces[i] = token.text
            if types[i] != TokenType.UNKNOWN:
                types[i] = TokenType.CONTROL if token.special else TokenType.USER_DEFINED
        return replace(grown, pieces=pieces, types=types, added={**self.added, **tokens})

    def padded(self, size: int, name: str = "[PAD{}]") -> "Vocabulary":
        """Return a copy of at least ``size`` tokens; the new ones are unused."""
        missing = range(len(self.pieces), size)
        model = self.model
        if isinstance(model, PieceModel):
            model = replace(model, scores=[*model.scores, *(0.0 for _ in missing)])
        return replace(
            self,
            pieces=[*self.pieces, *(name.format(i) for i in missing)],
            types=[*self.types, *(TokenType.UNUSED for _ in missing)],
            model=model,
        )

    def limited(self, n_rows: int) -> "Vocabulary":
        """Return a copy without the tokens of which a model with ``n_rows`` has no embedding.

        Raises:
            ModelError: if there are some that ordinary text consists of.
        """
        missing = range(n_rows, len(self.pieces))
        if not missing:
            return self
        if any(map(self._is_ordinary, missing)):
            raise ModelError(
                self.what,
                f"it has {counted(len(self.pieces), 'token')} and the model {n_rows}",
                "use the tokenizer that came with the model",
            )
        model = self.model
        if isinstance(model, PieceModel):
            model = replace(model, scores=model.scores[:n_rows])
        bos_id, eos_id = (i if i not in missing else None for i in (self.bos_id, self.eos_id))
        return replace(
            self,
            pieces=self.pieces[:n_rows],
            types=self.types[:n_rows],
            model=model,
            added={i: rule for i, rule in self.added.items() if i not in missing},
            bos_id=bos_id,
            eos_id=eos_id,
            add_bos=self.add_bos and bos_id is not None,
            add_eos=self.add_eos and eos_id is not None,
            rowless={self.pieces[i]: i for i in missing},
        )

    def _is_ordinary(self, token_id: int) -> bool:
        kind, piece = self.types[token_id], self.pieces[token_id]
        return kind in (TokenType.NORMAL, TokenType.BYTE) and not is_marker(piece)


def check_gaps(what: str, n_ids: int, n_tokens: int) -> None:
    """Check that nearly all ids below ``n_ids`` may be those of ``n_tokens``.

    Raises:
        ModelError: about ``what``, if more than ``MAX_GAPS`` cannot.
    """
    if n_ids - n_tokens > MAX_GAPS:
        why = f"it has an id of {n_ids - 1} and only {counted(n_tokens, 'token')}"
        raise ModelError(what, why, DAMAGED)


def odd_piece(pieces: Iterable[tuple[int, str]]) -> str:
    """Return a token that is empty or the same as another; an empty text if there is none.

    Args:
        pieces: ids and pieces of tokens.
    """
    ids: dict[str, int] = {}
    for i, piece in pieces:
        if not piece:
            return f"token {i} is empty"
        if ids.setdefault(piece, i) != i:
            return f"tokens {ids[piece]} and {i} are both {piece[:40]!r}"
    return ""


_MARKER = re.compile(rf"{SPACE}*(<\S+>|\[\S+\]){SPACE}*")

_CHAT_TOKEN = re.compile(
    r"<[|\uff5c][^\s|]*\w[^\s|]*[|\uff5c]>|<</?SYS>>|[<\[]EOT[>\]]"
    r"|<(?:start_of_turn|end_of_turn|end_of_utterance)>"
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\]"
)


def is_marker(token: str) -> bool:
    """True if a token added to a vocabulary has the pattern ``<…>`` or ``[…]``, without spaces.

    Some files declare ``<|im_start|>`` a control token, others an ordinary added token. Here no
    text becomes an added token of that pattern; the others, such as a run of spaces, are text.
    """
    return _MARKER.fullmatch(token) is not None


def is_chat_token(token: str) -> bool:
    """True if a token is written as those that divide chats into turns, such as ``<|im_start|>``.

    Some files have them among the tokens of ordinary text.
    """
    return _CHAT_TOKEN.fullmatch(token) is not None
