"""Reader of ``tekken.json``, the vocabulary of Mistral's later models.

Special tokens have the first ids; those of text follow in the order of their ranks.
"""

from pathlib import Path
from typing import Any

from llama_chat.errors import ModelError
from llama_chat.tokenizers.base import without_surrogates
from llama_chat.tokenizers.bpe import PreTokenizer, pre_tokenizer_name
from llama_chat.tokenizers.ranked import decode_token, merge_model
from llama_chat.tokenizers.tokenizer_json import read_document
from llama_chat.tokenizers.vocabulary import DAMAGED, MAX_TOKENS, TokenType, Vocabulary

_OLDER = (
    *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
    *("[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]"),
    *("[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
    "[TOOL_CONTENT]",
)
"""Special tokens of files that list none."""

_MAX_SPECIAL = 2**14
"""Limit on special tokens, which need not be in the file; those of Mistral have 1000."""


def read_tekken(path: Path) -> Vocabulary:
    """Read the vocabulary.

    Raises:
        ModelError: if it is damaged.
    """
    file = _File(path)
    special, tokens = file.special(), file.tokens()
    rule = PreTokenizer((file.pattern(),), whole_words=True).component()
    name = pre_tokenizer_name(rule, whole_words=True) or ""
    pieces, model = merge_model(file.what, tokens, rule, name)
    bos_id, eos_id = (special.index(t) if t in special else None for t in ("<s>", "</s>"))
    return Vocabulary(
        what=file.what,
        pieces=[*special, *pieces],
        types=[TokenType.CONTROL] * len(special) + [TokenType.NORMAL] * len(pieces),
        model=model,
        bos_id=bos_id,
        eos_id=eos_id,
        add_bos=bos_id is not None,
    ).checked()


class _File:
    """Content of the file, with each value type-checked when it is read."""

    def __init__(self, path: Path) -> None:
        self.what = f"tokenizer {str(path)!r}"
        self._values = self._table(read_document(path, self.what), "the whole")
        self._config = self._table(self._values.get("config"), "config")

    def _error(self, why: str) -> ModelError:
        return ModelError(self.what, why, DAMAGED)

    def _table(self, value: object, name: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self._error(f"{name} is not a table")
        return value

    def _size(self, name: str, most: int = MAX_TOKENS) -> int:
        value = self._config.get(name)
        if type(value) is not int or not 0 <= value <= most:
            raise self._error(f"{name} is no whole number from 0 to {most}")
        return value

    @property
    def _n_special(self) -> int:
        return self._size("default_num_special_tokens", _MAX_SPECIAL)

    def _list(self, name: str) -> list[Any]:
        value = self._values.get(name)
        if not isinstance(value, list):
            raise self._error(f"{name} is not a list")
        return value

    def pattern(self) -> str:
        """Return the pattern that divides text into words."""
        pattern = self._config.get("pattern")
        if not isinstance(pattern, str):
            raise self._error("pattern is not a text")
        return pattern

    def special(self) -> list[str]:
        """Return the special tokens, with names for those that have none."""
        n_special = self._n_special
        if self._values.get("special_tokens") is None:
            named = list(_OLDER)
        else:
            named = [self._text(at, entry) for at, entry in enumerate(self._list("special_tokens"))]
        return [*named, *(f"<SPECIAL_{i}>" for i in range(len(named), n_special))][:n_special]

    def _text(self, rank: int, entry: object) -> str:
        """Return a special token, checking its place."""
        token = self._table(entry, f"special token {rank}")
        text = token.get("token_str")
        if not isinstance(text, str) or token.get("rank") != rank:
            raise self._error(f"special token {rank} has no text, or another rank")
        return without_surrogates(text)

    def tokens(self) -> list[bytes]:
        """Return the tokens of text; the file has more than the model."""
        n_tokens = self._size("default_vocab_size") - self._n_special
        entries = self._list("vocab")[: max(n_tokens, 0)]
        found: dict[bytes, int] = {}
        for rank, entry in enumerate(entries):
            token = self._table(entry, f"token {rank}")
            text = token.get("token_bytes")
            data = decode_token(text) if isinstance(text, str) else None
            if data is None:
                raise self._error(f"token {rank} is no token in base64")
            if token.get("rank") != rank:
                raise self._error(f"token {rank} has another rank")
            if found.setdefault(data, rank) != rank:
                raise self._error(f"tokens {found[data]} and {rank} are the same")
        return list(found)
