"""``tokenizer.json`` files give the ids of the library, and no text gives a control id."""

import copy
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

from llama_chat.errors import ModelError
from llama_chat.loading.formats import open_tokenizer
from llama_chat.tokenizers.base import Tokenizer
from llama_chat.tokenizers.tokenizer_json import read_json
from tests.model_files import CONTROL_TOKENS, sentencepiece_model
from tests.vocabularies import (
    added,
    begin_with,
    byte_level_json,
    hard_texts,
    library_ids,
    piece_json,
)

MODEL = sentencepiece_model()
CONTROL = {"<unk>": 0, "<s>": 1, "</s>": 2}
Document = dict[str, Any]

SPELLINGS: dict[str, Callable[[], Document]] = {
    "bytes": byte_level_json,
    "prepended": lambda: piece_json(MODEL),
    "metaspace": lambda: piece_json(MODEL, metaspace=True),
}


def written(path: Path, document: object) -> Path:
    path.write_text(json.dumps(document))
    return path


def read(folder: Path, document: object, **config: object) -> Tokenizer:
    """Open a ``tokenizer.json`` with these values of ``tokenizer_config.json`` beside it."""
    written(folder / "tokenizer.json", document)
    written(folder / "tokenizer_config.json", config)
    return open_tokenizer(folder)[0]


# --- Ids ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_ids_are_those_of_the_library(tmp_path: Path, spelling: str) -> None:
    document = SPELLINGS[spelling]()
    ours = read(tmp_path, document)
    theirs = Backend.from_str(json.dumps(document))
    special = [token["content"] for token in document["added_tokens"]]
    compared = 0
    for text in hard_texts():
        if not any(name in text for name in special):
            assert ours.encode(text) == library_ids(theirs, text), text
            compared += 1
    assert compared > 300


