"""Drafts that were not sent are kept, and the program always ends."""

import re
import shlex
import signal
import sys
import time
from pathlib import Path

import pytest

from harness.terminal import CTRL_C, CTRL_G, READY, UP, Terminal

PLAIN_READY = r"template \w+\n\n?>"

PAUSE_S = 1.1
"""Time after which a second signal is not one of those that a closing window sends at once."""


def stored(home: Path) -> str:
    """Return the text of the history on disk."""
    return (home / ".local/state/llama-chat/history").read_text()


def editor_of(home: Path, *lines: str) -> str:
    """Write an editor, and return its path."""
    editor = home / "editor"
    editor.write_text("\n".join(["#!/bin/sh", *lines]) + "\n")
    editor.chmod(0o755)
    return str(editor)


@pytest.mark.parametrize("flags", [(), ("--plain",)])
def test_ctrl_c_keeps_a_draft_for_up_in_this_session(
    flags: tuple[str, ...], gguf_model: Path, tmp_path: Path
) -> None:
    with Terminal("-m", gguf_model, *flags, home=tmp_path) as terminal:
        prompt = ">" if flags else "›"
        terminal.wait_for(PLAIN_READY if flags else READY)
        terminal.type("/top-k 77")
        terminal.wait_for(f"{prompt} /top-k 77")
        terminal.type(CTRL_C)
        terminal.wait_for(rf"leaves\n\n?{prompt} *(\n|$)" if flags else r"›\n")
        assert "77" not in stored(tmp_path)
        terminal.type(UP)
        terminal.wait_for(rf"{prompt} /top-k 77[^›>]*$")
        terminal.type("\r")
        terminal.wait_for("top-k is 77")
        assert "77" in stored(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("flags", [(), ("--plain",)])
def test_a_signal_at_the_prompt_keeps_the_draft_for_the_next_chat(
    number: int, flags: tuple[str, ...], gguf_model: Path, tmp_path: Path
) -> None:
    with Terminal("-m", gguf_model, *flags, home=tmp_path) as terminal:
        terminal.wait_for(PLAIN_READY if flags else READY)
        terminal.type("half a thought")
        terminal.wait_for("half a thought")
        terminal.child.kill(number)
        assert terminal.wait_for_end() == 128 + number
    with Terminal("-m", gguf_model, home=tmp_path) as terminal:
        terminal.wait_for(READY)
        terminal.type(UP)
        terminal.wait_for("› half a thought")


@pytest.mark.parametrize(
    ("lines", "kept"),
    [
        (["echo editing", "exec sleep 100"], "draft"),
        (['printf "written\\nlines\\n" > "$1"', "echo editing", "exec sleep 100"], "written"),
        (["trap '' TERM HUP", "echo editing", "while :; do sleep 0.1; done"], "draft"),
    ],
)
@pytest.mark.parametrize("how", ["hangup", "SIGTERM", "closed window"])
def test_with_an_editor_open_the_chat_ends_and_the_text_is_kept(
    how: str, lines: list[str], kept: str, gguf_model: Path, tmp_path: Path
) -> None:
    editor = editor_of(tmp_path, *lines)
    with Terminal("-m", gguf_model, home=tmp_path, VISUAL=editor) as terminal:
        terminal.take_until(b"\x1b[?2004h")  # the model loads
        terminal.type("draft" + CTRL_G)
        terminal.wait_for("editing")
        if how == "closed window":
            terminal.vanish()
        else:
            terminal.child.kill(signal.SIGHUP if how == "hangup" else signal.SIGTERM)
            terminal.child.wait(5)
    assert terminal.child.returncode == (143 if how == "SIGTERM" else 129)
    assert f"\n+{kept}\n" in stored(tmp_path)


def test_without_saving_no_draft_is_stored(gguf_model: Path, tmp_path: Path) -> None:
    with Terminal("-m", gguf_model, "--no-save", home=tmp_path) as terminal:
        terminal.wait_for(READY)
        terminal.type("a secret")
        terminal.wait_for("a secret")
        terminal.child.kill(signal.SIGTERM)
        assert terminal.wait_for_end() == 143
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_does_not_wait_for_a_load(number: int, gguf_model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.play_stuck", "load"]
    with Terminal("-m", gguf_model, home=tmp_path, command=command) as terminal:
        terminal.wait_for("loading …")
        terminal.child.kill(number)
        terminal.child.wait(5)
        assert terminal.wait_for_end() == 128 + number
        assert b"\x1b[?2004l" in terminal.raw


def test_a_second_signal_ends_a_chat_that_is_stuck(gguf_model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.play_stuck", "message"]
    with Terminal("-m", gguf_model, home=tmp_path, command=command) as terminal:
        terminal.wait_for(READY)
        terminal.line("hello")
        terminal.wait_for("stuck")
        terminal.child.kill(signal.SIGTERM)
        time.sleep(PAUSE_S)
        assert terminal.child.poll() is None
        terminal.child.kill(signal.SIGTERM)
        assert terminal.child.wait(2) == 143


@pytest.mark.parametrize(
    ("end", "why"),
    [("exit 3", "it ended with status 3"), ("kill -9 $$", "signal 9 ended it")],
)
def test_what_was_written_in_an_editor_that_fails_is_kept(
    end: str, why: str, gguf_model: Path, tmp_path: Path
) -> None:
    editor = editor_of(tmp_path, 'echo "a long letter" > "$1"', end)
    home = {"VISUAL": shlex.quote(editor), "TMPDIR": str(tmp_path)}
    with Terminal("-m", gguf_model, home=tmp_path, size=(300, 40), **home) as terminal:
        terminal.wait_for(READY)
        terminal.type("draft" + CTRL_G)
        terminal.wait_for(rf"warning: .*{why}: what you wrote is kept in \S+\n› draft")
        kept = re.search(r"kept in (\S+)\n", terminal.text)
    assert kept is not None
    assert Path(kept[1]).read_text() == "a long letter\n"
