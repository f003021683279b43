"""Vocabularies whose tokens cannot be told apart, numbers past them, and messages that count."""

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from harness.program import assert_clean_error, run
from llama_chat.errors import counted
from llama_chat.loading.formats import open_tokenizer
from llama_chat.loading.plan import load, plan
from llama_chat.tokenizers.sentencepiece_file import make_file
from llama_chat.tokenizers.vocabulary import PieceModel, Vocabulary
from tests.meta_folders import tekken
from tests.model_files import (
    META,
    SMALL,
    TOKENS,
    assert_refused,
    edit_json,
    sentencepiece_model,
    write_gguf,
    write_llama2c,
    write_meta,
)
from tests.vocabularies import byte_level_json, piece_tables

AT = len(TOKENS) - 1


def _gguf(path: Path, token: str) -> Path:
    write_gguf(path, metadata={"tokenizer__ggml__tokens": [*TOKENS[:-1], token]})
    return path


def _pieces() -> dict[str, list[object]]:
    tables = piece_tables(sentencepiece_model())
    return {name: list(tables[name]) for name in ("tokens", "scores", "types")}


def _gguf_pieces(path: Path, token: str) -> Path:
    tables = _pieces()
    write_gguf(
        path,
        replace(SMALL, vocab_size=400),
        metadata={
            "tokenizer__ggml__model": "llama",
            "tokenizer__ggml__pre": None,
            "tokenizer__ggml__merges": None,
            "tokenizer__ggml__tokens": [*tables["tokens"][:-1], token],
            "tokenizer__ggml__scores": tables["scores"],
            "tokenizer__ggml__token_type": tables["types"],
        },
    )
    return path


def _file(path: Path, token: str) -> Path:
    tables = _pieces()
    vocabulary = Vocabulary(
        what="x",
        pieces=[*map(str, tables["tokens"][:-1]), token],
        types=[int(str(kind)) for kind in tables["types"]],
        model=PieceModel([0.0] * 400),
    )
    folder = path.with_suffix("")
    write_meta(folder)
    assert isinstance(vocabulary.model, PieceModel)
    (folder / "tokenizer.model").write_bytes(make_file(vocabulary, vocabulary.model, ()))
    return folder


KINDS: dict[str, tuple[Callable[[Path, str], Path], str, int, int]] = {
    "byte-level": (_gguf, "the", TOKENS.index("the"), AT),
    "pieces": (_gguf_pieces, "▁t", -1, 399),
    "a SentencePiece file": (_file, "▁t", -1, 399),
}


@pytest.mark.parametrize("case", KINDS)
def test_tokens_that_are_the_same_or_empty_are_named(case: str, tmp_path: Path) -> None:
    write, token, first, at = KINDS[case]
    if first < 0:
        first = _pieces()["tokens"].index(token)
    path = write(tmp_path / "m.gguf", token)
    assert_refused(path, f"tokens {first} and {at} are both {token!r}: take ")
    path = write(tmp_path / "empty.gguf", "")
    assert_refused(path, f"token {at} is empty: take ")


def test_tokens_of_llama2c_that_are_the_same_are_named(tmp_path: Path) -> None:
    write_llama2c(tmp_path / "m.bin", replace(META, vocab_size=261))
    (tmp_path / "tokenizer.model").unlink()
    pieces = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % i for i in range(256)), b"x", b"x"]
    records = (struct.pack("<fi", 0.0, len(piece)) + piece for piece in pieces)
    (tmp_path / "tokenizer.bin").write_bytes(struct.pack("<i", 9) + b"".join(records))
    assert_refused(tmp_path / "m.bin", "tokens 259 and 260 are both 'x'")


def test_special_tokens_of_tekken_that_are_the_same_are_named(tmp_path: Path) -> None:
    path = tmp_path / "tekken.json"
    twice = [{"rank": rank, "token_str": "<s>"} for rank in range(2)]
    path.write_text(json.dumps(tekken(special_tokens=twice)))
    result = run("tokenize", "-", "-m", path, home=tmp_path, stdin=b"x")
    assert_clean_error(result, 3, "tokens 0 and 1 are both '<s>'")


def test_a_special_token_may_be_written_like_one_of_text(tmp_path: Path) -> None:
    path = tmp_path / "tekken.json"
    path.write_text(json.dumps(tekken(special_tokens=[{"rank": 0, "token_str": "the"}])))
    tokenizer, _ = open_tokenizer(path)
    (typed,) = tokenizer.encode("the")
    assert (tokenizer.control_ids["the"], tokenizer.piece(typed)) == (0, "the")
    assert typed >= 20


@pytest.mark.parametrize("name", ["bos", "eos", "unknown"])
def test_an_id_past_the_vocabulary_is_not_called_damage(name: str, tmp_path: Path) -> None:
    key = f"tokenizer__ggml__{name}_token_id"
    write_gguf(tmp_path / "m.gguf", metadata={key: 2**32 - 1})
    why = (
        f"{name}_token_id is 4294967295, past the vocabulary of {len(TOKENS)} tokens: take another"
    )
    assert_refused(tmp_path / "m.gguf", why)


def test_a_vocabulary_of_another_kind_is_not_called_damage(tmp_path: Path) -> None:
    document = byte_level_json()
    document["model"]["type"] = "Unigram"
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(Exception, match="its model is 'Unigram', not BPE: take a model with"):
        open_tokenizer(tmp_path)


# --- Weights that cannot be quantized -------------------------------------------------------------

ODD = replace(SMALL, dim=24, n_heads=2, n_kv_heads=1, head_dim=12, hidden_dim=40)


@pytest.mark.parametrize("wanted", ["int8", "int4"])
def test_a_model_that_cannot_be_quantized_says_so(wanted: str, tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", ODD)
    (line,) = load(tmp_path / "m.gguf", quantize=wanted).warnings
    assert line.startswith(f"--quantize {wanted}: no row of a matrix is a multiple of 32")
    for quantize in ("auto", "none", "stored"):
        assert plan(tmp_path / "m.gguf", quantize=quantize).warnings == ()
    write_gguf(tmp_path / "part.gguf", replace(ODD, hidden_dim=64))
    assert plan(tmp_path / "part.gguf", quantize=wanted).warnings == ()


def test_the_program_says_so_once(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", ODD)
    flags = ("-m", tmp_path / "m.gguf", "--quantize", "int4")
    for command in (("ask", "hi", "--max-tokens", "1"), ("inspect",)):
        result = run(*command, *flags, home=tmp_path)
        assert result.status == 0, result.err
        assert result.err.count("--quantize int4: no row of a matrix") == 1


# --- Messages that count --------------------------------------------------------------------------


def test_one_of_something_is_singular() -> None:
    assert [counted(n, "token") for n in (0, 1, 2)] == ["0 tokens", "1 token", "2 tokens"]
    assert counted(12_345, "byte", ",") == "12,345 bytes"


def test_one_token_is_singular_in_the_program(gguf_model: Path, tmp_path: Path) -> None:
    flags = ("-m", gguf_model, "--temperature", "0", "--max-tokens", "1", "-v")
    assert "cut off after 1 token:" in run("ask", "hi", *flags, home=tmp_path).err
    (folder := tmp_path / "m").mkdir()
    write_meta(folder)
    edit_json(folder / "params.json", n_layers=10**6)
    assert_refused(folder, "it says 1000000 layers but holds")
