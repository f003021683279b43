"""The lower bound of the tokens of a text is never above their number."""

import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_chat.loading.formats import load_tokenizer, make_tokenizer, open_checkpoint
from llama_chat.tokenizers import base
from llama_chat.tokenizers.base import LONG_TEXT, AtLeast, Tokenizer
from llama_chat.tokenizers.tokenizer_json import read_json
from tests.model_files import (
    CONTROL_TOKENS,
    TOKENS,
    byte_tokenizer,
    byte_vocabulary,
    piece_tokenizer,
    sentencepiece_model,
)
from tests.vocabularies import byte_level_json, hard_texts, piece_json


@pytest.fixture(scope="module", autouse=True)
def _every_text_is_long() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "LONG_TEXT", 0)
        yield


def from_json(folder: Path, document: dict[str, Any]) -> Tokenizer:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(document))
    return make_tokenizer(read_json(path))


def doubling(n_times: int) -> Tokenizer:
    """Return a tokenizer with tokens of up to 2^n_times letters a, all equal."""
    runs = ["a" * 2**n for n in range(1, n_times + 1)]
    tokens = [*TOKENS[: len(CONTROL_TOKENS) + 256], *runs]
    merges = [f"{run[: len(run) // 2]} {run[: len(run) // 2]}" for run in runs]
    return make_tokenizer(byte_vocabulary(tokens, merges, eos_id=0))


def normalizing(folder: Path, **options: Any) -> Tokenizer:
    """Return a tokenizer of a SentencePiece model trained with other options."""
    stream = io.BytesIO()
    texts = ["the cat in the hat", "é ½ ｆｕｌｌ", "one two three"] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=stream,
        vocab_size=options.pop("vocab_size", 300),
        model_type="bpe",
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    return piece_tokenizer(stream.getvalue())


KEEPING: dict[str, Callable[[Path], Tokenizer]] = {
    "SentencePiece": lambda folder: piece_tokenizer(sentencepiece_model()),
    "byte-level": lambda folder: byte_tokenizer(),
    "doubling": lambda folder: doubling(9),
    "JSON of pieces": lambda folder: from_json(folder, piece_json(sentencepiece_model())),
    "JSON with Metaspace": lambda folder: from_json(
        folder, piece_json(sentencepiece_model(), metaspace=True)
    ),
    "byte-level JSON": lambda folder: from_json(folder, byte_level_json()),
}
"""Vocabularies whose tokens together hold every byte of a text."""


@pytest.fixture(scope="module", params=[*KEEPING, "starter", "Llama 2"])
def tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Tokenizer:
    if request.param == "starter":
        return load_tokenizer(open_checkpoint(request.getfixturevalue("starter_model")))
    if request.param == "Llama 2":
        shared: Path = request.getfixturevalue("shared_data")
        return piece_tokenizer((shared / "llama2" / "tokenizer.model").read_bytes())
    return KEEPING[request.param](tmp_path_factory.mktemp("tokenizer"))


texts = st.text(st.characters() | st.sampled_from("\u2581 \n\0aé🦙"))


@settings(max_examples=100)
@given(st.lists(texts | st.sampled_from(hard_texts(100)), max_size=5), st.integers(1, 30))
def test_no_text_has_fewer_tokens(tokenizer: Tokenizer, parts: list[str], times: int) -> None:
    text = "".join(parts) * times
    assert tokenizer.min_tokens(text) <= len(tokenizer.encode(text))


def test_texts_of_the_longest_tokens_have_no_fewer(tokenizer: Tokenizer) -> None:
    by_length = sorted(range(tokenizer.vocab_size), key=lambda i: -len(tokenizer.token_bytes(i)))
    chosen = random.Random(0)
    for _ in range(200):
        ids = chosen.choices(by_length[:40], k=chosen.randrange(1, 20)) * chosen.randrange(1, 20)
        text = tokenizer.decode(ids)
        assert tokenizer.min_tokens(text) <= len(tokenizer.encode(text))


@settings(max_examples=50)
@given(st.lists(texts, max_size=6))
def test_bounds_of_parts_add_up_to_one_of_the_whole(tokenizer: Tokenizer, parts: list[str]) -> None:
    assert sum(map(tokenizer.min_tokens, parts)) <= len(tokenizer.encode("".join(parts)))


def test_the_bound_is_worth_something(tokenizer: Tokenizer) -> None:
    text = "It was the best of times, it was the worst of times. 東京 🦙\n" * 200
    assert tokenizer.min_tokens(text) > len(tokenizer.encode(text)) / 12


def test_a_text_of_the_longest_token_has_exactly_the_bound() -> None:
    tokenizer = doubling(9)
    text = "a" * 512 * 40
    assert tokenizer.min_tokens(text) == len(tokenizer.encode(text)) == 40


LOSING: dict[str, Callable[[Path], Tokenizer]] = {
    "NFKC": lambda folder: normalizing(
        folder, byte_fallback=True, normalization_rule_name="nfkc", remove_extra_whitespaces=False
    ),
    "one space for many": lambda folder: normalizing(
        folder, byte_fallback=True, normalization_rule_name="identity"
    ),
    "one unknown token for many characters": lambda folder: normalizing(
        folder, normalization_rule_name="identity", remove_extra_whitespaces=False, vocab_size=60
    ),
    "NFC in JSON": lambda folder: from_json(
        folder, byte_level_json() | {"normalizer": {"type": "NFC"}}
    ),
    "a replacement in JSON": lambda folder: from_json(
        folder,
        byte_level_json()
        | {"normalizer": {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}},
    ),
    "cut spaces in JSON": lambda folder: from_json(folder, without_spaces()),
}
"""Vocabularies that change a text."""


def without_spaces() -> dict[str, Any]:
    document = byte_level_json()
    split = document["pre_tokenizer"]["pretokenizers"][0]
    split |= {"pattern": {"String": " "}, "behavior": "Removed"}
    return document


@pytest.mark.parametrize("name", LOSING)
def test_nothing_is_known_where_a_text_is_changed(name: str, tmp_path: Path) -> None:
    tokenizer = LOSING[name](tmp_path)
    for text in (" " * 1000, "\u4e00" * 1000, "e\u0301" * 1000, "ﬁ" * 1000, "the " * 1000):
        assert tokenizer.min_tokens(text) == 0


def test_a_text_that_is_not_long_is_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "LONG_TEXT", LONG_TEXT)
    tokenizer = byte_tokenizer()
    assert tokenizer.min_tokens("x" * LONG_TEXT) == 0
    assert tokenizer.min_tokens("x" * (LONG_TEXT + 1)) == LONG_TEXT + 1


def test_a_lower_bound_says_so() -> None:
    assert f"{AtLeast(7)} tokens" == "at least 7 tokens"
    assert AtLeast(7) + 1 == 8
