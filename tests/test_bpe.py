"""Pre-tokenizers divide text as in the training of their models."""

import reprlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken as LibraryToken
from tokenizers import Regex, models, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from harness.program import run
from llama_chat.loading.formats import load_tokenizer, make_tokenizer, open_checkpoint
from llama_chat.tokenizers.base import Tokenizer
from llama_chat.tokenizers.bpe import PRE_TOKENIZERS
from llama_chat.tokenizers.library import assemble
from llama_chat.tokenizers.vocabulary import AddedToken
from tests.model_files import (
    CONTROL_TOKENS,
    MERGES,
    SMALL,
    TOKENS,
    assert_refused,
    byte_vocabulary,
    write_gguf,
)
from tests.vocabularies import hard_texts, library_ids

# Tokens that merges do not produce, as some of Llama 3.
WORDS = ["hello", "Ġhello"]
DIGITS = ["1 2", "12 3", "123 4"]


ALL = [*TOKENS, *(merge.replace(" ", "") for merge in DIGITS), *WORDS]


def tokenizer(pre_tokenizer: str, added: tuple[str, ...] = ()) -> Tokenizer:
    vocabulary = byte_vocabulary(ALL, [*MERGES, *DIGITS], pre_tokenizer=pre_tokenizer)
    tokens = {len(ALL) + i: AddedToken(text, special=False) for i, text in enumerate(added)}
    return make_tokenizer(vocabulary.with_added(tokens))


@pytest.mark.parametrize(
    ("pre_tokenizer", "pieces"),
    [
        ("gpt2", ["1234"]),
        ("gpt-2", ["1234"]),
        ("default", ["1234"]),
        ("smollm", ["1", "2", "3", "4"]),
        ("llama-bpe", ["123", "4"]),
        ("llama3", ["123", "4"]),
        ("smaug-bpe", ["123", "4"]),
        ("qwen2", ["1", "2", "3", "4"]),
        ("tekken", ["1", "2", "3", "4"]),
    ],
)
def test_digits_are_divided_as_in_training(pre_tokenizer: str, pieces: list[str]) -> None:
    found = tokenizer(pre_tokenizer)
    assert [found.piece(i) for i in found.encode("1234")] == pieces


SAMPLE = "It's 12345, über_x!\n\n  Иван漢字 CamelCase/a"
DIVIDED = {
    ("stablelm2", "megrez", "deepseek-r1-qwen"): (
        "It|'s| |1|2|3|4|5|,| über|_x|!\n\n| | Иван漢字| CamelCase|/a"
    ),
    ("gpt-4o", "llama4"): "It's| |123|45|,| über|_x|!\n\n| | Иван漢字| Camel|Case|/a",
    ("seed-coder",): "It|'s| |1|2|3|4|5|,| über|_x|!|\n\n| | Иван漢字| CamelCase|/a",
    ("deepseek-coder",): ("It|'|s| |1|2|3|4|5|,| über|_|x|!|\n|\n| | Иван|漢字| CamelCase|/|a"),
    ("deepseek-v3",): "It|'s| |123|45|,| über|_x|!\n\n| | Иван|漢字| CamelCase|/a",
    ("bloom", "poro-chat", "gpt3-finnish"): ("It's| 12345|,| über_x|!\n\n | Иван漢字| CamelCase/a"),
    ("viking",): "It's| |1|2|3|4|5|,| über_x|!\n\n | Иван漢字| CamelCase/a",
    ("olmo", "trillion", "phi-2"): ("It|'s| 12345|,| über|_|x|!|\n\n | Иван漢字| CamelCase|/|a"),
}


@pytest.mark.parametrize("names", DIVIDED, ids=" ".join)
def test_text_is_divided_as_llama_cpp_divides_it(names: tuple[str, ...]) -> None:
    for name in names:
        found = tokenizer(name)
        # Each word is a run of single bytes, since no merges reach it.
        rule = PRE_TOKENIZERS[name].component()
        backend = assemble("", BPE(), None, rule, [])
        assert backend.pre_tokenizer is not None
        places = [place for _, place in backend.pre_tokenizer.pre_tokenize_str(SAMPLE)]
        assert [SAMPLE[start:end] for start, end in places] == DIVIDED[names].split("|")
        assert found.decode(found.encode(SAMPLE)) == SAMPLE


def test_patterns_are_those_of_transformers() -> None:
    from transformers.integrations.gguf import gguf_tokenizer_mapping

    theirs = gguf_tokenizer_mapping.GGUF_PRE_TOKENIZER_SPLITS
    shared = theirs.keys() & PRE_TOKENIZERS.keys()
    assert len(shared) >= 15
    for name in shared:
        assert PRE_TOKENIZERS[name].splits == (theirs[name],)


def test_a_file_without_a_pre_tokenizer_is_read_with_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, metadata={"tokenizer__ggml__pre": None})
    checkpoint = open_checkpoint(path)
    assert len(checkpoint.warnings) == 1
    for part in (str(path), "does not name its pre-tokenizer", "that of gpt-2 is assumed"):
        assert part in checkpoint.warnings[0]
    named = byte_vocabulary(pre_tokenizer="gpt-2")
    text = "4312 the thin hen"
    assert load_tokenizer(checkpoint).encode(text) == make_tokenizer(named).encode(text)
    done = run("ask", "hi", "-m", path, "--max-tokens", "1", home=tmp_path)
    assert done.status == 0
    assert done.err.splitlines()[0] == f"llama-chat: warning: {checkpoint.warnings[0]}"
    write_gguf(path)
    assert open_checkpoint(path).warnings == ()


