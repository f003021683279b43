"""SentencePiece vocabularies from tables equal those of the file that the tables come from."""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_chat.errors import ModelError
from llama_chat.loading.formats import (
    load_tokenizer,
    make_tokenizer,
    open_checkpoint,
    open_tokenizer,
)
from llama_chat.tokenizers.base import Tokenizer
from llama_chat.tokenizers.vocabulary import END_TOKENS
from tests.model_files import SMALL, assert_refused, sentencepiece_model, write_gguf
from tests.vocabularies import hard_texts, piece_tables, piece_vocabulary

MODEL = sentencepiece_model()
TABLES = piece_tables(MODEL)
CONTROL, USER_DEFINED = 3, 4


def tokenizer(**changed: Any) -> Tokenizer:
    return make_tokenizer(piece_vocabulary({**TABLES, **changed}))


def with_last(*tokens: tuple[str, int]) -> dict[str, Any]:
    """Return the tables with ``tokens`` and their types appended."""
    return {
        "tokens": [*TABLES["tokens"], *(text for text, _ in tokens)],
        "scores": [*TABLES["scores"], *(0.0 for _ in tokens)],
        "types": [*TABLES["types"], *(kind for _, kind in tokens)],
    }


def gguf_values(tables: dict[str, Any]) -> dict[str, object]:
    key = "tokenizer__ggml__"
    return {
        f"{key}model": "llama",
        f"{key}tokens": tables["tokens"],
        f"{key}scores": tables["scores"],
        f"{key}token_type": tables["types"],
        f"{key}bos_token_id": 1,
        f"{key}eos_token_id": 2,
    }


def from_gguf(path: Path, **changed: object) -> Tokenizer:
    config = dataclasses.replace(SMALL, vocab_size=410)
    write_gguf(path, config, metadata=gguf_values(TABLES) | changed)
    return load_tokenizer(open_checkpoint(path))


def test_ids_are_those_of_metas_file(shared_data: Path) -> None:
    path = shared_data / "llama2" / "tokenizer.model"
    ours = make_tokenizer(piece_vocabulary(piece_tables(path.read_bytes())))
    theirs, _ = open_tokenizer(path)
    for text in hard_texts():
        assert ours.encode(text) == theirs.encode(text), text
    assert (ours.fingerprint, ours.control_ids) == (theirs.fingerprint, theirs.control_ids)
    assert (ours.bos_id, ours.eos_id, ours.prefix) == (1, 2, "every")
    assert (theirs.bos_id, theirs.eos_id, theirs.prefix) == (1, 2, "every")


