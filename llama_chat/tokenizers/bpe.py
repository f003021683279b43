"""Byte-level BPE (Radford et al. 2019): its alphabet, and GGUF's names of pre-tokenizers."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

_GPT_2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DIGIT_SPLIT = r"\p{N}"
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LLAMA_3_SPLIT = (
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN_2_SPLIT = _LLAMA_3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
_SEED_SPLIT = (
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}|"
    r" ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN_SPLIT = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT_4O_SPLIT = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|"
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?|\p{{N}}{{1,3}}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BLOOM_SPLIT = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
_DEEPSEEK_CODER_SPLITS = (
    "[\r\n]",
    r"\s?\p{L}+",
    r"\s?\p{P}+",
    "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
    _DIGIT_SPLIT,
)
_DEEPSEEK_3_SPLITS = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"""
    r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """Division of text into words, within which tokens are merged."""

    splits: tuple[str, ...]
    """Patterns as published with each tokenizer: every match is a word, and so is the text between
    matches. Each pattern further divides the words of the previous one."""
    whole_words: bool = False
    """True if a word that is in the vocabulary is one token, even if no merges lead to it."""
    adds_bos: bool = False
    """True if a prompt begins with BOS unless the checkpoint says otherwise."""

    def component(self) -> dict[str, Any]:
        """Return the pre-tokenizer as a component of the ``tokenizers`` library, in JSON."""
        parts = [
            {"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": False}
            for split in self.splits
        ]
        to_bytes = {"add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        return {
            "type": "Sequence",
            "pretokenizers": [*parts, {"type": "ByteLevel", **to_bytes}],
        }


_GPT_2 = PreTokenizer((_GPT_2_SPLIT,))
_SINGLE_DIGITS = PreTokenizer((_DIGIT_SPLIT, _GPT_2_SPLIT))
_LLAMA_3 = PreTokenizer((_LLAMA_3_SPLIT,), whole_words=True, adds_bos=True)
_GROUPED_DIGITS = PreTokenizer((_LLAMA_3_SPLIT,))
_QWEN_2 = PreTokenizer((_QWEN_2_SPLIT,))

ASSUMED = "gpt-2"
"""Name of the pre-tokenizer of a file that names none."""

# fmt: off
_NAMES = {
    _GPT_2: ("gpt-2", "gpt2", "default", "mpt", "olmo", "jais", "phi-2", "trillion"),
    _SINGLE_DIGITS: (
        "smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b",
    ),
    _LLAMA_3: (
        "llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2", "midm-2.0",
    ),
    _GROUPED_DIGITS: ("dbrx", "smaug-bpe", "chatglm-bpe"),
    _QWEN_2: ("qwen2", "megrez", "stablelm2", "deepseek-r1-qwen", "kormo", "grok-2"),
    PreTokenizer((_TEKKEN_SPLIT,), whole_words=True, adds_bos=True): ("tekken",),
    PreTokenizer((_GPT_4O_SPLIT,)): ("gpt-4o", "llama4"),
    PreTokenizer((_SEED_SPLIT,)): ("seed-coder",),
    PreTokenizer(_DEEPSEEK_CODER_SPLITS): ("deepseek-coder",),
    PreTokenizer(_DEEPSEEK_3_SPLITS): ("deepseek-v3",),
    PreTokenizer((_BLOOM_SPLIT,)): ("bloom", "poro-chat", "gpt3-finnish"),
    PreTokenizer((_BLOOM_SPLIT, _DIGIT_SPLIT)): ("viking",),
}
# fmt: on

PRE_TOKENIZERS: Mapping[str, PreTokenizer] = {
    name: rule for rule, names in _NAMES.items() for name in names
}
"""Pre-tokenizers by their names in GGUF files.

They are defined by https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp. Names are
left out whose rule there may differ from that of the published tokenizer.
"""


def pre_tokenizer_name(component: Mapping[str, Any] | None, *, whole_words: bool) -> str | None:
    """Return GGUF's name of a pre-tokenizer in the library's JSON; None if it has none."""
    rule = component or {}
    splits: list[str] = []
    for part in rule.get("pretokenizers", [rule]):
        match part:
            case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated"}:
                splits.append(pattern)
            case {"type": "Digits", "individual_digits": True}:
                splits.append(_DIGIT_SPLIT)
            case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": words}:
                splits += [_GPT_2_SPLIT] if words else []
            case _:
                return None
    for name, known in PRE_TOKENIZERS.items():
        if known.splits == tuple(splits) and known.whole_words == whole_words:
            return name
    return None


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


_FROM_LATIN1 = {byte: character for character, byte in _BYTES.items()}


def byte_level_bytes(token: str) -> bytes:
    """Return the bytes of a byte-level token, or the UTF-8 of one outside the alphabet."""
    try:
        return token.translate(_TO_LATIN1).encode("latin-1")
    except UnicodeEncodeError:
        return token.encode("utf-8", "replace")


def byte_level_text(data: bytes) -> str:
    """Return the bytes of a token in the byte-level alphabet."""
    return data.decode("latin-1").translate(_FROM_LATIN1)


def missing_bytes(vocabulary: Collection[str]) -> bytes:
    """Return the bytes without a single-byte token in a byte-level vocabulary."""
    return bytes(byte for character, byte in _BYTES.items() if character not in vocabulary)