@pytest.mark.parametrize("name", ["deepseek-llm", "falcon", "superbpe", "x\x1b[31m", "y" * 5000])
def test_an_unknown_pre_tokenizer_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    write_gguf(tmp_path / "m.gguf", metadata={"tokenizer__ggml__pre": name})
    shown = reprlib.repr(name)
    assert_refused(tmp_path / "m.gguf", f"its pre-tokenizer {shown} is not supported: take the")


@pytest.mark.parametrize("pre_tokenizer", ["llama-bpe", "llama3"])
def test_llama_3_takes_whole_words_that_merges_do_not_reach(pre_tokenizer: str) -> None:
    found = tokenizer(pre_tokenizer)
    assert [found.piece(i) for i in found.encode("hello hello")] == WORDS
    merged = tokenizer("gpt2")
    assert [merged.piece(i) for i in merged.encode("hello")] == list("hello")


@settings(max_examples=60)
@given(parts=st.lists(st.sampled_from([*CONTROL_TOKENS, " ", "\n", "hello", "1234", "é", "😀"])))
@pytest.mark.parametrize("pre_tokenizer", ["gpt2", "smollm", "llama-bpe"])
def test_no_pre_tokenizer_lets_text_become_a_control_token(
    pre_tokenizer: str, parts: list[str]
) -> None:
    found, text = tokenizer(pre_tokenizer), "".join(parts)
    ids = found.encode(text)
    assert found.decode(ids) == text
    assert not set(found.control_ids.values()) & set(ids)


DIGITS_APART = pre_tokenizers.Digits(individual_digits=True)
WORDS_OF_GPT_2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
BYTES_ALONE = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
LLAMA_3 = Regex(  # of the tokenizer.json that Meta publishes
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LIBRARY = {
    "gpt-2": WORDS_OF_GPT_2,
    "smollm": pre_tokenizers.Sequence([DIGITS_APART, WORDS_OF_GPT_2]),
    "llama-bpe": pre_tokenizers.Sequence(
        [pre_tokenizers.Split(LLAMA_3, "isolated"), BYTES_ALONE],
    ),
}


@pytest.mark.parametrize("pre_tokenizer", LIBRARY)
def test_ids_are_those_of_the_library(pre_tokenizer: str) -> None:
    theirs = Backend(
        models.BPE(
            vocab={token: i for i, token in enumerate(ALL)},
            merges=[(left, right) for left, right in map(str.split, [*MERGES, *DIGITS])],
            ignore_merges=pre_tokenizer == "llama-bpe",
        )
    )
    theirs.pre_tokenizer = LIBRARY[pre_tokenizer]
    theirs.add_tokens([LibraryToken("\n\n\n", normalized=False)])
    ours = tokenizer(pre_tokenizer, added=("\n\n\n",))
    for text in [*hard_texts(), "a\n\n\n\nb"]:
        assert ours.encode(text) == library_ids(theirs, text), text
        assert ours.decode(ours.encode(text)) == text


@pytest.mark.parametrize("pre_tokenizer", ["gpt-2", "llama-bpe"])
def test_an_added_token_is_text_unless_it_looks_like_a_marker(pre_tokenizer: str) -> None:
    # The last one is a word by itself, which Llama 3 would take whole.
    ours = tokenizer(pre_tokenizer, added=("é  é", "<|im_sep|>", "[INST]", "<|>"))
    assert list(ours.control_ids) == [*CONTROL_TOKENS, "<|im_sep|>", "[INST]", "<|>"]
    assert ours.encode("é  é") == [len(ALL)]
    assert ours.token_bytes(len(ALL)) == "é  é".encode()
    text = "<|im_sep|>[INST] <|> <|>"
    assert not set(ours.control_ids.values()) & set(ours.encode(text))
    assert ours.decode(ours.encode(text)) == text


@pytest.mark.parametrize(
    ("pre_tokenizer", "said", "adds"),
    [
        ("llama-bpe", None, True),
        ("tekken", None, True),
        ("smaug-bpe", None, False),
        ("smollm", None, False),
        ("llama-bpe", False, False),
        ("smollm", True, True),
    ],
)
def test_models_of_llama_3_begin_with_bos_where_the_file_does_not_say(
    tmp_path: Path, pre_tokenizer: str, said: bool | None, adds: bool
) -> None:
    values: dict[str, object] = {
        "tokenizer__ggml__pre": pre_tokenizer,
        "tokenizer__ggml__bos_token_id": 1,
        "tokenizer__ggml__add_bos_token": said,
    }
    write_gguf(tmp_path / "m.gguf", SMALL, metadata=values)
    assert load_tokenizer(open_checkpoint(tmp_path / "m.gguf")).add_bos == adds


def test_token_types_of_a_gguf_file_mark_control_tokens(tmp_path: Path) -> None:
    types = [4, 4, 3, *(1 for _ in TOKENS[3:])]
    write_gguf(tmp_path / "m.gguf", metadata={"tokenizer__ggml__token_type": types})
    found: Tokenizer = load_tokenizer(open_checkpoint(tmp_path / "m.gguf"))
    assert found.control_ids == {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}
