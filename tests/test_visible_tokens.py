"""Added tokens that are not special are shown, streamed and saved, and cannot be typed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.program import run
from llama_chat.chat import store
from llama_chat.chat.conversation_file import ConversationFile
from llama_chat.chat.local_session import LocalSession
from llama_chat.chat.records import ModelTag, keep_valid_ids
from llama_chat.cli.app import run as run_here
from llama_chat.generation.events import Finish
from llama_chat.loading.formats import open_tokenizer
from llama_chat.loading.plan import load
from llama_chat.settings.sampling import Sampling
from tests.folders import decoder_of, with_added, write_chain, write_tokenizer_files
from tests.model_files import sentencepiece_model
from tests.vocabularies import added, piece_json

MODEL = sentencepiece_model()
DOCUMENT = piece_json(MODEL)
VOCAB = DOCUMENT["model"]["vocab"]
SIZE = len(VOCAB)
ONE, OTHER = sorted((piece for piece in VOCAB if piece[0] == "▁" and piece[1:].isalpha()), key=len)[
    -2:
]
THINK, END_THINK = SIZE, SIZE + 1
CHAIN = [THINK, VOCAB[ONE], END_THINK, VOCAB[OTHER], 2]
TEXT = f"<think> {ONE[1:]}</think> {OTHER[1:]}"
HIDDEN = f"{ONE[1:]} {OTHER[1:]}"


def thoughts(*, special: bool) -> list[dict[str, Any]]:
    return [added(THINK, "<think>", special=special), added(END_THINK, "</think>", special=special)]


def by_decoder(folder: Path, special: bool) -> None:
    config = {"added_tokens_decoder": decoder_of(thoughts(special=special))}
    write_tokenizer_files(folder, model=MODEL, config=config)


def by_added_tokens(folder: Path, special: bool) -> None:
    names = {"<think>": THINK, "</think>": END_THINK}
    config = {"additional_special_tokens": list(names)} if special else {}
    write_tokenizer_files(folder, model=MODEL, added_tokens=names, config=config)


def by_json(folder: Path, special: bool) -> None:
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    document = with_added(DOCUMENT, *thoughts(special=special))
    write_tokenizer_files(folder, document=document, config=names)


def by_both(folder: Path, special: bool) -> None:
    by_json(folder, special)
    (folder / "tokenizer.model").write_bytes(MODEL)


WAYS: dict[str, Callable[[Path, bool], None]] = {
    "added_tokens_decoder": by_decoder,
    "added_tokens.json": by_added_tokens,
    "tokenizer.json": by_json,
    "both": by_both,
}


def chain(folder: Path, way: str, *, special: bool) -> Path:
    """Write a model that says ``CHAIN``."""
    WAYS[way](folder, special)
    return write_chain(folder, SIZE + 2, CHAIN)


def reply(session: LocalSession) -> tuple[list[str], str]:
    """Return the texts that a reply was streamed as, and what it was recorded as."""
    texts = [event.text for event in session.send("hi")]
    last = session.conversation.head
    assert last is not None
    return [text for text in texts if text], last.text


@pytest.mark.parametrize("gguf", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_what_is_not_special_is_shown(tmp_path: Path, way: str, gguf: bool) -> None:
    for special, expected in ((False, TEXT), (True, HIDDEN)):
        path = chain(tmp_path / str(special), way, special=special)
        if gguf:
            assert run_here(["convert", "-q", str(path), str(tmp_path / f"{special}.gguf")]) == 0
            path = tmp_path / f"{special}.gguf"
        llama = load(path, dtype="float32")
        session = llama.chat(template="llama2", sampling=Sampling(temperature=0))
        streamed, recorded = reply(session)
        assert "".join(streamed) == recorded == expected
        assert [*(session.conversation.head.ids or ())] == CHAIN[:-1]  # type: ignore[union-attr]
        assert len(streamed) == (4 if not special else 2)
        completed = "".join(event.text for event in llama.generate([1, 5], Sampling(temperature=0)))
        assert completed == (TEXT if not special else f" {HIDDEN}")


def test_ask_writes_what_is_not_special(tmp_path: Path) -> None:
    for special, expected in ((False, TEXT), (True, HIDDEN)):
        path = chain(tmp_path / str(special), "tokenizer.json", special=special)
        done = run("ask", "hi", "-m", path, "--template", "llama2", home=tmp_path)
        assert (done.status, done.out, done.err) == (0, f"{expected}\n", "")


def test_llama_2_thinks_as_written(shared_data: Path, tmp_path: Path) -> None:
    model = (shared_data / "llama2" / "tokenizer.model").read_bytes()
    tokens = [added(32000, "<think>", special=False), added(32001, "</think>", special=False)]
    config = {"added_tokens_decoder": decoder_of(tokens)}
    write_tokenizer_files(tmp_path, model=model, config=config)
    path = write_chain(tmp_path, 32002, [32000, 6324, 32001, 727, 2])
    done = run("ask", "hi", "-m", path, "--template", "llama2", home=tmp_path)
    assert (done.status, done.out) == (0, "<think> Hi</think> there\n")


def test_a_saved_reply_keeps_its_ids(tmp_path: Path) -> None:
    session = load(chain(tmp_path, "both", special=False), dtype="float32").chat(
        template="llama2", sampling=Sampling(temperature=0)
    )
    reply(session)
    tokenizer = session.engine.tokenizer
    file = ConversationFile()
    file.save(session.conversation, ModelTag("m", tokenizer.fingerprint), durable=False)
    assert file.path is not None
    loaded = store.read(file.path)
    file.close()
    assert keep_valid_ids(loaded.conversation, loaded.tag, tokenizer)
    assert [message.text for message in loaded.conversation.all] == ["hi", TEXT]
    assert loaded.conversation.all[1].ids == tuple(CHAIN[:-1])


def test_a_saved_reply_gets_no_token_of_a_turn(tmp_path: Path) -> None:
    tokens = [added(THINK, "<think>", special=False), added(END_THINK, "<|x|>", special=False)]
    config = {"added_tokens_decoder": decoder_of(tokens)}
    folder = write_tokenizer_files(tmp_path, model=MODEL, config=config)
    session = load(write_chain(folder, SIZE + 2, CHAIN), dtype="float32").chat(template="llama2")
    for event in session.send("hi"):
        if isinstance(event, Finish):
            break
    tokenizer = session.engine.tokenizer
    tag = ModelTag("m", tokenizer.fingerprint)
    assert session.conversation.all[1].text == TEXT.replace("</think>", "<|x|>")
    assert keep_valid_ids(session.conversation, tag, tokenizer)
    assert session.conversation.all[1].ids is None


@pytest.mark.parametrize("way", WAYS)
def test_nobody_types_a_token_that_is_shown(tmp_path: Path, way: str) -> None:
    for special in (False, True):
        WAYS[way](tmp_path / str(special), special)
        tokenizer, _ = open_tokenizer(tmp_path / str(special))
        text = "a<think>b</think> <think>"
        assert {THINK, END_THINK}.isdisjoint(tokenizer.encode(text))
        assert tokenizer.decode(tokenizer.encode(text)) == text
