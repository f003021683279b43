"""Byte-level BPE (Radford et al. 2019), on the ``tokenizers`` library."""

import re
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet

from tokenizers import Regex, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from llama_chat.errors import ModelError
from llama_chat.tokenizers.base import Span, Tokenizer, without_surrogates

_LLAMA_3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Llama 3 divides text into words, as published with its tokenizer."""
_LLAMA_3 = ("llama-bpe", "llama3")


def byte_alphabet() -> dict[str, int]:
    """The characters by which byte-level vocabularies write bytes.

    Printable bytes stand for themselves; all others, in order, for the characters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + i): byte for i, byte in enumerate(others)
    }


_BYTES = byte_alphabet()


class BytePairTokenizer(Tokenizer):
    """A byte-level vocabulary with its merges.

    The control tokens are kept from the algorithm, so that no text can produce one.
    """

    kind = "byte-level BPE"
    dummy_prefix = False

    def __init__(
        self,
        *,
        tokens: Sequence[str],
        merges: Sequence[str],
        control_ids: AbstractSet[int],
        pre_tokenizer: str,
        bos_id: int | None,
        eos_id: int | None,
        add_bos: bool,
    ) -> None:
        """Build it from the tables of a checkpoint; see ``BytePairSource``.

        Raises:
            ModelError: if the tables contradict each other, or the pre-tokenizer is not known.
        """
        self.vocab_size = len(tokens)
        self.bos_id, self.eos_id, self.add_bos = bos_id, eos_id, add_bos
        self.control_ids = {tokens[i]: i for i in sorted(control_ids)}
        self._tokens = tokens
        self._bytes = [
            b"" if i in control_ids else _token_bytes(token) for i, token in enumerate(tokens)
        ]
        vocabulary = {token: i for i, token in enumerate(tokens) if i not in control_ids}
        pairs = []
        for merge in merges:
            left, _, right = merge.partition(" ")
            if not (left in vocabulary and right in vocabulary and left + right in vocabulary):
                raise _error(f"merge {merge[:60]!r} is not of its tokens")
            pairs.append((left, right))
        missing = [byte for character, byte in _BYTES.items() if character not in vocabulary]
        if not set(missing).isdisjoint("\ufffd".encode()):
            raise _error("it lacks tokens for single bytes")
        self._unwritable = re.compile(b"[" + re.escape(bytes(missing)) + b"]") if missing else None
        # Llama 3 has tokens for whole words that its merges do not reach.
        whole_words = pre_tokenizer in _LLAMA_3
        self._backend = Backend(BPE(vocab=vocabulary, merges=pairs, ignore_merges=whole_words))
        self._backend.pre_tokenizer = _pre_tokenizer(pre_tokenizer)

    def encode(self, text: str, *, spell: Iterable[Span] = ()) -> list[int]:
        """See the base class."""
        text = self._writable(without_surrogates(text))
        ids: list[int] = []
        at = 0
        for start, end in sorted(spell):
            ids += self._encode(text[at:start])
            for character in text[max(at, start) : end]:
                ids += self._encode(character)
            at = max(at, end)
        return ids + self._encode(text[at:])

    def _writable(self, text: str) -> str:
        """``text`` with U+FFFD for characters of bytes that no token writes.

        Vocabularies lack bytes that their training text never held, and the algorithm would drop
        such characters without a word.
        """
        unwritable = self._unwritable
        if unwritable is None or not unwritable.search(text.encode()):
            return text
        return "".join("\ufffd" if unwritable.search(c.encode()) else c for c in text)

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids

    def token_bytes(self, token_id: int) -> bytes:
        """See the base class."""
        return self._bytes[token_id] if 0 <= token_id < self.vocab_size else b""

    def piece(self, token_id: int) -> str:
        """See the base class."""
        return self._tokens[token_id] if 0 <= token_id < self.vocab_size else f"<{token_id}>"


def _token_bytes(token: str) -> bytes:
    """The bytes that a token writes; an added token outside the alphabet stands for its text."""
    try:
        return bytes(_BYTES[character] for character in token)
    except KeyError:
        return without_surrogates(token).encode()


def _pre_tokenizer(name: str) -> pre_tokenizers.PreTokenizer:
    """The rule by which text is divided into words, within which tokens are merged."""
    if name == "smollm":
        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    if name in ("default", "gpt2", "gpt-2"):
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if name in _LLAMA_3:
        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_LLAMA_3_SPLIT), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    raise _error(f"its pre-tokenizer {name[:40]!r} is not known")


def _error(why: str) -> ModelError:
    return ModelError("tokenizer of the model", why, "the file is damaged or of another kind")
