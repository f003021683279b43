"""Byte-level BPE (Radford et al. 2019) from the tables of a checkpoint."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from tokenizers import AddedToken, Regex, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from llama_chat.errors import ModelError
from llama_chat.tokenizers.base import DAMAGED, OF_THE_MODEL, is_marker
from llama_chat.tokenizers.library import LibraryTokenizer

GPT_2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
DIGIT_SPLIT = r"\p{N}"
LLAMA_3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN_2_SPLIT = LLAMA_3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True)
class _PreTokenizer:
    """Division of text into words, within which tokens are merged."""

    splits: tuple[str, ...]
    """Patterns as published with each tokenizer: every match is a word, and so is the text between
    matches. Each pattern further divides the words of the previous one."""
    whole_words: bool = False
    """True if a word that is in the vocabulary is one token, even if no merges lead to it."""
    adds_bos: bool = False
    """True if a prompt begins with BOS unless the checkpoint says otherwise."""


_GPT_2 = _PreTokenizer((GPT_2_SPLIT,))
_SINGLE_DIGITS = _PreTokenizer((DIGIT_SPLIT, GPT_2_SPLIT))
_LLAMA_3 = _PreTokenizer((LLAMA_3_SPLIT,), whole_words=True, adds_bos=True)
_GROUPED_DIGITS = _PreTokenizer((LLAMA_3_SPLIT,))

_PRE_TOKENIZERS = {
    **dict.fromkeys(("gpt-2", "gpt2", "default", "mpt", "olmo", "jais"), _GPT_2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell"), _SINGLE_DIGITS),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "lfm2"), _LLAMA_3),
    **dict.fromkeys(("dbrx", "smaug-bpe"), _GROUPED_DIGITS),
    **dict.fromkeys(("qwen2", "megrez"), _PreTokenizer((_QWEN_2_SPLIT,))),
    "tekken": _PreTokenizer((_TEKKEN_SPLIT,), whole_words=True, adds_bos=True),
}
"""Pre-tokenizers by their names in GGUF files."""


def byte_alphabet() -> dict[str, int]:
    """Return the characters that encode bytes in byte-level vocabularies, with those bytes.

    A printable byte is the character of that code; all others, in order, are the characters from
    U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + i): byte for i, byte in enumerate(others)
    }


_BYTES = byte_alphabet()


_NOT_LATIN1 = "\uffff"
"""Replacement for Latin-1 characters outside the byte alphabet, so that encoding them fails."""

_TO_LATIN1 = dict.fromkeys(range(256), _NOT_LATIN1) | {
    ord(character): chr(byte) for character, byte in _BYTES.items()
}


def byte_level_bytes(token: str) -> bytes:
    """Return the bytes of a byte-level token, or the UTF-8 of one outside the alphabet."""
    try:
        return token.translate(_TO_LATIN1).encode("latin-1")
    except UnicodeEncodeError:
        return token.encode("utf-8", "replace")


def missing_bytes(vocabulary: Mapping[str, int]) -> bytes:
    """Return the bytes without a single-byte token in a byte-level vocabulary."""
    return bytes(byte for character, byte in _BYTES.items() if character not in vocabulary)


class BytePairTokenizer(LibraryTokenizer):
    """Byte-level BPE from a vocabulary and its merges."""

    kind = "byte-level BPE"

    def __init__(
        self,
        *,
        tokens: Sequence[str],
        merges: Sequence[str],
        control_ids: AbstractSet[int],
        pre_tokenizer: str,
        bos_id: int | None,
        eos_id: int | None,
        add_bos: bool | None,
        added_ids: AbstractSet[int] = frozenset(),
    ) -> None:
        """Build the tokenizer from the tables of a checkpoint; see ``BytePairSource``.

        Raises:
            ModelError: if the tables contradict each other, or the pre-tokenizer is not known.
        """
        rule = _rule(pre_tokenizer)
        self.bos_id, self.eos_id = bos_id, eos_id
        self.add_bos = bos_id is not None and (rule.adds_bos if add_bos is None else add_bos)
        control = {i for i in added_ids if is_marker(tokens[i])} | control_ids
        control |= {token_id for token_id in (bos_id, eos_id) if token_id is not None}
        vocabulary = {token: i for i, token in enumerate(tokens) if i not in control}
        pairs = []
        for merge in merges:
            left, _, right = merge.partition(" ")
            if not (left in vocabulary and right in vocabulary and left + right in vocabulary):
                raise _error(f"merge {merge[:60]!r} is not of its tokens")
            pairs.append((left, right))
        backend = Backend(BPE(vocab=vocabulary, merges=pairs, ignore_merges=rule.whole_words))
        backend.pre_tokenizer = divide(pre_tokenizer)
        table = [b"" if i in control else byte_level_bytes(t) for i, t in enumerate(tokens)]
        plain = sorted(added_ids - control)
        for i in plain:
            table[i] = tokens[i].encode("utf-8", "replace")
        backend.add_tokens([AddedToken(tokens[i], normalized=False) for i in plain])
        super().__init__(
            backend,
            OF_THE_MODEL,
            pieces=tokens,
            table=table,
            control_ids={tokens[i]: i for i in sorted(control)},
            missing=missing_bytes(vocabulary),
        )


def divide(name: str) -> pre_tokenizers.PreTokenizer:
    """Return the library's object for the pre-tokenizer ``name``.

    Raises:
        ModelError: if it is not known.
    """
    splits = [pre_tokenizers.Split(Regex(split), "isolated") for split in _rule(name).splits]
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([*splits, to_bytes])


def takes_whole_words(name: str) -> bool:
    """True if a word that is in the vocabulary is one token for the pre-tokenizer ``name``."""
    return _rule(name).whole_words


def pre_tokenizer_name(splits: Sequence[str], *, whole_words: bool) -> str | None:
    """Return the name of the pre-tokenizer with these splits; None if there is none."""
    for name, rule in _PRE_TOKENIZERS.items():
        if rule.splits == tuple(splits) and rule.whole_words == whole_words:
            return name
    return None


def _rule(name: str) -> _PreTokenizer:
    rule = _PRE_TOKENIZERS.get(name)
    if rule is None:
        raise _error(f"its pre-tokenizer {name[:40]!r} is not known")
    return rule


def _error(why: str) -> ModelError:
    return ModelError(OF_THE_MODEL, why, DAMAGED)
