"""Text comes back from its ids, whole and in pieces, and never becomes a control token."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

from llama_chat.errors import ModelError
from llama_chat.loading.formats import (
    load_tokenizer,
    make_tokenizer,
    open_checkpoint,
    open_tokenizer,
)
from llama_chat.tokenizers.base import Tokenizer
from llama_chat.tokenizers.sentencepiece import read_model
from llama_chat.tokenizers.streaming import StreamingDecoder
from tests.model_files import (
    MERGES,
    TOKENS,
    byte_tokenizer,
    byte_vocabulary,
    sentencepiece_model,
)
from tests.vocabularies import piece_json

# All of UTF-8 but NUL and the character with which SentencePiece writes a space.
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581\0"))
CONTROL_TEXTS = ["<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"]


@pytest.fixture(scope="module")
def piece_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("sp") / "tokenizer.model"
    path.write_bytes(sentencepiece_model())
    return open_tokenizer(path)[0]


@pytest.fixture(scope="module")
def json_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("json") / "tokenizer.json"
    path.write_text(json.dumps(piece_json(sentencepiece_model())))
    return open_tokenizer(path)[0]


@pytest.fixture(scope="module", params=["sentencepiece", "bpe", "json", "starter"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "json":
        from_json: Tokenizer = request.getfixturevalue("json_tokenizer")
        return from_json
    if request.param == "sentencepiece":
        found: Tokenizer = request.getfixturevalue("piece_tokenizer")
        return found
    if request.param == "bpe":
        return byte_tokenizer()
    return load_tokenizer(open_checkpoint(request.getfixturevalue("starter_model")))


@settings(max_examples=150)
@given(text=TEXTS)
def test_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    decoded = tokenizer.decode(tokenizer.encode(text))
    lacking = len(text) == len(decoded) and "\ufffd" in decoded
    if lacking:  # a vocabulary may lack bytes: they show as U+FFFD, and nothing vanishes
        assert all(b in (a, "\ufffd") for a, b in zip(text, decoded, strict=True))
    else:
        assert decoded == text


@settings(max_examples=60)
@given(parts=st.lists(st.one_of(st.sampled_from(CONTROL_TEXTS), TEXTS), max_size=6))
def test_no_text_gives_a_control_id(tokenizer: Tokenizer, parts: list[str]) -> None:
    control = set(tokenizer.control_ids.values()) - {tokenizer.control_ids.get("<unk>")}
    assert not control & set(tokenizer.encode("".join(parts)))


@settings(max_examples=100)
@given(before=TEXTS, after=TEXTS)
def test_a_spelled_tag_keeps_its_text_and_loses_its_ids(
    tokenizer: Tokenizer, before: str, after: str
) -> None:
    tag = "the"  # a token of each vocabulary, whatever is around it
    text = f"{before} {tag} {after}"
    start = len(before) + 1
    plain = tokenizer.encode(text)
    spelled = tokenizer.encode(text, spell=[(start, start + len(tag))])
    assert tokenizer.decode(spelled) == tokenizer.decode(plain)
    whole = {i for i in plain if tag in tokenizer.decode([i])}
    if "the" not in before + after:
        assert whole
        assert not whole & set(spelled)


@settings(max_examples=100)
@given(text=TEXTS, data=st.data())
def test_spans_may_come_in_any_order_and_overlap(
    tokenizer: Tokenizer, text: str, data: st.DataObject
) -> None:
    text = f"the {text} the"
    ends = st.lists(st.integers(0, len(text)), min_size=2, max_size=2, unique=True)
    spans = data.draw(st.lists(ends.map(lambda pair: (min(pair), max(pair))), max_size=5))
    characters = sorted({i for start, end in spans for i in range(start, end)})
    apart = [(i, i + 1) for i in characters]
    assert tokenizer.encode(text, spell=spans) == tokenizer.encode(text, spell=apart)


@pytest.mark.timeout(30)
def test_a_text_of_many_tags_is_spelled_at_once(tokenizer: Tokenizer) -> None:
    tag, n = "the ", 50_000
    spans = [(at, at + 3) for at in range(0, n * len(tag), len(tag))]
    spelled = tokenizer.encode(tag * n, spell=spans)
    assert spelled[-4:] * (n - 1) == spelled[-4 * (n - 1) :]


@settings(max_examples=150)
@given(data=st.data())
def test_a_stream_is_the_whole_text_for_any_ids(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 5), max_size=40))
    decoder = StreamingDecoder(tokenizer, "dummy")
    assert "".join(map(decoder.push, ids)) + decoder.flush() == tokenizer.decode(ids)
    keeping = StreamingDecoder(tokenizer, "keep")
    kept = "".join(map(keeping.push, ids)) + keeping.flush()
    assert kept == b"".join(map(tokenizer.token_bytes, ids)).decode("utf-8", "replace")
    stripping = StreamingDecoder(tokenizer, "strip")
    assert "".join(map(stripping.push, ids)) + stripping.flush() == kept.lstrip()


def test_characters_wait_until_they_are_whole() -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer.encode("é😀")
    decoder = StreamingDecoder(tokenizer)
    assert [decoder.push(i) for i in ids] == ["", "é", "", "", "", "😀"]
    assert decoder.flush() == ""
    assert [decoder.push(i) for i in ids[:3]] == ["", "é", ""]
    assert decoder.flush() == "\ufffd"


def test_an_invalid_run_never_stalls_the_stream() -> None:
    tokenizer = byte_tokenizer()
    lead = tokenizer.encode("😀")[0]
    decoder = StreamingDecoder(tokenizer)
    shown = "".join(decoder.push(lead) for _ in range(10))
    assert len(shown) >= 9


def test_lone_surrogates_become_replacement_characters(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"


def test_each_encode_has_one_dummy_space(piece_tokenizer: Tokenizer) -> None:
    assert piece_tokenizer.prefix == "every"
    assert piece_tokenizer.decode(piece_tokenizer.encode(" the")) == " the"
    ids = piece_tokenizer.encode("the")
    assert StreamingDecoder(piece_tokenizer, "keep").push(ids[0]).startswith(" ")


@given(text=TEXTS)
@settings(max_examples=100)
def test_bpe_ids_are_those_of_the_library(text: str) -> None:
    backend = Backend(
        models.BPE(
            vocab={token: i for i, token in enumerate(TOKENS)},
            merges=[(left, right) for left, right in (merge.split() for merge in MERGES)],
        )
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert byte_tokenizer().encode(text) == backend.encode(text).ids


@pytest.mark.parametrize("merge", ["t", "q q", "t h e"])
def test_merges_of_other_tokens_are_refused(merge: str) -> None:
    with pytest.raises(ModelError, match=f"merge '{merge}.*' is not of its tokens"):
        make_tokenizer(byte_vocabulary(merges=[*MERGES, merge]))


def test_files_that_are_no_tokenizer_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ModelError, match="tokenizer"):
            read_model(path)