def test_ids_are_those_of_metas_file(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "llama2" / "tokenizer.model"
    ours = read(tmp_path, piece_json(path.read_bytes()), eos_token="</s>")
    theirs, _ = open_tokenizer(path)
    for text in hard_texts():
        assert ours.encode(text) == theirs.encode(text), text
        spans = [(1, 3), (5, len(text) // 2)]
        assert ours.encode(text, spell=spans) == theirs.encode(text, spell=spans)
    assert (ours.fingerprint, ours.control_ids) == (theirs.fingerprint, theirs.control_ids)
    assert (ours.bos_id, ours.eos_id, ours.add_bos) == (1, 2, True)


def test_metaspace_gives_the_same_ids_where_no_space_comes_first(tmp_path: Path) -> None:
    (tmp_path / "spm").mkdir()
    (tmp_path / "spm" / "tokenizer.model").write_bytes(MODEL)
    theirs, _ = open_tokenizer(tmp_path / "spm" / "tokenizer.model")
    ours = read(tmp_path, piece_json(MODEL, metaspace=True))
    for text in hard_texts():
        if not text.startswith((" ", "\u2581")):
            assert ours.encode(text) == theirs.encode(text), text


@pytest.mark.parametrize("spelling", ["bytes", "prepended"])
def test_text_comes_back_whole_and_spelled(tmp_path: Path, spelling: str) -> None:
    ours = read(tmp_path, SPELLINGS[spelling]())
    for text in hard_texts(300):
        shown = text if spelling == "bytes" else text.replace("\u2581", " ")
        assert ours.decode(ours.encode(text)) == shown
        assert ours.decode(ours.encode(text, spell=[(0, len(text))])) == shown


# --- Control tokens ----------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_no_text_gives_a_control_id(tmp_path: Path, spelling: str) -> None:
    document = SPELLINGS[spelling]()
    size = len(document["model"]["vocab"]) + len(document["added_tokens"])
    document["added_tokens"] += [
        added(size, "<|im_sep|>", special=False),  # a marker that is not flagged as special
        {**added(size + 1, "[X]"), "lstrip": True, "rstrip": True},
    ]
    ours = read(tmp_path, document)
    names = [token["content"] for token in document["added_tokens"]]
    assert list(ours.control_ids) == sorted(names, key=ours.control_ids.__getitem__)
    text = " ".join(names) + "".join(names)
    ids = ours.encode(text)
    assert not set(ids) & set(ours.control_ids.values())
    assert ours.decode(ids) == text
    shown = {"<unk>": "\ufffd", "<|im_sep|>": "<|im_sep|>"}
    for name, token_id in ours.control_ids.items():
        assert ours.token_bytes(token_id).decode() == shown.get(name, "")


def test_a_control_token_that_merges_lead_to_is_spelled_out(tmp_path: Path) -> None:
    document = byte_level_json()
    the = document["model"]["vocab"]["the"]
    document["added_tokens"].append(added(the, "the"))
    ours = read(tmp_path, document)
    for text in ("the", " the", "then the inn"):
        assert the not in ours.encode(text)
        assert ours.decode(ours.encode(text)) == text
    assert [ours.piece(i) for i in ours.encode("the")] == ["th", "e"]


def test_other_added_tokens_are_text_and_keep_their_ids(tmp_path: Path) -> None:
    document = byte_level_json()
    document["added_tokens"].append(added(5000, "é    é", special=False))
    ours = read(tmp_path, document)
    assert ours.encode("é    é") == [5000]
    assert ours.decode([5000]) == "é    é"
    assert ours.vocab_size == 5001
    assert ours.piece(4999) == "<4999>"
    assert ours.token_bytes(4999) == b""


# --- Other contents of the file ----------------------------------------------------------------


def test_bos_comes_from_its_name_or_from_the_post_processor(tmp_path: Path) -> None:
    document = byte_level_json()
    start, end = CONTROL_TOKENS[1:]
    found = read(tmp_path, document)
    assert (found.bos_id, found.eos_id, found.add_bos) == (0, None, True)
    found = read(tmp_path, document, bos_token=start, eos_token=end)
    assert (found.bos_id, found.eos_id, found.add_bos) == (1, 2, False)
    assert read(tmp_path, document, bos_token=start, add_bos_token=True).add_bos
    assert not read(tmp_path, document, add_bos_token=False).add_bos
    document["post_processor"] = begin_with(start, 1)
    assert read(tmp_path, document, bos_token=start).add_bos
    document["post_processor"] = None
    found = read(tmp_path, document, add_bos_token=True)
    assert (found.bos_id, found.add_bos) == (None, False)
    # A token that is nowhere is a new one.
    found = read(tmp_path, document, bos_token="BOS")
    assert (found.bos_id, found.piece(found.vocab_size - 1)) == (found.vocab_size - 1, "BOS")


def test_truncation_and_dropout_are_ignored(tmp_path: Path) -> None:
    plain = read(tmp_path, byte_level_json())
    document = byte_level_json()
    document["model"]["dropout"] = 0.9
    document["truncation"] = {
        "direction": "Right",
        "max_length": 2,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    found = read(tmp_path, document)
    assert found.encode("the then the inn") == plain.encode("the then the inn")


def test_a_file_or_its_folder_can_be_opened_alone(tmp_path: Path) -> None:
    path = written(tmp_path / "tokenizer.json", piece_json(MODEL))
    for place in (path, tmp_path):
        tokenizer, templates = open_tokenizer(place)
        assert dict(tokenizer.control_ids) == CONTROL
        assert not templates.texts


# --- Hostile files -----------------------------------------------------------------------------


def model_of(**changed: object) -> Document:
    document = byte_level_json()
    return {**document, "model": {**document["model"], **changed}}


VOCAB = byte_level_json()["model"]["vocab"]
DEEP: Document = {"type": "NFC"}
for _ in range(150):
    DEEP = {"type": "Sequence", "normalizers": [DEEP]}

HOSTILE: dict[str, tuple[object, str]] = {
    "a list": ([], "the whole is not a table"),
    "no model": ({}, "model is not a table"),
    "Unigram": (model_of(type="Unigram"), "its model is 'Unigram', not BPE"),
    "WordPiece": (model_of(type="WordPiece"), "its model is 'WordPiece', not BPE"),
    "WordLevel": (model_of(type="WordLevel"), "its model is 'WordLevel', not BPE"),
    "a type that is none": (model_of(type=["BPE"]), "not BPE"),
    "prefix": (model_of(continuing_subword_prefix="##"), "continuing_subword_prefix"),
    "no vocabulary": (model_of(vocab=None), "vocab is not a table"),
    "no tokens": (model_of(vocab={}, merges=[]), "lacks tokens for single bytes"),
    "no merges": (model_of(merges=None), "merges is not a list"),
    "an id twice": (model_of(vocab={**VOCAB, "x y": 7}), "two tokens have the same id"),
    "an id too large": (model_of(vocab={**VOCAB, "x y": 2**31}), "no whole number from 0"),
    "an id below 0": (model_of(vocab={**VOCAB, "x y": -1}), "no whole number from 0"),
    "an id a text": (model_of(vocab={**VOCAB, "x y": "7"}), "no whole number from 0"),
    "an id a list": (model_of(vocab={**VOCAB, "x y": []}), "no whole number from 0"),
    "a merge of nothing": (model_of(merges=["q q"]), "merge 'q q' is not of its tokens"),
    "a merge of one": (model_of(merges=["q"]), "a merge is not of two tokens"),
    "a merge of three": (model_of(merges=[["q", "q", "q"]]), "a merge is not of two tokens"),
    "a merge of numbers": (model_of(merges=[[1, 2]]), "a merge is not of two tokens"),
    "a merge of none": (model_of(merges=[None]), "a merge is not of two tokens"),
    "a surrogate": (model_of(vocab={**VOCAB, "\ud800": 900}), "cannot use it"),
    "added tokens": ({**byte_level_json(), "added_tokens": {"a": 1}}, "not a list"),
    "an added token": ({**byte_level_json(), "added_tokens": [1]}, "not a table"),
    "no text": ({**byte_level_json(), "added_tokens": [{"id": 1}]}, "has no text"),
    "two ids": (
        {**byte_level_json(), "added_tokens": [added(9000, "the")]},
        "token 'the' has two ids",
    ),
    "no bytes": ({**piece_json(MODEL), "model": {**model_of()["model"]}}, "neither an unknown"),
    "unknown": (
        {**piece_json(MODEL), "model": {**piece_json(MODEL)["model"], "unk_token": ["x"]}},
        "its unknown token is not in the vocabulary",
    ),
    "no kind": ({**byte_level_json(), "pre_tokenizer": None}, "neither byte-level nor"),
    "a part": ({**byte_level_json(), "normalizer": "NFC"}, "a part is not a table"),
    "a part without a type": ({**byte_level_json(), "normalizer": {}}, "of no type"),
    "a sequence of 1": (
        {**byte_level_json(), "normalizer": {"type": "Sequence", "normalizers": 1}},
        "normalizers is not a list",
    ),
    "a part that panics": (
        {
            **byte_level_json(),
            "normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
        },
        "its normalizer is 'Precompiled'",
    ),
    "a pattern": (
        {
            **byte_level_json(),
            "normalizer": {"type": "Replace", "pattern": {"Regex": "("}, "content": ""},
        },
        "cannot use it",
    ),
    "depth": ({**byte_level_json(), "normalizer": DEEP}, "nested too deeply"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused_in_one_line(tmp_path: Path, case: str) -> None:
    document, why = HOSTILE[case]
    with pytest.raises(ModelError) as caught:
        read(tmp_path, document)
    assert str(caught.value).isprintable()
    assert why in str(caught.value)


SMALL = {spelling: make() for spelling, make in SPELLINGS.items()}
ODD: list[Any] = [
    None,
    True,
    False,
    -1,
    0,
    7,
    2**40,
    0.5,
    "",
    "the",
    "▁",
    "<s>",
    "never",
    "\x1b",
    [],
    {},
]
ODD += ["Sequence", "Metaspace", "Replace", "ByteLevel", "Split", "\ud800", ["a", "b"], [[]]]


def places(value: object, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all values in a document, and of a few of those in long tables."""
    inner: list[tuple[Any, object]] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    found = [path] if path else []
    for key, one in inner[:30]:
        found += places(one, (*path, key))
    return found


@pytest.mark.parametrize("spelling", SPELLINGS)
@settings(max_examples=150)
@given(data=st.data())
def test_a_file_with_any_other_value_is_read_or_refused(spelling: str, data: st.DataObject) -> None:
    document = copy.deepcopy(SMALL[spelling])
    *path, last = data.draw(st.sampled_from(places(SMALL[spelling])))
    table: Any = document
    for key in path:
        table = table[key]
    table[last] = data.draw(st.sampled_from(ODD))
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = read(Path(folder), document, bos_token="<s>")
            ids = found.encode("a the<s>")
            found.encode("a", prefixed=False)
        except ModelError:
            return
    assert found.control_ids["<s>"] not in ids
    found.decode(range(found.vocab_size))


def test_files_that_are_no_json_are_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    for data in (b"<html>", b"\xff\xfe", b"[" * 200_000, b'{"a": ' + b"9" * 5000 + b"}"):
        path.write_bytes(data)
        with pytest.raises(ModelError, match="it is not JSON"):
            read_json(path)
    path.write_bytes(b"")
    with pytest.raises(ModelError, match="it is empty"):
        read_json(path)
    with path.open("r+b") as file:
        file.truncate(2**30)
    with pytest.raises(ModelError, match="larger than 64 MiB"):
        read_json(path)
    for missing in (tmp_path, tmp_path / "nowhere.json"):
        with pytest.raises(ModelError, match="tokenizer"):
            read_json(missing)


def test_a_pattern_that_backtracks_forever_is_refused_in_one_line(tmp_path: Path) -> None:
    document = byte_level_json()
    document["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": "(a+)+$"}
    ours = read(tmp_path, document)
    with pytest.raises(ModelError, match="cannot use it"):
        ours.encode("a" * 40 + "b")
