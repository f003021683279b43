"""A text far longer than the context is refused without encoding it, in little memory."""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from harness.program import COMMAND, Program, assert_clean_error, run
from harness.terminal import READY, Terminal
from llama_chat.chat.conversation import Attachment, Conversation, Example, Message
from llama_chat.errors import PromptTooLongError
from llama_chat.llama import Llama
from llama_chat.loading.plan import load, plan
from llama_chat.tokenizers import base
from llama_chat.tokenizers.base import LONG_TEXT, AtLeast
from tests.conftest import ROOT
from tests.execute import EXECUTE
from tests.sessions import finish_of, new_session

TEN_MB = 10_000_000
BUDGET = 300e6

MEASURED = """
import sys
from llama_chat.cli.app import run
from llama_chat.generation.measuring import peak_rss
before = peak_rss()
status = run(sys.argv[2:])
print(peak_rss() - before, file=sys.stderr)
sys.exit(status)
"""

TEXTS = {
    "letters": b"x" * TEN_MB,
    "words": b"the quick brown fox " * (TEN_MB // 20),
    "spaces": b" " * TEN_MB + b"a",
    "newlines": b"a" + b"\n" * TEN_MB + b"a",
    "emoji": "🦙".encode() * (TEN_MB // 4),
    "marks of SentencePiece": "▁".encode() * (TEN_MB // 3),
}
WAYS = {
    "ask": ("ask",),
    "ask about it": ("ask", "What is this?"),
    "piped": (),
    "complete": ("complete", "-"),
    "complete with a template": ("complete", "-", "--chat"),
    "complete a file": ("complete", "{file}"),
    "as a system message": ("ask", "hi", "--config", "{settings}"),
}


def refuse(model: Path, way: str, text: bytes, home: Path) -> str:
    """Check that a text is refused in one line within the budget, and return the line."""
    file, settings = home / "text.txt", home / "settings.toml"
    if "{file}" in WAYS[way]:
        file.write_bytes(text)
    if "{settings}" in WAYS[way]:
        settings.write_text(f"system = {json.dumps(text[: 500 * 2**10].decode())}")
    arguments = [word.format(file=file, settings=settings) for word in WAYS[way]]
    flags = ["-m", str(model), "-q", "--template", "plain", *arguments]
    piped = not {"{file}", "{settings}"} & set(WAYS[way])
    with Program(MEASURED, *flags, home=home, command=EXECUTE) as program:
        out, err = program.communicate(text if piped else b"")
        status = program.wait(0)
    *lines, peak = err.decode().splitlines()
    lines = [line for line in lines if "warning: prompt" not in line]
    assert (status, out, len(lines)) == (4, b"", 1), lines
    assert lines[0].startswith("llama-chat: error: ")
    assert "at least" in lines[0]
    assert int(peak) < BUDGET
    return lines[0]


@pytest.mark.parametrize("text", TEXTS)
def test_any_ten_megabytes_are_refused_within_the_budget(
    text: str, meta_model: Path, tmp_path: Path
) -> None:
    refuse(meta_model, "ask about it", TEXTS[text], tmp_path)


@pytest.mark.parametrize("way", WAYS)
def test_they_are_refused_wherever_a_text_comes_in(
    way: str, gguf_model: Path, tmp_path: Path
) -> None:
    line = refuse(gguf_model, way, TEXTS["words"], tmp_path)
    assert "context of 512" in line


def test_they_are_refused_with_the_vocabulary_of_the_hub(
    huggingface_model: Path, tmp_path: Path
) -> None:
    refuse(huggingface_model, "complete", TEXTS["words"], tmp_path)


def test_a_hundred_megabytes_are_refused_before_a_model_is_looked_for(tmp_path: Path) -> None:
    data = b"the quick brown fox " * 5_000_000
    for arguments in (("complete", "-"), ("ask", "Why?"), ()):
        began = time.monotonic()
        done = run(*arguments, "-m", "no-such-model", home=tmp_path, stdin=data)
        assert time.monotonic() - began < 2
        assert_clean_error(done, 4, "stdin: larger than 64 MiB, some 16,777,216 tokens, which fit")
    zeros = run("complete", "-", home=tmp_path, stdin=bytes(70 * 2**20))
    assert_clean_error(zeros, 2, "stdin: it is binary")


def test_a_plan_refuses_a_text_before_weights_are_read(gguf_model: Path) -> None:
    planned = replace(plan(gguf_model), bytes_free=0)
    planned.check_length("short")
    with pytest.raises(PromptTooLongError, match=r"at least \d+ tokens do not fit .* of 512"):
        planned.check_length("long " * LONG_TEXT)


@pytest.fixture
def big(tmp_path: Path) -> Path:
    path = tmp_path / "big.txt"
    path.write_bytes(TEXTS["words"])
    return path


def peak_of(terminal: Terminal) -> int:
    """Return the peak memory of the program in a terminal, in bytes."""
    status = Path(f"/proc/{terminal.child.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def test_a_chat_refuses_attachments_and_pastes_and_goes_on(babble: Terminal, big: Path) -> None:
    babble.ask("hello", r"cut off after \d+ tokens")
    before = peak_of(babble)
    babble.ask(f"/file {big}", r"attached: big\.txt, 1 line")
    babble.wait_for(r"context at least \d{7}/512 with 1 file .*does not fit")
    babble.refuse("What is it?", r"conversation: at least \d{7} tokens leave no space")
    babble.ask("/file off", "no attachments")
    babble.paste("the cat " * (LONG_TEXT // 8) + "the end")
    babble.type("\r")
    babble.wait_for(r"conversation: at least \d{5,} tokens leave no space")
    assert peak_of(babble) - before < BUDGET
    babble.type("\x03")
    babble.ask("hello again", r"cut off after \d+ tokens")


def test_a_document_piped_to_the_chat_is_refused_and_the_chat_goes_on(
    gguf_model: Path, big: Path, tmp_path: Path
) -> None:
    command = ["sh", "-c", f'"$@" < {big}', "sh", *COMMAND]
    flags = ("chat", "-m", gguf_model, "--temperature", "0", "--max-tokens", "8")
    with Terminal(*flags, home=tmp_path, command=command, PYTHONPATH=str(ROOT)) as chat:
        chat.wait_for(r"attached: document, 1 line[\s\S]*" + READY)
        chat.refuse("What is it?", r"conversation: at least \d{7} tokens leave no space")
        chat.ask("/file off", "no attachments")
        chat.ask("hello", r"cut off after \d+ tokens")


@pytest.fixture
def every_text_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "LONG_TEXT", 0)


@pytest.mark.usefixtures("every_text_is_long")
def test_an_estimate_drops_old_turns_and_refuses_as_the_count_does() -> None:
    told: list[str] = []
    session = new_session(context=128, notify=told.append)
    finish_of(session.send("short"))
    session.conversation.add(Message("user", "x" * 500))
    session.conversation.add(Message("assistant", "fine", None))
    finish_of(session.send("next"))
    assert any("dropped" in line or "no longer shown" in line for line in told)
    assert "(at least " in told[-1]
    with pytest.raises(PromptTooLongError, match=r"at least 500 tokens leave no space"):
        finish_of(session.send("x" * 500))
    assert session.conversation.head is not None


def test_estimates_count_for_examples_attachments_and_the_system_message() -> None:
    long = "x" * (LONG_TEXT + 1)
    for session, sent in (
        (new_session(system=long), "hi"),
        (new_session(examples=[Example("a", long)]), "hi"),
        (new_session(), long),
    ):
        assert isinstance(session.count(sent), AtLeast)
        assert session.context_use(sent).n_dropped is None
        with pytest.raises(PromptTooLongError, match="at least 262145 tokens"):
            finish_of(session.send(sent))
        assert session.conversation.all == []
    session = new_session()
    with pytest.raises(PromptTooLongError, match="at least 262145 tokens"):
        finish_of(session.send("hi", attachments=[Attachment(long)]))
    assert session.next_prefix([Attachment(long)]) == session.next_prefix()
    session.conversation = Conversation()
    session.conversation.add(Message("user", long))
    session.conversation.add(Message("assistant", "fine"))
    assert session.next_prefix() == []
    session.prefill_next()
    with pytest.raises(PromptTooLongError, match="at least"):
        session.context_rows()
    finish_of(session.send("hi"))  # drops the long turn


@pytest.fixture
def small(gguf_model: Path) -> Llama:
    return load(gguf_model, context=300)


@pytest.mark.usefixtures("every_text_is_long")
def test_what_fits_to_the_last_token_is_never_refused(small: Llama) -> None:
    for word in (" the", "x", "\u20ac", " a", "in"):
        text = word * 300
        while len(ids := small.tokenizer.encode(text)) > 300:
            text = text[:-1]
        assert small.prompt_ids(text) == ids
        least = small.tokenizer.min_tokens(text * 3)
        assert least <= len(small.tokenizer.encode(text * 3))
        if least > 300:
            with pytest.raises(PromptTooLongError, match=f"prompt: at least {least} tokens do not"):
                small.prompt_ids(text * 3)


def test_a_byte_order_mark_is_no_part_of_a_text_for_any_command(
    gguf_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "marked.txt").write_bytes(b"\xef\xbb\xbfthe cat\n")
    flags = ("tokenize", "-m", gguf_model, "--json")
    plain = run(*flags, home=tmp_path, stdin=b"the cat\n").out
    for stdin, name in ((b"\xef\xbb\xbfthe cat\n", "-"), (b"", str(tmp_path / "marked.txt"))):
        assert run(*flags, name, home=tmp_path, stdin=stdin).out == plain
    assert "byte-order mark" in run("tokenize", "--help", home=tmp_path).out
