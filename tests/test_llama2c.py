"""Models of llama2.c are those of Meta, and hostile ones are refused."""

import math
import os
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import sentencepiece
import torch

from llama_chat.checkpoints.llama2c import Llama2cCheckpoint
from llama_chat.errors import ModelError
from llama_chat.library.layouts import identify
from llama_chat.loading.formats import open_checkpoint
from llama_chat.loading.plan import load
from llama_chat.tokenizers.sentencepiece import read_model
from llama_chat.tokenizers.vocabulary import PieceModel
from tests.model_files import META, assert_refused, sentencepiece_model, write_llama2c
from tests.models import logits_of, random_model

CONFIG = replace(META, context_length=128)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A random model."""
    write_llama2c(tmp_path / "stories.bin", CONFIG)
    return tmp_path / "stories.bin"


@pytest.mark.parametrize("tied", [False, True])
def test_weights_are_read_without_a_copy(tmp_path: Path, tied: bool) -> None:
    config = replace(CONFIG, tie_embeddings=tied)
    write_llama2c(tmp_path / "stories.bin", config)
    checkpoint = open_checkpoint(tmp_path / "stories.bin")
    assert (checkpoint.format, checkpoint.name) == ("llama2.c", "stories")
    assert checkpoint.config == config
    assert checkpoint.dtype == torch.float32
    assert {name: info.shape for name, info in checkpoint.tensors.items()} == config.tensor_shapes()
    for name, weight in random_model(config).named_parameters():
        first, again = (checkpoint.read(name, torch.float32) for _ in range(2))
        assert first.equal(weight)
        assert first.data_ptr() == again.data_ptr()


@pytest.mark.parametrize("tied", [False, True])
def test_logits_are_those_of_the_same_weights(tmp_path: Path, tied: bool) -> None:
    config = replace(CONFIG, tie_embeddings=tied)
    write_llama2c(tmp_path / "m.bin", config)
    model = random_model(config)
    ids = list(range(3, 90))
    expected = logits_of(model, ids)
    assert logits_of(load(tmp_path / "m.bin").model, ids).equal(expected)


# --- The tokenizer ------------------------------------------------------------------------


def tokenizer_bin(change: Callable[[list[bytes]], object] = lambda tokens: None) -> bytes:
    """The tokenizer as llama2.c writes it."""
    original = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model())
    ids = range(original.vocab_size())
    pieces = [original.id_to_piece(i).replace("\u2581", " ").encode() for i in ids]
    pieces[1:3] = b"\n<s>\n", b"\n</s>\n"
    change(pieces)
    scores = [original.get_score(i) for i in ids]
    data = struct.pack("<I", max(map(len, pieces)))
    for piece, score in zip(pieces, scores, strict=True):
        data += struct.pack("<fI", score, len(piece)) + piece
    return data


def test_the_tokenizer_of_llama2c_holds_what_sentencepiece_holds(model: Path) -> None:
    original = read_model(model.with_name("tokenizer.model"))
    assert open_checkpoint(model).read_vocabulary() == original
    model.with_name("tokenizer.model").unlink()
    model.with_name("tokenizer.bin").write_bytes(tokenizer_bin())
    found = open_checkpoint(model).read_vocabulary()
    assert isinstance(original.model, PieceModel)
    tables = replace(original, model=PieceModel(original.model.scores))
    assert found == replace(tables, what=found.what, file=None)


def _set(tokens: list[bytes], at: int, token: bytes) -> None:
    tokens[at] = token


WHOLE = tokenizer_bin()
BAD_TOKENIZERS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "it is empty"),
    "cut in a token": (WHOLE[:-1], "cut off or damaged"),
    "cut in a length": (WHOLE + b"\0\0\0\0\0", "cut off or damaged"),
    "web page": (b"<!DOCTYPE html>" + bytes(100), "cut off or damaged"),
    "endless length": (WHOLE + struct.pack("<fI", 0, 2**31 - 1), "cut off or damaged"),
    "negative length": (WHOLE + struct.pack("<fi", 0, -8), "cut off or damaged"),
    "empty token": (WHOLE + struct.pack("<fi", 0, 0), "cut off or damaged"),
    "score NaN": (WHOLE + struct.pack("<fi", math.nan, 1) + b"x", "cut off or damaged"),
    "not UTF-8": (WHOLE + struct.pack("<fi", 0, 1) + b"\xff", "cut off or damaged"),
    "no bytes": (tokenizer_bin(lambda tokens: _set(tokens, 99, b"x")), "not the 256 bytes"),
}


@pytest.mark.parametrize("case", BAD_TOKENIZERS)
def test_bad_tokenizers_are_refused(case: str, model: Path) -> None:
    data, why = BAD_TOKENIZERS[case]
    model.with_name("tokenizer.model").unlink()
    model.with_name("tokenizer.bin").write_bytes(data)
    assert_refused(model, why)


def test_a_model_without_a_tokenizer_is_refused(model: Path) -> None:
    model.with_name("tokenizer.model").unlink()
    assert_refused(model, "no tokenizer.model or tokenizer.bin beside it: download it")


# --- Hostile models -----------------------------------------------------------------------


def _number(at: int, value: int) -> Callable[[bytes], bytes]:
    return lambda data: data[: 4 * at] + struct.pack("<i", value) + data[4 * at + 4 :]


UNKNOWN = "not a model of a known format"
BAD: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda data: b"", UNKNOWN),
    "shorter than a header": (lambda data: data[:27], UNKNOWN),
    "header only": (lambda data: data[:28], "28 bytes, but its header requires"),
    "cut off": (lambda data: data[:-1], "but its header requires"),
    "too long": (lambda data: data + bytes(4), "but its header requires"),
    "an archive of torch": (lambda data: b"PK\x03\x04" + data[4:], UNKNOWN),
    "web page": (lambda data: b"<!DOCTYPE html><html>" + data, UNKNOWN),
    "version 1": (
        lambda data: struct.pack("<Ii", 0x616B3432, 1) + data,
        "version 1 of llama2.c's format: export it as version 0",
    ),
    "version 2": (lambda data: struct.pack("<Ii", 0x616B3432, 2) + data, "version 2"),
    "dim 0": (_number(0, 0), UNKNOWN),
    "dim negative": (_number(0, -64), "dim is -64"),
    "dim other": (_number(0, 128), "but its header requires"),
    "layers 10^7": (_number(2, 10**7), "but its header requires"),
    "layers negative": (_number(2, -2), "n_layers is -2"),
    "heads odd": (_number(3, 7), "no multiple of n_heads 7"),
    "heads negative": (_number(3, -8), "no multiple of n_heads -8"),
    "more KV heads": (_number(4, 16), "no multiple of n_kv_heads 16"),
    "vocabulary 2^31": (_number(5, -(2**31)), UNKNOWN),
    "vocabulary other": (_number(5, -401), "but its header requires"),
    "shared after all": (_number(5, 400), "but its header requires"),
    "context negative": (_number(6, -128), "context_length is -128"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_models_are_refused(case: str, model: Path) -> None:
    damage, why = BAD[case]
    model.write_bytes(damage(model.read_bytes()))
    assert_refused(model, why)


def test_only_a_regular_file_with_the_suffix_is_recognised(model: Path, tmp_path: Path) -> None:
    found = identify(model)
    assert found is not None
    assert found.name == "llama2.c"
    assert identify(model.rename(tmp_path / "stories.txt")) is None
    os.mkfifo(tmp_path / "pipe.bin")
    with pytest.raises(OSError, match="it is not a file"):
        identify(tmp_path / "pipe.bin")
    with pytest.raises(ModelError):
        Llama2cCheckpoint.open(tmp_path / "nowhere.bin")
