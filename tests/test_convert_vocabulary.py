"""``convert`` keeps every declaration of a vocabulary both ways, or says what it cannot keep."""

import json
from pathlib import Path
from typing import Any

import gguf
import pytest

from llama_chat.chat.conversation import Message
from llama_chat.chat.templates import template_class
from llama_chat.cli.app import run
from llama_chat.llama import Llama
from llama_chat.loading.plan import load
from tests.folders import (
    by_transformers,
    chatml_tokens,
    decoder_of,
    with_added,
    write_chain,
    write_tokenizer_files,
)
from tests.model_files import TOKENS, sentencepiece_model
from tests.vocabularies import added, byte_level_json, piece_json

MODEL = sentencepiece_model()
PIECES = piece_json(MODEL)
SIZE = len(PIECES["model"]["vocab"])
SPACED = piece_json(MODEL, metaspace=True)
BYTES = byte_level_json()
BYTES["model"]["vocab"] |= {t["content"]: t["id"] for t in BYTES["added_tokens"]}

TEXTS = [
    *("Hello, world!", "the thin hen", "two  spaces\n\n", "naïve café 你好 🦙", "12345", ""),
    *("<|im_end|> <think>a</think>", "azwordb zword c", "<pad> <s> <unk>", "[INST] x [/INST]"),
]


def more(first: int) -> list[dict[str, Any]]:
    """Return added tokens of every kind: of a chat, a word, a shown marker and one without use."""
    return [
        *chatml_tokens(first),
        added(first + 2, "zword", special=False),
        added(first + 3, "<think>", special=False),
        added(first + 4, "<tool>"),
    ]


def config(first: int, **values: object) -> dict[str, Any]:
    return {"added_tokens_decoder": decoder_of(more(first)), "eos_token": "<|im_end|>", **values}


FAST = {"bos_token": "<s>", "eos_token": "<|im_end|>"}
SOURCES: dict[str, dict[str, Any]] = {
    "model": {"model": MODEL, "config": config(SIZE)},
    "model, not legacy": {"model": MODEL, "config": config(SIZE, legacy=False)},
    "model, no space": {"model": MODEL, "config": config(SIZE, add_prefix_space=False)},
    "model, no BOS, EOS": {
        "model": MODEL,
        "config": config(SIZE, add_bos_token=False, add_eos_token=True),
    },
    "both": {"model": MODEL, "document": with_added(PIECES, *more(SIZE)), "config": FAST},
    "prepend": {"document": with_added(PIECES, *more(SIZE)), "config": FAST},
    "first": {"document": with_added(SPACED, *more(SIZE)), "config": FAST},
    "first of Llama": {
        "document": with_added(PIECES, *more(SIZE)),
        "config": {**FAST, "tokenizer_class": "LlamaTokenizer", "legacy": False},
    },
    "bytes": {
        "document": with_added(BYTES, *more(len(TOKENS) - 2)[2:]),
        "config": {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>", "add_eos_token": True},
    },
}
FIRST = {"model, not legacy", "first", "first of Llama"}
"""Sources with a space in front of the first text, which GGUF cannot say."""


def facts(llama: Llama, *, with_prefix: bool = True) -> dict[str, object]:
    """Return all that a converted model must have in common with its source."""
    tokenizer = llama.tokenizer
    dialog = [Message("user", "the <think>"), Message("assistant", "zword"), Message("user", " a")]
    found: dict[str, object] = {
        "prompts": [llama.prompt_ids(text) for text in TEXTS],
        "control": dict(tokenizer.control_ids),
        "shown": [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)],
        "flags": (tokenizer.bos_id, tokenizer.eos_id, tokenizer.add_bos, tokenizer.add_eos),
        "ends": sorted(llama.engine().end_ids),
    }
    if with_prefix:
        found["prefix"] = tokenizer.prefix
        found["chat"] = template_class("chatml")(tokenizer).render(dialog)
        found["plain"] = template_class("plain")(tokenizer).render(dialog)
    return found


def convert(*arguments: str | Path) -> None:
    assert run(["convert", "-q", *map(str, arguments)]) == 0


