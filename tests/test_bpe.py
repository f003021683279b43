"""Each pre-tokenizer divides text as the model it belongs to was trained with."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_chat.tokenizers.bpe import BytePairTokenizer
from tests.model_files import CONTROL_TOKENS, MERGES, TOKENS

# Words that no merge leads to, as some of Llama 3 are.
WORDS = ["hello", "Ġhello"]
DIGITS = ["1 2", "12 3", "123 4"]


def tokenizer(pre_tokenizer: str) -> BytePairTokenizer:
    merges = [*MERGES, *DIGITS]
    return BytePairTokenizer(
        tokens=[*TOKENS, *(merge.replace(" ", "") for merge in DIGITS), *WORDS],
        merges=merges,
        control_ids=frozenset(range(len(CONTROL_TOKENS))),
        pre_tokenizer=pre_tokenizer,
        bos_id=None,
        eos_id=0,
        add_bos=False,
    )


@pytest.mark.parametrize(
    ("pre_tokenizer", "pieces"),
    [
        ("gpt2", ["1234"]),
        ("gpt-2", ["1234"]),
        ("default", ["1234"]),
        ("smollm", ["1", "2", "3", "4"]),
        ("llama-bpe", ["123", "4"]),
        ("llama3", ["123", "4"]),
    ],
)
def test_digits_are_divided_as_in_training(pre_tokenizer: str, pieces: list[str]) -> None:
    found = tokenizer(pre_tokenizer)
    assert [found.piece(i) for i in found.encode("1234")] == pieces


@pytest.mark.parametrize("pre_tokenizer", ["llama-bpe", "llama3"])
def test_llama_3_takes_whole_words_that_merges_do_not_reach(pre_tokenizer: str) -> None:
    found = tokenizer(pre_tokenizer)
    assert [found.piece(i) for i in found.encode("hello hello")] == WORDS
    merged = tokenizer("gpt2")
    assert [merged.piece(i) for i in merged.encode("hello")] == list("hello")


@settings(max_examples=60, deadline=None)
@given(parts=st.lists(st.sampled_from([*CONTROL_TOKENS, " ", "\n", "hello", "1234", "é", "😀"])))
@pytest.mark.parametrize("pre_tokenizer", ["gpt2", "smollm", "llama-bpe"])
def test_no_pre_tokenizer_lets_text_become_a_control_token(
    pre_tokenizer: str, parts: list[str]
) -> None:
    found, text = tokenizer(pre_tokenizer), "".join(parts)
    ids = found.encode(text)
    assert found.decode(ids) == text
    assert not set(found.control_ids.values()) & set(ids)
