"""A window that is resized leaves one prompt, and the draft in it, where lines are reflowed."""

import os
import pty
import re
import shutil
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from prompt_toolkit import PromptSession
from prompt_toolkit.application import Application
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output.vt100 import Vt100_Output

from harness.tmux import SHELL, Tmux
from llama_chat.terminal.resizing import Resizes

needs_tmux = pytest.mark.skipif(not shutil.which("tmux"), reason="tmux is not installed")

DRAFT = " ".join(f"word{i}" for i in range(12))


@pytest.fixture
def window(gguf_model: Path, tmp_path: Path) -> Iterator[Tmux]:
    """A chat in a window of 100 columns."""
    tmux = Tmux(tmp_path)
    try:
        tmux.wait_for(re.escape(SHELL))
        tmux.type(f"clear; {sys.executable} -m llama_chat -m {gguf_model}")
        tmux.press("Enter")
        tmux.wait_for(r"template \w+\s+›")
        yield tmux
    finally:
        tmux.kill()


@needs_tmux
@pytest.mark.parametrize("sizes", [[60], [60, 80, 50], [150, 70]], ids=str)
def test_a_draft_stays_one_draft(sizes: list[int], window: Tmux) -> None:
    window.type(DRAFT)
    window.wait_for(r"word11")
    for number, columns in enumerate(sizes):
        window.resize(columns, 30)
        window.type(f" <{number}>")  # drawn after the resize
        window.wait_for(rf"<\s*{number}\s*>")
    text = window.ask("capture-pane", "-p", "-J", "-S", "-")
    assert len(re.findall(r"(?m)^›", text)) == 1
    assert len(re.findall(r"template \w+", text)) == 1
    window.press("Enter")
    text = window.wait_for(r"── model", shown=False)
    assert len(re.findall(r"(?m)^› word0", text)) == 1
    assert text.count("context 512 ") == 1


@needs_tmux
def test_a_window_that_is_dragged_while_tmux_is_late_has_one_draft(window: Tmux) -> None:
    """It breaks the lines at once, and tells the new size up to a quarter of a second later."""
    window.type("word " * 22 + "end")
    window.wait_for("end")
    for columns, lines in ((81, 15), (81, 44), (96, 39), (168, 32), (81, 45)):
        window.resize(columns, lines)
    window.press("Enter")
    text = window.wait_for(r"── model", shown=False)
    assert len(re.findall(r"(?m)^› word ", text)) == 1


@needs_tmux
@pytest.mark.parametrize("n_erased", [0, 3])
def test_a_draft_that_fills_its_rows_stays_one_draft(n_erased: int, window: Tmux) -> None:
    """tmux keeps erased cells as blanks, which move the cursor to the next row."""
    window.type("A" * 57 + "Z" + "B" * n_erased)  # two rows of 30 columns, with the prompt
    window.wait_for("Z" + "B" * n_erased)
    for _ in range(n_erased):
        window.press("BSpace")
    window.wait_for(r"Z *\n")
    for number, columns in enumerate((30, 60, 100)):
        window.resize(columns, 30)
        window.type(f"<{number}>")
        window.wait_for(rf"<\s*{number}\s*>")
    text = window.ask("capture-pane", "-p", "-J", "-S", "-")
    assert len(re.findall(r"(?m)^›", text)) == 1
    assert len(re.findall(r"template \w+", text)) == 1