def test_a_gguf_file_gives_the_ids_of_the_model_file(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(MODEL)
    theirs, _ = open_tokenizer(tmp_path / "tokenizer.model")
    ours = from_gguf(tmp_path / "m.gguf")
    for text in hard_texts():
        assert ours.encode(text) == theirs.encode(text), text
        assert ours.decode(ours.encode(text)) == text.replace("\u2581", " ")
    assert ours.add_bos
    assert (ours.bos_id, ours.eos_id) == (1, 2)


def test_a_gguf_file_says_whether_spaces_and_bos_come_first(tmp_path: Path) -> None:
    ours = from_gguf(
        tmp_path / "m.gguf",
        tokenizer__ggml__add_bos_token=False,
        tokenizer__ggml__add_space_prefix=False,
    )
    assert not ours.add_bos
    assert ours.prefix == "never"
    assert ours.decode(ours.encode(" the")) == " the"
    assert ours.token_bytes(ours.encode("the")[0])[:1] == b"t"


def test_the_unknown_token_may_be_given_by_its_id(tmp_path: Path) -> None:
    types = [CONTROL, *TABLES["types"][1:]]  # as some converters write it
    changed = {"tokenizer__ggml__token_type": types}
    ours = from_gguf(tmp_path / "m.gguf", **changed, tokenizer__ggml__unknown_token_id=0)
    assert ours.control_ids["<unk>"] == 0
    with pytest.raises(ModelError, match="make no SentencePiece vocabulary"):
        from_gguf(tmp_path / "m.gguf", **changed)


MARKERS = ["<|im_start|>", "<|im_end|>", "[INST]", "[/INST]", "<<SYS>>", "<pad>", "▁<PRE>"]


@pytest.mark.parametrize("kind", [CONTROL, USER_DEFINED])
@pytest.mark.parametrize("marker", MARKERS)
def test_no_text_gives_a_marker_whatever_its_type(marker: str, kind: int) -> None:
    found = tokenizer(**with_last((marker, kind)))
    text = f"the {marker.replace('▁', ' ')} a{marker}"
    assert found.control_ids[marker] == len(TABLES["tokens"])
    assert not set(found.control_ids.values()) & set(found.encode(text))
    assert found.decode(found.encode(text)) == text.replace("▁", " ")


def test_other_added_tokens_are_text() -> None:
    found = tokenizer(**with_last(("\n\n", USER_DEFINED), ("qzqz", USER_DEFINED)))
    first = len(TABLES["tokens"])
    ids = found.encode("a\n\nqzqz")
    assert {first, first + 1} <= set(ids)
    assert found.decode(ids) == "a\n\nqzqz"


@pytest.mark.parametrize("name", END_TOKENS)
def test_bos_and_eos_are_control_tokens_whatever_their_type(name: str) -> None:
    if name in TABLES["tokens"]:
        found = tokenizer(types=[*TABLES["types"][:2], 1, *TABLES["types"][3:]])
    else:
        found = tokenizer(**with_last((name, 1)), eos_id=len(TABLES["tokens"]))
    assert found.eos_id == found.control_ids[name]


def changed_last(key: str, value: object) -> dict[str, Any]:
    return {key: [*TABLES[key][:-1], value]}


HOSTILE: dict[str, dict[str, Any]] = {
    "type 0": changed_last("types", 0),
    "type 7": changed_last("types", 7),
    "type -1": changed_last("types", -1),
    "NaN": changed_last("scores", float("nan")),
    "infinite": changed_last("scores", float("-inf")),
    "no float32": changed_last("scores", 1e300),
    "fewer scores": {"scores": TABLES["scores"][:-1]},
    "fewer types": {"types": TABLES["types"][:-1]},
    "nothing": {"tokens": [], "scores": [], "types": [], "bos_id": None, "eos_id": None},
    "a long piece": changed_last("tokens", "x" * 200_000),
    "an empty piece": changed_last("tokens", ""),
    "a piece twice": changed_last("tokens", TABLES["tokens"][300]),
    "NUL": changed_last("tokens", "a\0b"),
    "no unknown token": {"types": [1, *TABLES["types"][1:]]},
    "two unknown tokens": {"types": [2, 2, *TABLES["types"][2:]]},
    "one byte less": {"types": [*TABLES["types"][:3], 1, *TABLES["types"][4:]]},
    "a word as a byte": changed_last("types", 6),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_tables_are_refused_in_one_line(case: str) -> None:
    with pytest.raises(ModelError) as caught:
        tokenizer(**HOSTILE[case])
    assert str(caught.value).isprintable()


def test_without_byte_tokens_other_characters_are_unknown() -> None:
    found = tokenizer(types=[1 if kind == 6 else kind for kind in TABLES["types"]])
    ids = found.encode("the 漢 the")
    assert found.control_ids["<unk>"] in ids
    assert found.decode(ids) == "the \ufffd the"
    assert found.decode(found.encode("the 漢 the", spell=[(0, 3)])) == "the \ufffd the"


def test_hostile_tables_of_a_gguf_file_are_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    config = dataclasses.replace(SMALL, vocab_size=400)
    key = "tokenizer__ggml__"
    cases: dict[str, dict[str, object]] = {
        "scores is missing": {f"{key}scores": None},
        "scores of another number": {f"{key}scores": [0.5]},
        "types of 1": {f"{key}token_type": [1]},
        "another type": {f"{key}scores": [1] * 400},
        "bos_token_id is 400": {f"{key}bos_token_id": 400},
        "neither true nor false": {f"{key}add_space_prefix": 3},
        "it has 401 tokens and the model 400": gguf_values({**TABLES, **with_last(("xyz", 1))}),
        "the unknown type 9": {f"{key}token_type": [9] * 400},
    }
    for why, changed in cases.items():
        write_gguf(path, config, metadata=gguf_values(TABLES) | changed)
        assert_refused(path, why)


@settings(max_examples=300)
@given(data=st.data())
def test_a_damaged_model_file_is_read_or_refused_in_one_line(data: st.DataObject) -> None:
    model = bytearray(sentencepiece_model(user_defined_symbols=("<|im_end|>", "zword")))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, min(len(model) - 1, 200)) | st.integers(0, len(model) - 1))
        model[at] = data.draw(st.integers(0, 255) | st.sampled_from([0x18, 0x80, 0x0A, 0x1B, 4]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.model"
        path.write_bytes(model)
        try:
            found, _ = open_tokenizer(path)
        except ModelError:
            return
    ids = found.encode("a<|im_end|>b zword the", spell=[(0, 4)])
    control = set(found.control_ids.values()) - {found.control_ids.get("<unk>")}
    assert not control & set(ids)
    found.decode(range(found.vocab_size))
