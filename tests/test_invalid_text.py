"""Vocabularies whose pieces are no text are refused: their bytes could not be shown or saved."""

import json
import struct
from pathlib import Path

import pytest

from harness.program import assert_clean_error, run
from tests.model_files import (
    MERGES,
    META,
    TOKENS,
    assert_refused,
    edit_json,
    sentencepiece_model,
    write_gguf,
    write_huggingface,
    write_llama2c,
    write_meta,
)
from tests.vocabularies import byte_level_json, piece_json, piece_tables

INVALID = {
    "a byte of no character": b"\xff\xfe",
    "half a character": b"a\xc3",
    "a surrogate": b"\xed\xa0\x80",
    "an overlong form": b"\xc0\xaf",
}


def spoiled_model(piece: bytes) -> bytes:
    """Make a SentencePiece model with ``piece`` in the place of a normal one of its length."""
    model = sentencepiece_model()
    tokens = piece_tables(model)["tokens"][260:]
    old = next(token.encode() for token in tokens if token.isascii() and len(token) == 3)
    return model.replace(b"\x03" + old, b"\x03" + piece.ljust(3, b"x"))


@pytest.mark.parametrize("case", INVALID)
def test_a_sentencepiece_model(case: str, meta_model: Path, tmp_path: Path) -> None:
    model = tmp_path / "tokenizer.model"
    model.write_bytes(spoiled_model(INVALID[case]))
    assert model.read_bytes() != sentencepiece_model()
    result = run("tokenize", "-m", model, home=tmp_path, stdin=b"a")
    assert_clean_error(result, 3, repr(str(model)), "a piece of it is not UTF-8")


@pytest.mark.parametrize("layout", ["meta", "huggingface", "llama2c"])
def test_a_sentencepiece_model_beside_weights(layout: str, tmp_path: Path) -> None:
    model = tmp_path / "model"
    if layout == "llama2c":
        write_llama2c(path := model / "m.bin")
    else:
        (write_meta if layout == "meta" else write_huggingface)(path := model)
    (model / "tokenizer.model").write_bytes(spoiled_model(b"\xff\xfe"))
    assert_refused(path, "tokenizer.model", "a piece of it is not UTF-8")


@pytest.mark.parametrize("case", INVALID)
@pytest.mark.parametrize("table", ["tokens", "merges"])
def test_tables_of_a_gguf_file(table: str, case: str, tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    texts = TOKENS if table == "tokens" else MERGES
    old = texts[-1].encode()
    write_gguf(file)
    stored, new = struct.pack("<Q", len(old)) + old, INVALID[case][: len(old)].ljust(len(old))
    spoiled = file.read_bytes().replace(stored, stored[:8] + new)
    file.write_bytes(spoiled)
    assert_refused(file, f"text {len(texts) - 1} of a list is not UTF-8")


def test_other_text_of_a_gguf_file_is_shown_with_replacements(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    write_gguf(file, metadata={"general__author": "Nobody", "tokenizer__chat_template": "xxxx"})
    data = file.read_bytes()
    file.write_bytes(data.replace(b"Nobody", b"Nob\xffdy").replace(b"xxxx", b"\xff\x1b[m"))
    result = run("inspect", file, "--json", home=tmp_path)
    assert (result.status, result.err) == (0, "")


@pytest.mark.parametrize("kind", ["byte-level", "pieces"])
@pytest.mark.parametrize("place", ["vocab", "merges", "added_tokens"])
def test_a_tokenizer_json(place: str, kind: str, tmp_path: Path) -> None:
    model = tmp_path / "model"
    write_huggingface(model)
    (model / "tokenizer.model").unlink()
    tables = byte_level_json() if kind == "byte-level" else piece_json(sentencepiece_model())
    if place == "added_tokens":
        tables["added_tokens"][0]["content"] += "\ud800"
    elif place == "vocab":
        tables["model"]["vocab"]["\udfff"] = len(tables["model"]["vocab"]) + 3
    else:
        tables["model"]["merges"][0] = "\ud800 \ud800"
    (model / "tokenizer.json").write_text(json.dumps(tables))
    edit_json(model / "config.json", vocab_size=META.vocab_size)
    assert_refused(model, "tokenizer")