@needs_tmux
@pytest.mark.parametrize(
    ("sizes", "n"), [([27], 60), ([79], 420), ([41, 80], 120), ([61, 41, 100], 120)], ids=str
)
def test_a_draft_of_wide_characters_stays_one_draft(sizes: list[int], n: int, window: Tmux) -> None:
    """One column stays free in each row where they are drawn, or broken."""
    window.resize(80, 30)
    window.type("/settings")
    window.press("Enter")
    above = window.wait_for(r"template-here.*\s+›").rpartition("›")[0].split()
    window.type("日本語の" * (n // 4))
    window.wait_for(r"の *\n.*context")
    for number, columns in enumerate(sizes):
        window.resize(columns, 30)
        window.type(f"<{number}>")  # drawn after the resize
        window.wait_for(rf"<\s*{number}\s*>")
    text = window.text
    assert len(re.findall(r"(?m)^› 日", text)) == 1
    assert above == text.partition("› 日")[0].split()[-len(above) :]


@needs_tmux
def test_a_draft_is_erased_for_a_stop_right_after_a_resize(window: Tmux) -> None:
    window.type(DRAFT)
    window.wait_for(r"word11")
    window.resize(60, 30)
    window.press("C-z")
    text = window.wait_for(rf"Stopped[\s\S]*{re.escape(SHELL)}")
    assert not re.findall(r"(?m)^›", text)
    assert "word0" not in text
    window.type("fg")
    window.press("Enter")
    text = window.wait_for(rf"{re.escape(SHELL)} fg[\s\S]*word11")
    assert len(re.findall(r"(?m)^› word0", text)) == 1


@needs_tmux
def test_a_prompt_in_the_first_row_is_not_copied(window: Tmux) -> None:
    window.press("C-l")
    window.wait_for(r"\A›")
    for number in range(5):
        window.type(f"<{number}>")
        window.wait_for(rf"<{number}>")
        window.press("C-c")
        window.resize(100 + number, 30)
        window.wait_for(r"\A› *\n")
    assert len(re.findall(r"(?m)^›", window.text)) == 1


def everything_from(leader: int) -> bytes:
    """Read what was written to a pseudo-terminal that nobody holds open any more."""
    data = b""
    with os.fdopen(leader, "rb", buffering=0) as terminal, suppress(OSError):
        while more := terminal.read(1 << 16):
            data += more
    return data


@contextmanager
def reflowed_session(
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[tuple[int, PipeInput, PromptSession[str]]]:
    """Make an input of 100 columns: the leader of its pseudo-terminal, its keys, its session."""
    monkeypatch.setenv("TMUX", "a terminal that breaks long lines")
    leader, follower = pty.openpty()
    termios.tcsetwinsize(leader, (30, 100))
    with os.fdopen(follower, "w") as terminal, create_pipe_input() as keys:
        output = Vt100_Output.from_pty(terminal, term="xterm")
        yield leader, keys, PromptSession("› ", input=keys, output=output)


@pytest.mark.parametrize("moment", ["before_render", "after_render"])
def test_a_resize_within_a_drawing_is_seen_at_the_next(
    moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with reflowed_session(monkeypatch) as (leader, keys, session):

        def make_narrower(app: Application[Any]) -> None:
            if app.current_buffer.text == DRAFT and termios.tcgetwinsize(leader)[1] == 100:
                termios.tcsetwinsize(leader, (30, 60))
                keys.send_text("!\r")

        event = getattr(session.app, moment)
        event += make_narrower
        Resizes(session.app)
        keys.send_text(DRAFT)
        assert session.prompt() == DRAFT + "!"
    drawn = everything_from(leader).decode()
    # The draft is in two rows by then: the cursor goes up to the first before anything is erased.
    assert re.search(r"\x1b\[A\x1b\[\d+D\x1b\[K", drawn[drawn.index("word11") :])


def test_a_resize_before_a_drawing_for_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The drawing would erase rows above the input, which is in its first place again."""
    with reflowed_session(monkeypatch) as (leader, keys, session):

        def make_narrower(app: Application[Any]) -> None:
            if app.current_buffer.text == DRAFT and termios.tcgetwinsize(leader)[1] == 100:
                termios.tcsetwinsize(leader, (30, 60))
                app._on_resize()

        def make_wider(app: Application[Any]) -> None:
            if termios.tcgetwinsize(leader)[1] == 60:
                termios.tcsetwinsize(leader, (30, 100))
                keys.send_text("!\r")

        session.app.after_render += make_narrower
        session.app.before_render += make_wider
        Resizes(session.app)
        keys.send_text(DRAFT)
        assert session.prompt() == DRAFT + "!"
    drawn = everything_from(leader).decode()
    assert "\x1b[A" not in drawn[drawn.index("word11") :]


def test_a_window_that_is_closed_has_not_been_resized() -> None:
    """The end would wait until a resize to the 80 columns that prompt-toolkit assumes were over."""
    leader, follower = pty.openpty()
    termios.tcsetwinsize(leader, (30, 100))
    with create_pipe_input() as keys, open(follower, "w", closefd=False) as terminal:
        session: PromptSession[str] = PromptSession(
            "› ", input=keys, output=Vt100_Output.from_pty(terminal, term="xterm")
        )
        session.app.after_render += lambda app: keys.send_text("\r")
        Resizes(session.app)
        session.prompt()
        os.close(leader)
        assert session.app.output.get_size() == (30, 100)
    os.close(follower)
