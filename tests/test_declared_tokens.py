"""Added tokens, BOS, EOS and the space in front, as the files of a folder declare them."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from harness.program import run
from llama_chat.chat.conversation import Message, Role
from llama_chat.chat.templates import template_class
from llama_chat.errors import ModelError
from llama_chat.llama import Llama
from llama_chat.loading.formats import load_tokenizer, open_checkpoint, open_tokenizer
from llama_chat.loading.plan import load
from llama_chat.tokenizers.base import Tokenizer
from tests.folders import (
    by_transformers,
    chatml_tokens,
    decoder_of,
    with_added,
    write_chain,
    write_tokenizer_files,
)
from tests.model_files import sentencepiece_model
from tests.template_kit import template_text
from tests.vocabularies import added, begin_with, byte_level_json, hard_texts, piece_json

MODEL = sentencepiece_model()
DOCUMENT = piece_json(MODEL)
SIZE = len(DOCUMENT["model"]["vocab"])
CHATML = chatml_tokens(SIZE)
WORD = max((piece for piece in DOCUMENT["model"]["vocab"] if piece.isalpha()), key=len)
BYTE_LEVEL = byte_level_json()
BYTE_LEVEL["model"]["vocab"] |= {t["content"]: t["id"] for t in BYTE_LEVEL["added_tokens"]}
PLAIN_TEXTS = [text for text in hard_texts(300) if not text.startswith((" ", "\u2581"))]
FAST = {"tokenizer_class": "PreTrainedTokenizerFast"}


def opened(folder: Path, **files: Any) -> Tokenizer:
    return open_tokenizer(write_tokenizer_files(folder, **files))[0]


def chat_ids(tokenizer: Tokenizer, *contents: str) -> list[int]:
    roles: list[Role] = ["user", "assistant", "user"]
    messages = [Message(role, text) for role, text in zip(roles, contents, strict=False)]
    return template_class("chatml")(tokenizer).render(messages)


# --- Added tokens ------------------------------------------------------------------------------

DECLARED: dict[str, dict[str, Any]] = {
    "added_tokens.json": {"added_tokens": {"<|im_end|>": SIZE, "<|im_start|>": SIZE + 1}},
    "added_tokens_decoder": {"config": {"added_tokens_decoder": decoder_of(CHATML)}},
    "special_tokens_map.json": {
        "special_tokens_map": {"additional_special_tokens": ["<|im_end|>", "<|im_start|>"]}
    },
    "names": {
        "config": {"eos_token": "<|im_end|>", "extra_special_tokens": [{"content": "<|im_start|>"}]}
    },
    "tokenizer.json": {"document": with_added(DOCUMENT, *CHATML)},
}


@pytest.mark.parametrize("way", DECLARED)
def test_tokens_added_beside_sentencepiece_count(tmp_path: Path, way: str) -> None:
    ours = opened(tmp_path / "ours", model=MODEL, **DECLARED[way])
    document = with_added(DOCUMENT, *CHATML)
    theirs = by_transformers(write_tokenizer_files(tmp_path / "theirs", document=document))
    assert ours.control_ids["<|im_end|>"] == SIZE
    assert ours.control_ids["<|im_start|>"] == SIZE + 1
    dialog = [("user", "the thin hen"), ("assistant", "Hello"), ("user", "1 a")]
    expected = theirs.apply_chat_template(
        [{"role": role, "content": text} for role, text in dialog],
        chat_template=template_text("chatml"),
        add_generation_prompt=True,
        tokenize=False,
    )
    ids = theirs.encode(expected, add_special_tokens=False)
    assert chat_ids(ours, *(text for _, text in dialog)) == ids


@pytest.mark.parametrize("way", DECLARED)
def test_a_reply_ends_at_an_added_token(tmp_path: Path, way: str) -> None:
    files = {"model": MODEL, **DECLARED[way]}
    path = write_tokenizer_files(tmp_path / "m", **files)
    word_id = DOCUMENT["model"]["vocab"][WORD]
    write_chain(path, SIZE + 2, [word_id, SIZE, word_id - 1])
    done = run("complete", "-", "-m", path, "--max-tokens", "5", home=tmp_path, stdin=b"12")
    assert (done.status, done.out, done.err) == (0, f"{WORD}\n", "")


def test_the_ids_of_a_chat_are_those_of_tokenizer_json(shared_data: Path, tmp_path: Path) -> None:
    model = (shared_data / "llama2" / "tokenizer.model").read_bytes()
    tokens = {"<|im_end|>": 32000, "<|im_start|>": 32001}
    ours = opened(tmp_path, model=model, added_tokens=tokens)
    ids = chat_ids(ours, "hi")
    assert ids == [32001, 1404, 13, 2918, 32000, 29871, 13, 32001, 20255, 13]
    document = with_added(piece_json(model, metaspace=True), *chatml_tokens(32000))
    first = opened(tmp_path / "first", document=document)
    assert chat_ids(first, "hi") == [32001, 1792, 13, 2918, 32000, 13, 32001, 465, 22137, 13]


@pytest.mark.parametrize("with_json", [True, False])
def test_a_new_special_token_gets_the_next_id_as_in_transformers(
    tmp_path: Path, with_json: bool
) -> None:
    mask, other = (
        {"__type": "AddedToken", "content": text, "lstrip": True} for text in ("<mask>", "<y>")
    )
    config = {
        "pad_token": "<pad>",
        "mask_token": mask,
        "unk_token": "<unk>",
        "additional_special_tokens": ["<x>", other, "<s>"],
    }
    files: dict[str, Any] = {"document": DOCUMENT, "config": config}
    theirs = by_transformers(write_tokenizer_files(tmp_path / "theirs", **files))
    ours = opened(tmp_path / "ours", model=MODEL, **(files if with_json else {"config": config}))
    expected = {text: i for text, i in theirs.get_vocab().items() if i >= SIZE}
    assert len(expected) == 4
    assert {ours.piece(i): i for i in range(SIZE, ours.vocab_size)} == expected
    assert expected.items() <= dict(ours.control_ids).items()


def test_a_word_that_serves_as_padding_stays_a_word(tmp_path: Path) -> None:
    plain = opened(tmp_path / "plain", model=MODEL)
    ours = opened(tmp_path / "ours", model=MODEL, config={"pad_token": WORD})
    assert ours.encode(f"a {WORD}{WORD}") == plain.encode(f"a {WORD}{WORD}")
    assert ours.control_ids == plain.control_ids


def test_both_files_say_together_what_is_special(tmp_path: Path) -> None:
    model = sentencepiece_model(control_symbols=("[INST]", "[/INST]"))
    document = piece_json(model)
    # As published with some models, which list none but the oldest tokens.
    document["added_tokens"] = [t for t in document["added_tokens"] if t["content"][0] == "<"]
    for name, more in (("same", []), ("more", [added(SIZE, "<think>", special=False)])):
        ours = opened(tmp_path / name, model=model, document=with_added(document, *more))
        assert {"[INST]", "[/INST]"} <= ours.control_ids.keys()
        assert not set(ours.control_ids.values()) & set(ours.encode("[INST] <think>the[/INST]"))
        assert ours.kind == ("SentencePiece BPE" if more else "SentencePiece")


def test_a_token_renamed_by_the_files_has_its_new_name_only(tmp_path: Path) -> None:
    word_id = DOCUMENT["model"]["vocab"][WORD]
    config = {"added_tokens_decoder": decoder_of([added(word_id, "<|im_start|>")])}
    ours = opened(tmp_path, model=MODEL, config=config)
    assert ours.control_ids["<|im_start|>"] == word_id
    for text in (WORD, f"a {WORD}{WORD}", "<|im_start|>"):
        assert word_id not in ours.encode(text)
        assert ours.decode(ours.encode(text)) == text


WORDS = [
    added(SIZE, "zword", special=False),
    {**added(SIZE + 1, "zleft", special=False), "lstrip": True},
    {**added(SIZE + 2, "zright", special=False), "rstrip": True},
    {**added(SIZE + 3, "zwhole", special=False), "single_word": True},
    added(SIZE + 4, "two words", special=False),
    added(SIZE + 5, "zwordzword", special=False),
]


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("with_json", [True, False])
def test_added_words_are_found_as_in_transformers(
    tmp_path: Path, legacy: bool, with_json: bool
) -> None:
    config: dict[str, Any] = {"tokenizer_class": "LlamaTokenizer", "legacy": legacy}
    config["added_tokens_decoder"] = decoder_of(WORDS)
    document = with_added(DOCUMENT, *WORDS)
    files: dict[str, Any] = {"document": document, "config": config}
    theirs = by_transformers(write_tokenizer_files(tmp_path / "theirs", **files))
    ours = opened(tmp_path / "ours", **(files if with_json else {"model": MODEL, "config": config}))
    names = [word["content"] for word in WORDS]
    texts = [f"a{name}b {name} 12{name}" for name in names]
    texts += [f"{one}{other} {one}\n" for one in names for other in names]
    for text in texts:
        # SentencePiece puts the space before a text that begins with one, too.
        if with_json or not (legacy and " " in text):
            assert ours.encode(text) == theirs.encode(text, add_special_tokens=False), text


# --- The space in front ------------------------------------------------------------------------


def metaspace(scheme: str) -> dict[str, Any]:
    document = piece_json(MODEL, metaspace=True)
    document["pre_tokenizer"]["prepend_scheme"] = scheme
    return document


SPACED_BYTES = copy.deepcopy(BYTE_LEVEL)
SPACED_BYTES["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = True
NONE = {**DOCUMENT, "normalizer": DOCUMENT["normalizer"]["normalizers"][1]}
OLD_METASPACE = metaspace("first")
del OLD_METASPACE["pre_tokenizer"]["prepend_scheme"]
LLAMA = {"tokenizer_class": "LlamaTokenizerFast"}
PREFIXES: dict[str, tuple[dict[str, Any], str]] = {
    "prepend": ({"document": DOCUMENT}, "every"),
    "none": ({"document": NONE}, "never"),
    "always": ({"document": metaspace("always")}, "every"),
    "first": ({"document": metaspace("first")}, "first"),
    "never": ({"document": metaspace("never")}, "never"),
    "older": ({"document": OLD_METASPACE}, "every"),
    "prepend, legacy false": ({"document": DOCUMENT, "config": {"legacy": False}}, "every"),
    "prepend, of Llama, legacy false": (
        {"document": DOCUMENT, "config": {**LLAMA, "legacy": False}},
        "first",
    ),
    "first, of Llama, legacy true": (
        {"document": metaspace("first"), "config": {**LLAMA, "legacy": True}},
        "every",
    ),
    "of Llama, no space": (
        {"document": DOCUMENT, "config": {**LLAMA, "legacy": False, "add_prefix_space": False}},
        "never",
    ),
    "byte-level": ({"document": BYTE_LEVEL}, "never"),
    "byte-level, spaced": ({"document": SPACED_BYTES}, "every"),
}


@pytest.mark.parametrize("with_model", [True, False])
@pytest.mark.parametrize("case", PREFIXES)
def test_the_space_in_front_is_that_of_transformers(
    tmp_path: Path, case: str, with_model: bool
) -> None:
    files, prefix = PREFIXES[case]
    byte_level = case.startswith("byte-level")
    tokens = [] if byte_level else CHATML
    files = {**files, "document": with_added(files["document"], *tokens)}
    theirs = by_transformers(write_tokenizer_files(tmp_path / "theirs", **files))
    model = {"model": MODEL} if with_model and not byte_level else {}
    ours = opened(tmp_path / "ours", **files, **model)
    assert ours.prefix == prefix
    for text in hard_texts(200):
        if not any(name in text for name in ours.control_ids):
            assert ours.encode(text) == theirs.encode(text, add_special_tokens=False), text
    for contents in (["the thin"], ["a", "Hello", "1 a"]):
        text = "".join(
            f"<|im_start|>{role}\n{content}<|im_end|>\n"
            for role, content in zip(("user", "assistant", "user"), contents, strict=False)
        )
        ids = theirs.encode(f"{text}<|im_start|>assistant\n", add_special_tokens=False)
        assert chat_ids(ours, *contents) == ids


FOLDERS: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "every"),
    "legacy": ({"legacy": True}, "every"),
    "not legacy": ({"legacy": False}, "first"),
    "null": ({"legacy": None}, "every"),
    "no space": ({"add_prefix_space": False}, "never"),
    "no space, not legacy": ({"add_prefix_space": False, "legacy": False}, "never"),
    "a space": ({"add_prefix_space": True}, "every"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_beside_sentencepiece_legacy_says_where_the_space_is(tmp_path: Path, case: str) -> None:
    config, prefix = FOLDERS[case]
    ours = opened(tmp_path, model=MODEL, config=config, added_tokens={"<|im_end|>": SIZE})
    assert ours.prefix == prefix
    bare = open_tokenizer(tmp_path / "tokenizer.model")[0]
    for text in hard_texts(100):
        if "<|im_end|>" not in text:
            assert ours.encode(text, prefixed=False) == bare.encode(f"\n{text}")[2:]
            wanted = bare.encode(text, prefixed=prefix != "never")
            assert ours.encode(text) == wanted
            assert ours.decode(ours.encode(text)) == bare.decode(bare.encode(text))


def test_a_model_without_the_space_has_none_whatever_legacy_says(tmp_path: Path) -> None:
    model = sentencepiece_model() + bytes([0x1A, 2, 0x18, 0])  # add_dummy_prefix: false
    for legacy in (None, True, False):
        ours = opened(tmp_path, model=model, config={"legacy": legacy})
        assert ours.prefix == "never"
        assert ours.token_bytes(ours.encode("the")[0])[:1] == b"t"


# --- BOS and EOS -------------------------------------------------------------------------------


def ended(document: dict[str, Any]) -> dict[str, Any]:
    """Return a ``tokenizer.json`` that puts EOS behind."""
    processor = begin_with("<s>", 1)
    processor["single"].append({"SpecialToken": {"id": "</s>", "type_id": 0}})
    processor["special_tokens"] |= begin_with("</s>", 2)["special_tokens"]
    return {**document, "post_processor": processor}


NAMES = {"bos_token": "<s>", "eos_token": "</s>"}
BARE = {**DOCUMENT, "post_processor": None}
BEGINNINGS: dict[str, tuple[dict[str, Any], bool, bool]] = {
    "model": ({"model": MODEL}, True, False),
    "model, no BOS": ({"model": MODEL, "config": {"add_bos_token": False}}, False, False),
    "model, BOS and EOS": (
        {"model": MODEL, "config": {"add_bos_token": True, "add_eos_token": True}},
        True,
        True,
    ),
    "json": ({"document": DOCUMENT, "config": NAMES}, True, False),
    "json, ends": ({"document": ended(DOCUMENT), "config": NAMES}, True, True),
    "json, bare": ({"document": BARE, "config": NAMES}, False, False),
    "json, bare, flags": (
        {"document": BARE, "config": {**NAMES, "add_bos_token": True, "add_eos_token": True}},
        True,
        True,
    ),
    "both": ({"model": MODEL, "document": DOCUMENT}, True, False),
    "both, no BOS": (
        {"model": MODEL, "document": DOCUMENT, "config": {"add_bos_token": False}},
        False,
        False,
    ),
    "both, ends": ({"model": MODEL, "document": ended(DOCUMENT), "config": NAMES}, True, True),
    "both, no EOS": (
        {
            "model": MODEL,
            "document": ended(DOCUMENT),
            "config": {**NAMES, "add_eos_token": False},
        },
        True,
        False,
    ),
}


def prompt_ids(folder: Path, text: str) -> list[int]:
    write_chain(folder, SIZE, [5, 2])
    loaded: Llama = load(folder, dtype="float32")
    return loaded.prompt_ids(text)


@pytest.mark.parametrize("case", BEGINNINGS)
def test_flags_and_the_post_processor_say_what_a_prompt_begins_and_ends_with(
    tmp_path: Path, case: str
) -> None:
    files, bos, eos = BEGINNINGS[case]
    ids = prompt_ids(write_tokenizer_files(tmp_path / "m", **files), "the hen")
    plain = open_tokenizer(write_tokenizer_files(tmp_path / "x", model=MODEL))[0].encode("the hen")
    assert ids == [*([1] if bos else []), *plain, *([2] if eos else [])]
    if "document" in files and not files.get("config", {}).keys() & {"add_bos_token"}:
        theirs = by_transformers(write_tokenizer_files(tmp_path / "x", document=files["document"]))
        if case != "both, no EOS":
            assert theirs("the hen").input_ids == ids


def test_a_model_of_llama_2_without_bos(shared_data: Path, tmp_path: Path) -> None:
    model = (shared_data / "llama2" / "tokenizer.model").read_bytes()
    folder = write_tokenizer_files(tmp_path, model=model, config={"add_bos_token": False})
    write_chain(folder, 32000, [5, 2])
    loaded: Llama = load(folder, dtype="float32")
    assert loaded.prompt_ids("Hello world") == [15043, 3186]
    assert loaded.prompt_ids("") == [1]  # a model needs a token to continue


# --- Damaged files -----------------------------------------------------------------------------

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no id": ({"added_tokens": {"<x>": "7"}}, "'<x>' has no id"),
    "a flag as id": ({"added_tokens": {"<x>": True}}, "'<x>' has no id"),
    "an id below 0": ({"added_tokens": {"<x>": -1}}, "no whole number from 0"),
    "an id too large": ({"added_tokens": {"<x>": 2**40}}, "no whole number from 0"),
    "no number": ({"config": {"added_tokens_decoder": {"x": {}}}}, "'x' is no id"),
    "no text": ({"config": {"added_tokens_decoder": {"400": {}}}}, "added token '400' has no text"),
    "no object": ({"config": {"added_tokens_decoder": {"400": 1}}}, "400 is 1, not an object"),
    "legacy a text": ({"config": {"legacy": "no"}}, "legacy is 'no', not true or false"),
    "bos a list": ({"config": {"bos_token": [1]}}, "bos_token is [1], not a text"),
    "a list": ({"special_tokens_map": {"pad_token": 5}}, "pad_token is 5, not a text"),
}


@pytest.mark.parametrize("case", BAD)
def test_damaged_declarations_are_refused_in_one_line(tmp_path: Path, case: str) -> None:
    files, why = BAD[case]
    folder = write_tokenizer_files(write_chain(tmp_path, SIZE, [5, 2]), model=MODEL, **files)
    with pytest.raises(ModelError) as caught:
        load_tokenizer(open_checkpoint(folder))
    assert why in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_surrogate_is_no_token(tmp_path: Path) -> None:
    (tmp_path / "added_tokens.json").write_text(json.dumps({"\ud800": SIZE}))
    with pytest.raises(ModelError, match="has no id"):
        opened(tmp_path, model=MODEL)
