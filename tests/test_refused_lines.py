"""A refused line stays where it can be corrected, and typing replaces it."""

import re
import time
from pathlib import Path

import pytest

from harness.terminal import CTRL_C, READY, UP, Terminal, row

LEFT, END, DELETE, BACKSPACE = "\x1b[D", "\x1b[F", "\x1b[3~", "\x7f"
CTRL_A, CTRL_E, CTRL_U, CTRL_W = "\x01\x05\x15\x17"
WRONG = "/top-k x"
EMPTY = r"›\n(?=\n* .*temp)"


def refuse(terminal: Terminal, line: str, why: str) -> None:
    """Send a line that is refused, and wait until it is in the input again."""
    terminal.ask(line, why)
    terminal.wait_for(rf"{why}[\s\S]*› {re.escape(line)}\n(?=\n* .*temp)")


def selected(terminal: Terminal) -> str:
    """Return what is shown in reverse in the input."""
    rows = [terminal.screen.buffer[y] for y in range(terminal.screen.lines)]
    *_, line = (cells for cells in rows if row(cells).startswith("›"))
    return "".join(cell.data for cell in line.values() if cell.reverse)


def test_typing_and_pasting_replace_a_refused_line(babble: Terminal) -> None:
    refuse(babble, "/tempreture 0.5", "did you mean /temperature")
    assert selected(babble) == "/tempreture 0.5"
    babble.ask("/top-k 3", "top-k is 3")
    refuse(babble, WRONG, "does not fit")
    babble.paste("/top-k 4\r")
    babble.wait_for(r"› /top-k 4\n\s*\n")
    babble.type(BACKSPACE + "\r")
    babble.wait_for("top-k is 4")
    refuse(babble, "/file /nowhere", "no such file")
    for key in (BACKSPACE, DELETE, CTRL_C, CTRL_U, CTRL_W):
        babble.type(key)
        babble.wait_for(EMPTY)
        refuse(babble, WRONG, "does not fit")
    babble.type("\r")  # once more
    babble.wait_for(rf"(› {WRONG}\n.*does not fit.*\s*){{2}}› {WRONG}\n")
    assert selected(babble) == WRONG
    assert babble.text.count(WRONG) == 7
    assert "top-k x4" not in babble.text


def test_control_c_clears_a_refused_line_at_once(babble: Terminal) -> None:
    """Without waiting a second for a longer binding, as that of a key that could follow."""
    seconds = []
    for _ in range(3):
        refuse(babble, WRONG, "does not fit")
        began = time.monotonic()
        babble.type(CTRL_C)
        babble.wait_for(EMPTY)
        seconds.append(time.monotonic() - began)
    assert min(seconds) < 1


@pytest.mark.parametrize("key", [LEFT, END, CTRL_A, CTRL_E, "\n", "\t"])
def test_keys_that_move_keep_a_refused_line(key: str, babble: Terminal) -> None:
    refuse(babble, WRONG, "does not fit")
    babble.type(key)
    babble.wait_until(lambda: selected(babble) == "")
    babble.type("7")
    wanted = {LEFT: "/top-k 7x", CTRL_A: "7/top-k x", "\n": "/top-k x\n  7"}.get(key, WRONG + "7")
    babble.wait_for(rf"› {wanted}\n(?=\n* .*temp)")


def test_what_was_selected_comes_back_once(babble: Terminal) -> None:
    babble.ask("/top-k 3", "top-k is 3")
    refuse(babble, WRONG, "does not fit")
    babble.type(CTRL_C)
    babble.wait_for(EMPTY)
    babble.type(UP)
    babble.wait_for(rf"› {WRONG}\n(?=\n* .*temp)")
    babble.type(UP)
    babble.wait_for(r"› /top-k 3\n(?=\n* .*temp)")


def test_a_line_that_is_right_is_not_kept_for_what_is_not_there_yet(babble: Terminal) -> None:
    commands = ("/versions", "/retry", "/undo", "/edit", "/continue", "/branch", "/tree")
    for command in (*commands, "/stats", "/tokens", "/why", "/copy", "/save x", "/history"):
        babble.ask(command, r"(no message|no reply) yet")
        babble.wait_for(rf"yet: type a message first\n{EMPTY}")
    babble.ask("/branch -", "there is no message yet")
    babble.type(UP)
    babble.wait_for(r"› /branch -\n(?=\n* .*temp)")


def test_with_keys_of_vi_a_refused_line_is_kept_as_it_is(gguf_model: Path, tmp_path: Path) -> None:
    with Terminal("-m", gguf_model, "--editing-mode", "vi", home=tmp_path) as terminal:
        terminal.wait_for(READY)
        refuse(terminal, WRONG, "does not fit")
        terminal.type("\x7f5\r")
        terminal.wait_for("top-k is 5")
