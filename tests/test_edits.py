"""An edit changes nothing until it is sent: not what is saved, and not what other commands see."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.terminal import CTRL_C, CTRL_D, READY, Terminal

ENDED = r"cut off after \d+ tokens"
CUT_LINE = "\x15"


def chat(model: Path, home: Path, *more: str) -> Terminal:
    flags = ("-m", str(model), "--max-tokens", "8", "--temperature", "0", *more)
    terminal = Terminal(*flags, home=home)
    terminal.wait_for(READY)
    return terminal


def begin_edit(terminal: Terminal) -> None:
    """Ask two questions, and begin to edit the second."""
    terminal.ask("first", ENDED)
    terminal.ask("second", ENDED)
    terminal.line("/edit")
    terminal.wait_for(r"message 3: Enter sends it anew[^›]*› second")


def cancel_and_leave(terminal: Terminal) -> None:
    terminal.type(CTRL_C)
    terminal.wait_for(r"Ctrl-C leaves it[^›]*›\n")
    terminal.type(CTRL_D)
    terminal.wait_for_end()


def clear_and_leave(terminal: Terminal) -> None:
    terminal.type(CUT_LINE)
    terminal.ask("/clear", "a new conversation")
    terminal.type(CUT_LINE + CTRL_D)
    terminal.wait_for_end()


@pytest.mark.parametrize("leave", [cancel_and_leave, clear_and_leave, Terminal.vanish])
def test_an_edit_that_is_not_sent_leaves_the_saved_conversation(
    leave: Callable[[Terminal], None], gguf_model: Path, tmp_path: Path
) -> None:
    with chat(gguf_model, tmp_path) as terminal:
        begin_edit(terminal)
        leave(terminal)
    with chat(gguf_model, tmp_path, "--continue") as again:
        assert "› second" in again.text
        again.ask("/tree", r"4 model[^\n]*● here")


def test_commands_within_an_edit_see_the_whole_conversation(
    gguf_model: Path, tmp_path: Path
) -> None:
    with chat(gguf_model, tmp_path) as terminal:
        begin_edit(terminal)
        terminal.type(CUT_LINE)
        terminal.ask(f"/export {tmp_path}/chat.json", "written")
        dialog = json.loads((tmp_path / "chat.json").read_text())
        assert [each["content"] for each in dialog][::2] == ["first", "second"]
        terminal.wait_for(r"written: [^›]*› second")  # the edit goes on
        terminal.type(" thoughts\r")
        terminal.wait_for(rf"› second thoughts\n── model\n(.*\n)*{ENDED}")
        terminal.ask("/tree", r"├ 3 you +second\n[\s\S]*└ 5 you +second thoughts\n")


@pytest.mark.parametrize(
    ("command", "drawn"),
    [
        ("/retry", r"3 you +second\n├ 4 model.*\n└ 5 model[^\n]*● here"),
        ("/continue", r"3 you +second\n4 model[^\n]*● here"),
        ("/prompt ~/third.txt", r"3 you +second\n4 model.*\n5 you +third\n6 model[^\n]*● here"),
    ],
)
def test_a_command_that_generates_cancels_an_edit(
    command: str, drawn: str, gguf_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "third.txt").write_text("third")
    with chat(gguf_model, tmp_path) as terminal:
        begin_edit(terminal)
        terminal.type(CUT_LINE)
        terminal.line(command)
        terminal.wait_for(rf"{command}\n[\s\S]*{ENDED}")
        terminal.wait_for(r"\n›\n(?=\n* .*temp)")  # the edited text is not in the input
        terminal.ask("/tree", drawn)


def test_an_edit_that_does_not_fit_stays_open(gguf_model: Path, tmp_path: Path) -> None:
    with chat(gguf_model, tmp_path, "--context", "256") as terminal:
        begin_edit(terminal)
        terminal.paste("x" * 400)
        terminal.type("\r")
        terminal.wait_for("leave no space for a reply")
        terminal.type(CTRL_C)
        terminal.ask("/tree", r"4 model[^\n]*● here")


def test_the_toolbar_counts_an_edit_in_place_of_the_message(
    gguf_model: Path, tmp_path: Path
) -> None:
    with chat(gguf_model, tmp_path) as terminal:
        terminal.ask("first", ENDED)
        terminal.type("second")
        used = count(terminal.wait_for(r"› second\n[^›]*context \d+/"))
        terminal.type("\r")
        terminal.wait_for(rf"› second\n── model\n(.*\n)*{ENDED}[^›]*›\n")
        terminal.line("/edit")
        assert count(terminal.wait_for(r"message 3: [^›]*› second\n[^›]*context \d+/")) == used


def count(text: str) -> int:
    """Return the tokens that the toolbar shows."""
    return int(re.findall(r"context (\d+)/", text)[-1])
