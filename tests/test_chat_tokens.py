"""Tokens of chats work whatever their type, and no text becomes one; none without a row is used."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from harness.program import assert_clean_error, run
from llama_chat.chat.conversation import Message
from llama_chat.chat.templates import choose_template, template_class
from llama_chat.checkpoints.template_source import TemplateSource
from llama_chat.errors import ModelError, UsageError
from llama_chat.loading.formats import (
    load_tokenizer,
    make_tokenizer,
    open_checkpoint,
    open_tokenizer,
)
from llama_chat.loading.plan import load
from llama_chat.settings.sampling import Sampling
from llama_chat.tokenizers.base import Tokenizer
from llama_chat.tokenizers.sentencepiece import read_model
from llama_chat.tokenizers.sentencepiece_file import user_defined_ids, with_types
from llama_chat.tokenizers.vocabulary import TokenType
from tests.folders import chatml_tokens, with_added, write_chain, write_tokenizer_files
from tests.model_files import (
    MERGES,
    SMALL,
    TOKENS,
    byte_vocabulary,
    sentencepiece_model,
    write_gguf,
)
from tests.vocabularies import added, byte_level_json, piece_json, piece_tables

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
CHATML = ("<|im_start|>", "<|im_end|>")
MODEL = sentencepiece_model()
DOCUMENT = piece_json(MODEL)
SIZE = len(DOCUMENT["model"]["vocab"])


def spells_out(tokenizer: Tokenizer, names: tuple[str, ...] = CHATML) -> None:
    """Check that a template has the tokens, and that typed text has not."""
    ids = [tokenizer.control_ids[name] for name in names]
    for text in (f"a{''.join(names)}b", " ".join(names), names[0], f"the {names[1]}"):
        assert not set(ids) & set(tokenizer.encode(text))
        assert not set(ids) & set(tokenizer.encode(text, prefixed=False))
        assert tokenizer.decode(tokenizer.encode(text)) == text
    if names == CHATML:
        rendered = template_class("chatml")(tokenizer).render([Message("user", "<|im_end|>")])
        assert [i for i in rendered if i in ids] == [ids[0], ids[1], ids[0]]


# --- Types -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [NORMAL, CONTROL, USER_DEFINED, UNUSED])
def test_pieces_of_a_gguf_file_of_any_type(tmp_path: Path, kind: int) -> None:
    tables = piece_tables(MODEL)
    key = "tokenizer__ggml__"
    write_gguf(
        tmp_path / "m.gguf",
        dataclasses.replace(SMALL, vocab_size=SIZE + 2),
        metadata={
            f"{key}model": "llama",
            f"{key}tokens": [*tables["tokens"], *CHATML],
            f"{key}scores": [*tables["scores"], 0.0, 0.0],
            f"{key}token_type": [*tables["types"], kind, kind],
            f"{key}bos_token_id": 1,
            f"{key}eos_token_id": 2,
        },
    )
    tokenizer = load_tokenizer(open_checkpoint(tmp_path / "m.gguf"))
    spells_out(tokenizer)
    shown = kind in (NORMAL, USER_DEFINED)
    assert tokenizer.token_bytes(SIZE) == (b"<|im_start|>" if shown else b"")


def whole(name: str) -> list[str]:
    """Return merges that lead to a token, one character after the other."""
    return [f"{name[:i]} {name[i]}" for i in range(1, len(name))]


@pytest.mark.parametrize("kind", [NORMAL, CONTROL, USER_DEFINED, UNUSED])
@pytest.mark.parametrize("pre_tokenizer", ["gpt-2", "llama-bpe", "tekken"])
def test_merged_tokens_of_a_gguf_file_of_any_type(
    tmp_path: Path, kind: int, pre_tokenizer: str
) -> None:
    # Merges lead to the token, as in a vocabulary that was trained on chats.
    steps = {CHATML[0][:n]: None for n in range(2, len(CHATML[0]))}
    tokens = [*TOKENS, *steps]
    merges = [*MERGES, *whole("<|im_start|>")]
    types = [CONTROL, kind, kind, *(NORMAL for _ in tokens[3:])]
    metadata: dict[str, object] = {
        "tokenizer__ggml__tokens": tokens,
        "tokenizer__ggml__token_type": types,
        "tokenizer__ggml__merges": merges,
        "tokenizer__ggml__pre": pre_tokenizer,
    }
    config = dataclasses.replace(SMALL, vocab_size=len(tokens))
    write_gguf(tmp_path / "m.gguf", config, metadata=metadata)
    spells_out(load_tokenizer(open_checkpoint(tmp_path / "m.gguf")))


@pytest.mark.parametrize("kind", ["user_defined_symbols", "control_symbols"])
def test_pieces_of_a_sentencepiece_file_of_any_type(tmp_path: Path, kind: str) -> None:
    model = sentencepiece_model(**{kind: CHATML})
    (tmp_path / "tokenizer.model").write_bytes(model)
    tokenizer, _ = open_tokenizer(tmp_path / "tokenizer.model")
    spells_out(tokenizer)
    library = sentencepiece.SentencePieceProcessor(model_proto=model)
    plain = "the thin hen, 12 é 漢  x"
    assert tokenizer.encode(plain) == library.encode(plain)
    assert (3 in library.encode("a<|im_start|>b")) == (kind == "user_defined_symbols")


def test_words_of_a_sentencepiece_file_are_found_as_the_library_finds_them(tmp_path: Path) -> None:
    model = sentencepiece_model(user_defined_symbols=("<|im_end|>", "zword", "\n\n"))
    (tmp_path / "tokenizer.model").write_bytes(model)
    tokenizer, _ = open_tokenizer(tmp_path / "tokenizer.model")
    library = sentencepiece.SentencePieceProcessor(model_proto=model)
    for text in ("azwordb", "zword zword\n\n\n", "a\n\nb", " zword"):
        assert tokenizer.encode(text) == library.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_types_are_those_of_the_file(shared_data: Path, tmp_path: Path) -> None:
    llama_2 = (shared_data / "llama2" / "tokenizer.model").read_bytes()
    for model in (MODEL, llama_2, sentencepiece_model(control_symbols=("[INST]", "[/INST]"))):
        (tmp_path / "tokenizer.model").write_bytes(model)
        assert read_model(tmp_path / "tokenizer.model").types == piece_tables(model)["types"]
    model = sentencepiece_model(user_defined_symbols=("<|im_end|>", "x" * 200))
    assert user_defined_ids(model, "") == [3, 4]
    changed = with_types(model, {3: TokenType.NORMAL, 9: TokenType.UNUSED}, "")
    assert user_defined_ids(changed, "") == [4]
    # The bytes of a type within a text or a score are none.
    assert user_defined_ids(MODEL + bytes([0x7A, 2, 0x18, 4]), "") == []


@pytest.mark.parametrize("name", ["bytes", "pieces"])
def test_tokens_of_a_tokenizer_json_that_it_does_not_list(tmp_path: Path, name: str) -> None:
    document = byte_level_json() if name == "bytes" else piece_json(MODEL)
    document["added_tokens"] = [t for t in document["added_tokens"] if t["content"] not in CHATML]
    # Merges lead to the token, as in a vocabulary that was trained on chats.
    merges = whole(CHATML[0])
    tokens = [CHATML[1], *"<|imstar>_", *(merge.replace(" ", "") for merge in merges)]
    vocab = document["model"]["vocab"]
    vocab |= {token: 1000 + i for i, token in enumerate(tokens) if token not in vocab}
    document["model"]["merges"] += merges if name == "pieces" else [m.split(" ") for m in merges]
    document["post_processor"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    spells_out(open_tokenizer(tmp_path)[0])


def test_ordinary_tokens_between_brackets_are_typed() -> None:
    words = ["[0]", "<T>", "<br>", "[]", "</s>", "<|", "|>"]
    merges = [merge for word in words for merge in whole(word)]
    steps = dict.fromkeys(merge.replace(" ", "") for merge in merges)
    tokenizer = make_tokenizer(byte_vocabulary([*TOKENS, *steps], [*MERGES, *merges]))
    for word in words:
        assert not {word} & tokenizer.control_ids.keys()


# --- Tokens without a row ----------------------------------------------------------------------

PAD = added(SIZE, "<pad>")
ROWLESS: dict[str, dict[str, Any]] = {
    "tokenizer.json": {"document": with_added(DOCUMENT, PAD)},
    "added_tokens.json": {"model": MODEL, "added_tokens": {"<pad>": SIZE}},
    "special_tokens_map.json": {"model": MODEL, "special_tokens_map": {"pad_token": "<pad>"}},
    "pad_token": {"model": MODEL, "document": DOCUMENT, "config": {"pad_token": "<pad>"}},
    "a word": {"document": with_added(DOCUMENT, added(SIZE, "zword", special=False))},
    "far": {"model": MODEL, "added_tokens": {"<pad>": SIZE + 100}},
}


@pytest.mark.parametrize("case", ROWLESS)
def test_a_token_without_a_row_is_never_used(tmp_path: Path, case: str) -> None:
    path = write_tokenizer_files(tmp_path / "m", **ROWLESS[case])
    write_chain(path, SIZE, [300, 301, 2])
    done = run("ask", "a <pad> zword", "-m", path, "--template", "plain", home=tmp_path)
    assert (done.status, done.err) == (0, "")
    llama = load(path, dtype="float32")
    tokenizer = llama.tokenizer
    assert tokenizer.vocab_size == SIZE
    text = "a<pad>b zword <pad>"
    assert max(tokenizer.encode(text)) < SIZE
    assert tokenizer.decode(tokenizer.encode(text)) == text
    ids = [
        event.id
        for event in llama.generate([1, 5], Sampling(temperature=0), max_tokens=3)
        if hasattr(event, "id")
    ]
    assert ids == [300, 301]
    out = tmp_path / "m.gguf"
    done = run("convert", path, out, home=tmp_path)
    assert done.status == 0
    assert "without a row in the embedding are left out: " in done.err
    again = load_tokenizer(open_checkpoint(out))
    assert (again.vocab_size, again.encode(text)) == (SIZE, tokenizer.encode(text))


def test_a_template_that_needs_a_token_without_a_row_is_refused(tmp_path: Path) -> None:
    files: dict[str, Any] = {"document": with_added(DOCUMENT, *chatml_tokens(SIZE))}
    for n_rows in (SIZE, SIZE + 1):
        path = write_chain(write_tokenizer_files(tmp_path / "m", **files), n_rows, [300, 2])
        done = run("ask", "hi", "-m", path, "--template", "chatml", home=tmp_path)
        assert_clean_error(done, 2, "the embedding of this model has no <|im_start|>")
        tokenizer = load_tokenizer(open_checkpoint(path))
        with pytest.raises(UsageError, match="choose another with --template"):
            choose_template("chatml", TemplateSource(), tokenizer)
    assert tokenizer.rowless == {"<|im_start|>": SIZE + 1}
    assert "<|im_end|>" in tokenizer.control_ids


def test_bos_and_eos_without_a_row_begin_and_end_nothing(tmp_path: Path) -> None:
    config = {"bos_token": "<bos>", "eos_token": "<eos>", "add_bos_token": True}
    config |= {"add_eos_token": True}
    path = write_tokenizer_files(tmp_path, document=DOCUMENT, config=config)
    llama = load(write_chain(path, SIZE, [300, 2]), dtype="float32")
    assert (llama.tokenizer.bos_id, llama.tokenizer.eos_id) == (None, None)
    assert llama.prompt_ids("the") == llama.tokenizer.encode("the")


@pytest.mark.parametrize("missing", [1, 50, 300])
def test_a_tokenizer_whose_text_lacks_rows_is_refused(tmp_path: Path, missing: int) -> None:
    path = write_tokenizer_files(tmp_path, model=MODEL, added_tokens={"<pad>": SIZE})
    write_chain(path, SIZE - missing, [50, 2])
    with pytest.raises(
        ModelError, match=f"it has {SIZE + 1} tokens and the model {SIZE - missing}"
    ):
        load_tokenizer(open_checkpoint(path))
