"""One vocabulary in every format of a checkpoint, and texts that are hard to tokenize."""

import random
from collections.abc import Mapping
from typing import Any

import sentencepiece
from tokenizers import Tokenizer as Backend

from llama_chat.tokenizers.vocabulary import PieceModel, Vocabulary
from tests.model_files import CONTROL_TOKENS, MERGES, TOKENS

_HARD = [
    *(" ", "  ", "      ", "\t", "\n", "\r\n", "\x00", "\x1b[31m", "\x7f", "\u200d", "\u202e"),
    *(
        "é",
        "e\u0301",
        "ß",
        "漢字",
        "かな",
        "한국",
        "😀",
        "👩\u200d🚀",
        "🏳️",
        "ﷺ",
        "\ufffd",
        "\u2581",
    ),
    *("<s>", "</s>", "<unk>", "[INST]", "<<SYS>>", "<|im_start|>", "<0x0A>", "▁the"),
    *("a", "the", " of", "Once upon", "don't", "1234567", "3.14", "...", "==", "http://x.y/z?q"),
]


def hard_texts(count: int = 1000) -> list[str]:
    """Make texts that are hard to tokenize, the same ones each time."""
    generator = random.Random(0)

    def part() -> str:
        if generator.random() < 0.7:
            return generator.choice(_HARD)
        return chr(generator.choice((0x80, 0x800, 0xD800, 0x10000)) + generator.randrange(-128, 0))

    return ["".join(part() for _ in range(generator.randrange(30))) for _ in range(count)]


def piece_tables(model: bytes) -> dict[str, Any]:
    """Read the tables of a SentencePiece model with its library."""
    library = sentencepiece.SentencePieceProcessor()
    library.LoadFromSerializedProto(model)
    ids = list(range(library.vocab_size()))
    types = [1] * len(ids)
    flags = {2: library.is_unknown, 3: library.is_control, 5: library.is_unused, 6: library.is_byte}
    for kind, is_of_kind in flags.items():
        for i, found in enumerate(is_of_kind(ids)):
            types[i] = kind if found else types[i]
    return {
        "tokens": library.id_to_piece(ids),
        "scores": library.get_score(ids),
        "types": types,
        "bos_id": library.bos_id(),
        "eos_id": library.eos_id(),
    }


def piece_vocabulary(tables: Mapping[str, Any], **facts: Any) -> Vocabulary:
    """Make the vocabulary of the tables of a SentencePiece model."""
    return Vocabulary(
        what="tokenizer",
        pieces=tables["tokens"],
        types=tables["types"],
        model=PieceModel(tables["scores"]),
        bos_id=tables["bos_id"],
        eos_id=tables["eos_id"],
        **{"add_bos": True, "prefix": "every", **facts},
    )


def piece_json(model: bytes, *, metaspace: bool = False) -> dict[str, Any]:
    """Make a ``tokenizer.json`` equivalent to a SentencePiece model, in either spelling."""
    tables = piece_tables(model)
    tokens, scores, types = tables["tokens"], tables["scores"], tables["types"]
    vocab = {token: i for i, token in enumerate(tokens)}
    merges = [
        (-scores[i], vocab[token[:at]], vocab[token[at:]], token[:at], token[at:])
        for i, token in enumerate(tokens)
        if types[i] == 1
        for at in range(1, len(token))
        if token[:at] in vocab and token[at:] in vocab
    ]
    prepend = [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ]
    divided = {
        "type": "Metaspace",
        "replacement": "▁",
        "prepend_scheme": "first",
        "split": False,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added(i, tokens[i]) for i, kind in enumerate(types) if kind in (2, 3)],
        "normalizer": None if metaspace else {"type": "Sequence", "normalizers": prepend},
        "pre_tokenizer": divided if metaspace else None,
        "post_processor": begin_with("<s>", vocab["<s>"]),
        "decoder": None,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocab,
            "merges": [f"{left} {right}" for *_, left, right in sorted(merges)],
        },
    }


def byte_level_json() -> dict[str, Any]:
    """Make a ``tokenizer.json`` like Llama 3's, whose control tokens are outside the vocabulary."""
    llama_3 = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+"
        r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    split = {"type": "Split", "pattern": {"Regex": llama_3}, "behavior": "Isolated"}
    to_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    first = len(CONTROL_TOKENS)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added(i, text) for i, text in enumerate(CONTROL_TOKENS)],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{**split, "invert": False}, {**to_bytes, "use_regex": False}],
        },
        "post_processor": {
            "type": "Sequence",
            "processors": [{**to_bytes, "use_regex": True}, begin_with("<|endoftext|>", 0)],
        },
        "decoder": None,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": {token: first + i for i, token in enumerate(TOKENS[first:])},
            "merges": [merge.split() for merge in MERGES],
        },
    }


def added(token_id: int, text: str, *, special: bool = True) -> dict[str, Any]:
    """Make an entry of ``added_tokens``."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token_id, "content": text, **flags, "special": special}


def begin_with(token: str, token_id: int) -> dict[str, Any]:
    """Make a post-processor that puts ``token`` in front."""
    text = [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"]
    return {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": token, "type_id": 0}}, text[0]],
        "pair": text,
        "special_tokens": {token: {"id": token, "ids": [token_id], "tokens": [token]}},
    }


def library_ids(backend: Backend, text: str) -> list[int]:
    """Encode ``text`` with the ``tokenizers`` library, without special tokens."""
    ids: list[int] = backend.encode(text, add_special_tokens=False).ids
    return ids
