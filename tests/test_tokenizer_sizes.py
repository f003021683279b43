"""Tokenizer files that would take much memory are refused before they do."""

import json
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.campaigns.model_numbers import bare_run, run_command
from llama_chat.checkpoints.huggingface_tokenizer import read_vocabulary
from llama_chat.errors import ModelError
from tests.model_files import edit_json, sentencepiece_model, write_huggingface, write_llama2c
from tests.vocabularies import piece_json

MAX_BYTES = 300 * 2**20
"""Memory over that of a run that does nothing."""

MIB = 2**20

TOKEN = {"content": "zz", "special": False}


def write_pieces(size: int) -> Callable[[Path], Path]:
    """Write a SentencePiece model of pieces without a text, the smallest there are."""

    def write(folder: Path) -> Path:
        (folder / "tokenizer.model").write_bytes(b"\x0a\x00" * (size // 2))
        return folder / "tokenizer.model"

    return write


def write_texts(size: int) -> Callable[[Path], Path]:
    """Write a SentencePiece model of different pieces, and then an empty one."""

    def write(folder: Path) -> Path:
        numbers = range(2**14, 2**14 + size // 8)  # of three bytes in UTF-8
        pieces = (chr(i % 40_000 + 2**11) + chr(i // 40_000 + 65) for i in numbers)
        fields = (struct.pack("<BB", 0x0A, len(text)) + text for text in map(str.encode, pieces))
        messages = (struct.pack("<BB", 0x0A, len(field)) + field for field in fields)
        (folder / "tokenizer.model").write_bytes((b"".join(messages) + b"\x0a\x00")[:size])
        return folder / "tokenizer.model"

    return write


def write_json(item: str, n_items: int) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        text = f'{{"model": {{"type": "BPE"}}, "x": [{item * n_items}1]}}'
        (folder / "tokenizer.json").write_text(text)
        return folder / "tokenizer.json"

    return write


def write_tokens(n_tokens: int) -> Callable[[Path], Path]:
    """Write a vocabulary of llama2.c, beside a model."""

    def write(folder: Path) -> Path:
        model = folder / "m.bin"
        write_llama2c(model)
        (folder / "tokenizer.model").unlink()
        token = struct.pack("<fi", 0, 2) + b"ab"
        (folder / "tokenizer.bin").write_bytes(bytes(4) + token * n_tokens)
        return model

    return write


FILES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "pieces, few": (write_pieces(6 * MIB), "token 0 is empty"),
    "pieces, different": (write_texts(5 * MIB), "not a SentencePiece model"),
    "pieces, many": (write_pieces(60 * MIB), "larger than 6 MiB"),
    "lists, few": (write_json("[],", MIB - 9), "neither byte-level"),
    "lists, many": (write_json("[],", 20 * MIB), "more values than that of any model"),
    "texts, many": (write_json('"ab",', 12 * MIB), "more values than that of any model"),
    "tables, many": (write_json("{},", 20 * MIB), "more values than that of any model"),
    "tokens, few": (write_tokens(600_000), "not the 256 bytes"),
    "tokens, many": (write_tokens(6_000_000), "larger than 6 MiB"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_large_tokenizer_takes_little_memory(case: str, tmp_path: Path) -> None:
    write, why = FILES[case]
    bare = bare_run(tmp_path)
    result = run_command(tmp_path, "tokenize", write(tmp_path))
    assert result.status == 3
    assert why in result.err
    assert result.peak_rss - bare.peak_rss < MAX_BYTES


@pytest.mark.parametrize("place", ["vocab", "added", "decoder"])
def test_an_id_far_past_all_tokens_is_refused(place: str, tmp_path: Path) -> None:
    write_huggingface(tmp_path)
    file = tmp_path / "tokenizer.json"

    def write(far: int) -> None:
        document = piece_json(sentencepiece_model())
        if place == "decoder":
            edit_json(tmp_path / "tokenizer_config.json", added_tokens_decoder={far: TOKEN})
        elif place == "added":
            document["added_tokens"].append({**TOKEN, "id": far})
        else:
            document["model"]["vocab"]["▁t"] = far
        file.write_text(json.dumps(document))
        (tmp_path / "tokenizer.model").unlink(missing_ok=True)

    write(2**16 + 300)
    assert read_vocabulary(tmp_path).pieces[2**16 + 300] in ("zz", "▁t")
    write(2**20 - 1)
    began = time.monotonic()
    with pytest.raises(ModelError, match=r"it has an id of 1048575 and only 40\d tokens: the file"):
        read_vocabulary(tmp_path)
    assert time.monotonic() - began < 1
