"""Plain mode: for screen readers, and for terminals that only print."""

import re
from pathlib import Path

import pytest

from harness.terminal import CTRL_C, CTRL_D, UP, Terminal
from llama_chat.terminal.commands import parse_command

READY = r"template \w+\n\n?> ?"
MODES: list[tuple[tuple[str, ...], dict[str, str]]] = [
    (("--plain",), {}),
    ((), {"TERM": "dumb"}),
    ((), {"TERM": "unknown"}),
    ((), {"LLAMA_CHAT_PLAIN": "true"}),
]


@pytest.mark.parametrize(("flags", "env"), MODES)
def test_a_conversation_without_any_cursor_movement(
    flags: tuple[str, ...], env: dict[str, str], starter_model: Path, tmp_path: Path
) -> None:
    flags = ("-m", str(starter_model), *flags, "--temperature", "0", "--max-tokens", "30")
    with Terminal(*flags, home=tmp_path, size=(100, 40), **env) as terminal:
        terminal.wait_for(READY)
        terminal.line("What is the capital of France?")
        terminal.wait_for(r"> What is the capital of France\?\nThe capital of France is Paris\.\n")
        terminal.line("/context")
        terminal.wait_for(r"\d+ of 8192 tokens")
        terminal.line("/tempreture 1")
        terminal.wait_for(r"did you mean /temperature\?\n+>\s*\Z")
        # Python's readline handles a Ctrl-C only while it waits, not just before.
        terminal.wait_until_asleep()
        terminal.type(CTRL_C)
        terminal.wait_for(r"Ctrl-C again or Ctrl-D leaves")
        terminal.type(CTRL_D)
        assert terminal.wait_for_end() == 0
    # Readline switches bracketed paste on and off; no other escape sequence is sent.
    assert set(re.findall(rb"\x1b\[?[^a-zA-Z]*.", terminal.raw)) <= {b"\x1b[?2004h", b"\x1b[?2004l"}


def test_a_reply_is_stopped_and_goes_on(starter_model: Path, tmp_path: Path) -> None:
    with Terminal("-m", starter_model, "--plain", home=tmp_path) as terminal:
        terminal.wait_for(READY)
        terminal.line("Write a long story about a river.")
        terminal.wait_for(r"about a river\.\n\S.{40}")
        terminal.type(CTRL_C)
        terminal.wait_for(r"stopped after \d+ tokens; the text is kept; /continue goes on")
        terminal.line("/max-tokens 8")
        terminal.wait_for(r"max-tokens is 8")
        terminal.line("/continue")
        terminal.wait_for(r"cut off after 8 tokens")


def test_a_refused_line_leaves_an_empty_one_and_comes_back_with_up(
    gguf_model: Path, tmp_path: Path
) -> None:
    with Terminal("-m", gguf_model, "--plain", home=tmp_path) as terminal:
        terminal.wait_for(READY)
        terminal.line("/top-k x")
        terminal.wait_for(r"does not fit.*\n>\s*\Z")
        terminal.line("/top-k 3")
        terminal.wait_for(r"> /top-k 3\ntop-k is 3")
        terminal.type(UP + UP)
        terminal.wait_for(r"> /top-k x\s*\Z")


def test_edit_puts_the_text_into_the_line(gguf_model: Path, tmp_path: Path) -> None:
    flags = ("--plain", "--max-tokens", "8", "--temperature", "0")
    with Terminal("-m", gguf_model, *flags, home=tmp_path) as terminal:
        terminal.wait_for(READY)
        terminal.line("first words")
        terminal.wait_for(r"cut off")
        terminal.line("/edit")
        terminal.wait_for(r"message 1: Enter sends it anew[^>]*> first words")
        terminal.line(" changed")
        terminal.wait_for(r"> first words changed\n[^>]*cut off")


def test_tab_completes_commands_values_and_files(gguf_model: Path, tmp_path: Path) -> None:
    for name in ("my notes.txt", "my \x9b31m.txt"):
        (tmp_path / name).write_text("a note")
    with Terminal("-m", gguf_model, "--plain", home=tmp_path) as terminal:
        terminal.wait_for(READY)
        terminal.line("/undo\t")
        terminal.wait_for(r"/undo: there is no")
        terminal.line("/hel\t")
        text = terminal.wait_for(r"> /help\n[\s\S]*// in front")
        assert "Ctrl-G" not in text
        terminal.type("/overflow s\t")
        terminal.wait_for(r"> /overflow stop")
        terminal.line("")
        terminal.wait_for(r"overflow is stop")
        terminal.type(f"/file {tmp_path}/my\t")
        terminal.wait_for(r'> /file "[^"]*/my notes\.txt"')
        terminal.line("")
        terminal.wait_for(r"attached: my notes\.txt")
        terminal.line("a\tb")
        terminal.wait_for(r"> a +b\n")


def test_a_tab_ends_the_name_of_a_command() -> None:
    assert parse_command("/top-k\t5") == ("top-k", "5")
    assert parse_command("/system a\tb") == ("system", "a\tb")


def test_plain_is_turned_on_and_off_in_the_chat(gguf_model: Path, tmp_path: Path) -> None:
    with Terminal("-m", gguf_model, home=tmp_path) as terminal:
        terminal.wait_for(r"template \w+\n›")
        terminal.line("/plain true")
        terminal.wait_for(r"plain is true \(/plain\)\n\n>")
        terminal.line("/top-k 3")
        terminal.wait_for(r"> /top-k 3\ntop-k is 3")
        terminal.line("/plain false")
        terminal.wait_for(r"plain is false \(/plain\)\n\n›")