@pytest.mark.parametrize("case", SOURCES)
def test_a_vocabulary_is_kept_both_ways(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    n_rows = len(TOKENS) + 3 if case == "bytes" else SIZE + 5
    source = write_tokenizer_files(tmp_path / "source", **SOURCES[case])
    write_chain(source, n_rows, [50, 51, 2])
    before = load(source, dtype="float32")
    expected = facts(before)
    convert(source, tmp_path / "folder")
    assert capsys.readouterr().err == ""
    assert facts(load(tmp_path / "folder", dtype="float32")) == expected
    convert(source, tmp_path / "m.gguf")
    said = capsys.readouterr().err
    assert ("in front of every text" in said) == (case in FIRST)
    assert len(said.splitlines()) == (case in FIRST)
    kept = case not in FIRST
    after = load(tmp_path / "m.gguf", dtype="float32")
    expected = facts(before, with_prefix=kept)
    if not kept:  # GGUF has the space after every added token, too
        prompts: Any = expected["prompts"]
        assert facts(after, with_prefix=False) | {"prompts": prompts} == expected
        assert [after.prompt_ids(t) for t in TEXTS[:6]] == prompts[:6]
        return
    assert facts(after) == expected
    convert(tmp_path / "m.gguf", tmp_path / "again")
    convert(tmp_path / "again", tmp_path / "again.gguf")
    assert capsys.readouterr().err == ""
    assert facts(load(tmp_path / "again", dtype="float32")) == expected
    assert facts(load(tmp_path / "again.gguf", dtype="float32")) == expected


@pytest.mark.parametrize("case", ["model", "model, not legacy", "model, no BOS, EOS", "bytes"])
def test_transformers_reads_a_converted_vocabulary(case: str, tmp_path: Path) -> None:
    n_rows = len(TOKENS) + 3 if case == "bytes" else SIZE + 5
    source = write_tokenizer_files(tmp_path / "source", **SOURCES[case])
    write_chain(source, n_rows, [50, 51, 2])
    convert(source, tmp_path / "folder")
    ours = load(source, dtype="float32")
    theirs = by_transformers(tmp_path / "folder")
    for text in filter(None, TEXTS):
        if not any(name in text for name in ours.tokenizer.control_ids):
            assert theirs.encode(text, add_special_tokens=False) == ours.tokenizer.encode(text)
            if case != "bytes":  # beside a copied file transformers does not follow the flags
                assert theirs(text).input_ids == ours.prompt_ids(text)
    for name, token_id in ours.tokenizer.control_ids.items():
        assert theirs.convert_tokens_to_ids(name) == token_id


def test_flags_are_in_the_files(tmp_path: Path) -> None:
    source = write_tokenizer_files(tmp_path / "source", **SOURCES["model, no BOS, EOS"])
    write_chain(source, SIZE + 5, [50, 51, 2])
    convert(source, tmp_path / "folder")
    convert(source, tmp_path / "m.gguf")
    written = json.loads((tmp_path / "folder" / "tokenizer_config.json").read_text())
    assert (written["add_bos_token"], written["add_eos_token"]) == (False, True)
    assert written["eos_token"] == "<|im_end|>"
    assert written["added_tokens_decoder"][str(SIZE + 3)]["content"] == "<think>"
    assert written["added_tokens_decoder"][str(SIZE + 3)]["special"] is False
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    found = {name.removeprefix("tokenizer.ggml."): field for name, field in fields.items()}
    assert found["add_bos_token"].contents() is False
    assert found["add_eos_token"].contents() is True
    assert found["token_type"].contents()[-5:] == [3, 3, 4, 4, 3]
    assert found["eos_token_id"].contents() == SIZE


def odd(**flags: bool) -> dict[str, Any]:
    return {**added(SIZE, "<odd>", special=False), **flags}


LOSSES: dict[str, tuple[dict[str, Any], str]] = {
    "white space": (
        {"document": with_added(PIECES, odd(rstrip=True))},
        "GGUF has no white space around added tokens: '<odd>' lose theirs",
    ),
    "no row": (
        {"document": with_added(PIECES, *(added(SIZE + i, f"<x{i}>") for i in range(6)))},
        "left out: '<x1>', '<x2>', '<x3>' and 2 more",
    ),
    "normalization": (
        {"document": {**BYTES, "normalizer": {"type": "NFC"}}},
        "GGUF has no normalization of text: NFC is left out",
    ),
    "words of SentencePiece": (
        {"model": sentencepiece_model(user_defined_symbols=("zword", "<tool>"))},
        "in the new model a space comes in front of the text after 'zword'",
    ),
}


@pytest.mark.parametrize("case", LOSSES)
def test_what_gguf_cannot_say_is_said(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files, line = LOSSES[case]
    source = write_tokenizer_files(tmp_path / "source", **files)
    write_chain(source, SIZE + 1, [50, 51, 2])
    convert(source, tmp_path / "m.gguf")
    said = capsys.readouterr().err
    assert said.startswith("llama-chat: warning: ")
    assert said.count("\n") == 1
    assert line in said
    load(tmp_path / "m.gguf", dtype="float32")
