"""JSON of every command is readable text without a character that a terminal would obey."""

import contextlib
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.program import run
from harness.terminal import READY, Terminal
from llama_chat.terminal.sanitizer import BIDI_CONTROLS
from llama_chat.terminal.streams import write_json
from tests.model_files import write_gguf

RAW = re.compile(f"[\x00-\x09\x0b-\x1f\x7f-\x9f{BIDI_CONTROLS}\u2028\u2029\ud800-\udfff]")

EVIL = "m\x1b[2J\x7f\x85\x9b\u061c\u200e\u202e\u2066\u2069\u2028\u2029é🦙" + os.fsdecode(b"\xff")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home whose own model has a name of controls."""
    (tmp_path / ".local/share/llama-chat/models").mkdir(parents=True)
    write_gguf(tmp_path / f".local/share/llama-chat/models/{EVIL}.gguf")
    return tmp_path


def strings(value: Any) -> str:
    """Return all keys and texts in ``value``."""
    if isinstance(value, dict):
        return strings([*value.keys(), *value.values()])
    return "".join(map(strings, value)) if isinstance(value, list) else str(value)


COMMANDS = {
    "ask": ("ask", "hi", "--json", "--max-tokens", "1"),
    "piped": ("--json", "--max-tokens", "1"),
    "complete": ("complete", "-", "--json", "--echo", "--max-tokens", "1"),
    "bench": ("bench", "--json", "--rounds", "1", "--prompt-tokens", "2", "--new-tokens", "2"),
    "inspect": ("inspect", "--json"),
    "check": ("check", "--json"),
    "models": ("models", "--json"),
    "config": ("config", "show", "--json", "--system", EVIL),
    "sessions": ("sessions", "--json"),
    "one session": ("sessions", "show", "evil", "--json"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_controls_are_escaped_and_other_text_is_readable(name: str, home: Path) -> None:
    conversation = home / ".local/share/llama-chat/conversations/evil.jsonl"
    conversation.parent.mkdir()
    text = EVIL.rstrip("\udcff")
    records = [
        {"format": "llama-chat conversation", "version": 1},
        {"number": 1, "parent": 0, "role": "user", "text": text},
        {"head": 1, "system": "", "examples": [], "model": text, "vocabulary": ""},
    ]
    conversation.write_text("".join(json.dumps(record) + "\n" for record in records))
    done = run(*COMMANDS[name], home=home, stdin=b"a\xc2\x9bz", LLAMA_CHAT_MODEL=EVIL)
    assert done.status == 0, done.err
    assert done.out.count("\n") == 1
    assert not RAW.search(done.out)
    assert "é🦙" in done.out
    assert text in strings(json.loads(done.out))


def test_tokens_are_escaped_too(home: Path) -> None:
    text = EVIL.rstrip("\udcff")
    done = run("tokenize", "--json", home=home, stdin=text.encode(), LLAMA_CHAT_MODEL=EVIL)
    assert not RAW.search(done.out)
    answer = json.loads(done.out)
    assert len(answer["ids"]) == len(answer["pieces"])


def test_an_exported_conversation_is_the_same_as_a_dialog(gguf_model: Path, tmp_path: Path) -> None:
    flags = ("-m", gguf_model, "--max-tokens", "1", "--system", EVIL.rstrip("\udcff"))
    with Terminal(*flags, home=tmp_path) as terminal:
        terminal.wait_for(READY)
        terminal.ask(f"/export {tmp_path}/chat.json", "written")
    text = (tmp_path / "chat.json").read_text()
    assert not RAW.search(text)
    assert json.loads(text) == [{"role": "system", "content": EVIL.rstrip("\udcff")}]


@given(st.text(st.characters()), st.lists(st.text(st.characters(categories=["Cc", "Cf", "Zl"]))))
def test_json_parses_to_the_same_value(text: str, more: list[str]) -> None:
    value = {text: more}
    with contextlib.redirect_stdout(io.StringIO()) as out:
        write_json(value)
    assert not RAW.search(out.getvalue())
    assert json.loads(out.getvalue()) == value
