"""Pastes that the terminal does not mark, and keys with modifiers in each of their forms."""

import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.terminal import CTRL_C, CTRL_D, ESCAPE, READY, Terminal

COMMAND = (sys.executable, "-m", "tests.play_keys")
LINES = "def f(x):\r\r    if x:\r\t\treturn 1\r"
SENT = r"sent: 'def f(x):\n\n    if x:\n\t\treturn 1\n'"

LEFT, RIGHT, HOME = "\x1b[D", "\x1b[C", "\x1b[H"

LINE_S = 0.2
"""Longer than the pause that ends a burst of keys."""


PLAIN: list[dict[str, str]] = [{}, {"TERM": "dumb"}, {"TERM": "unknown"}]
"""Environments of readline: a common terminal, and those that tell nothing about themselves."""


@pytest.fixture
def keys(tmp_path: Path) -> Iterator[Terminal]:
    """An input that prints what was sent."""
    with Terminal(home=tmp_path, command=COMMAND, size=(80, 40)) as terminal:
        terminal.wait_for("›\n\n*toolbar")
        yield terminal


@pytest.fixture(params=PLAIN, ids=["", "dumb", "unknown"])
def plain(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Terminal]:
    """The same with readline."""
    command = (*COMMAND, "plain")
    with Terminal(home=tmp_path, command=command, size=(80, 40), **request.param) as terminal:
        terminal.wait_for(">")
        yield terminal


def sent(terminal: Terminal) -> list[str]:
    """Return the lines that were sent."""
    return re.findall("(?m)^sent: .*$", terminal.text)


def test_an_unmarked_paste_is_one_message_that_is_not_sent(keys: Terminal) -> None:
    keys.type(LINES)
    keys.watch_for(LINE_S)
    assert sent(keys) == []
    keys.type("\r")
    keys.wait_for("sent: ")
    assert sent(keys) == [SENT]


def test_a_paste_from_a_slow_line_is_one_message(keys: Terminal) -> None:
    for character in LINES:
        keys.type(character)
        time.sleep(0.002)
    keys.watch_for(LINE_S)
    assert sent(keys) == []
    keys.type("\r")
    keys.wait_for("sent: ")
    assert sent(keys) == [SENT]


def test_a_long_unmarked_paste_is_one_message(keys: Terminal) -> None:
    lines = [f"line {number} of the paste" for number in range(200)]
    text = "\r".join(lines)
    for begin in range(0, len(text), 1000):
        keys.type(text[begin : begin + 1000])
        keys.watch_for(0.01)
    keys.wait_for("line 199 of the paste")
    keys.watch_for(LINE_S)
    keys.type("\r")
    keys.wait_for("sent: ")
    keys.watch_for(LINE_S)
    assert re.findall(rb"sent: (.*)\r", keys.raw) == [repr("\n".join(lines)).encode()]


def test_enter_and_tab_act_after_a_pause(keys: Terminal) -> None:
    """As expect and text expanders type them, at the end of a burst."""
    keys.type("wo\t")
    keys.wait_for("› word")
    keys.type(CTRL_C + "hello\r")
    keys.wait_for("sent: 'hello'")
    keys.type("\x1b[200~two\rlines\x1b[201~\r")
    keys.wait_for(r"sent: 'two\\nlines'")


def test_a_terminal_that_marks_pastes_sends_nothing_else_as_one(keys: Terminal) -> None:
    keys.paste("two\rlines")
    keys.type("\ranother\r")
    keys.wait_for("sent: 'another'")
    assert sent(keys) == [r"sent: 'two\nlines'", "sent: 'another'"]


def test_lines_that_wait_when_the_input_opens_were_typed(tmp_path: Path) -> None:
    with Terminal(home=tmp_path, command=(*COMMAND, "late")) as terminal:
        terminal.wait_for("waiting")
        terminal.type("one\rtwo\rthr")
        terminal.wait_for(r"› thr\n\n*toolbar")
        assert sent(terminal) == ["sent: 'one'", "sent: 'two'"]


@pytest.mark.parametrize(
    "newline",
    [
        *(f"\x1b[13;{modifiers}u" for modifiers in (2, 3, 5, 6)),
        *(f"\x1b[27;{modifiers};13~" for modifiers in (2, 3, 5, 6)),
        ESCAPE + "\r",
    ],
)
def test_enter_with_a_modifier_begins_a_line(newline: str, keys: Terminal) -> None:
    keys.type(f"one{newline}two")
    keys.wait_for("› one\n  two")
    keys.type(newline)
    keys.watch_for(LINE_S)
    assert sent(keys) == []
    keys.type("\r")
    keys.wait_for(r"sent: 'one\\ntwo\\n'")


def test_unknown_keys_are_dropped_and_known_ones_work(keys: Terminal) -> None:
    unknown = "\x1b[57441;5u\x1b[97;6u\x1b[97:65;2:1u\x1b[27;6;97~\x1b[200;9z\x1b[?62;4c"
    keys.type(f"a{unknown}b\x1b[32;2uc")
    keys.wait_for(r"› ab c\n")
    keys.type("\x1b[97;5ux\x1b[27;5;101~y\r")  # Ctrl-A, Ctrl-E
    keys.wait_for("sent: 'xab cy'")
    keys.type("z")
    keys.wait_for("› z\n")
    keys.type("\x1b[99;5u")  # Ctrl-C
    keys.wait_for("›\n\n*toolbar")


def test_escape_is_no_part_of_a_key_that_is_typed_after_it(keys: Terminal) -> None:
    keys.type(ESCAPE)
    keys.watch_for(LINE_S)
    keys.type("/undo\r")
    keys.wait_for("sent: '/undo'")


def test_escape_that_is_pressed_while_no_input_is_open_is_dropped(tmp_path: Path) -> None:
    with Terminal(home=tmp_path, command=(*COMMAND, "late")) as terminal:
        terminal.wait_for("waiting")
        terminal.type(f"{ESCAPE}fone{LEFT}{ESCAPE}x\rtwo{ESCAPE}\rlines\rthr{ESCAPE}")
        terminal.wait_for(r"› thr\n\n*toolbar")
        assert sent(terminal) == ["sent: 'fonxe'", r"sent: 'two\nlines'"]
        terminal.watch_for(LINE_S)
        terminal.type("ee\r")
        terminal.wait_for("sent: 'three'")


def test_a_marked_paste_without_its_end_ends_after_a_pause(keys: Terminal) -> None:
    keys.type("\x1b[200~two\rlines")
    keys.wait_for("› two\n  lines\n")
    keys.type("\rmore\rof them\r")  # not marked any more
    keys.wait_for("  of them\n")
    keys.watch_for(LINE_S)
    assert sent(keys) == []
    keys.type("\r")
    keys.wait_for("sent: ")
    assert sent(keys) == [r"sent: 'two\nlines\nmore\nof them\n'"]


def test_ctrl_c_ends_a_marked_paste_without_its_end(keys: Terminal) -> None:
    keys.type("\x1b[200~two\rlines")
    keys.type(CTRL_C + CTRL_C)
    keys.wait_for("KeyboardInterrupt")


def test_plain_a_marked_paste_is_one_message(plain: Terminal) -> None:
    assert b"\x1b[?2004h" in plain.raw
    plain.paste("def f(x):\r\r\treturn 1")
    plain.watch_for(LINE_S)
    assert sent(plain) == []
    plain.type("\r")
    plain.wait_for("sent: ")
    assert sent(plain) == [r"sent: 'def f(x):\n\n\treturn 1'"]


def test_plain_an_unmarked_paste_is_one_message(plain: Terminal) -> None:
    plain.type(LINES)
    plain.wait_for("sent: .*\n>")
    plain.type("more\rand")
    plain.watch_for(LINE_S)
    plain.type(" more\r")
    plain.wait_for("sent: 'm")
    assert sent(plain) == [SENT.replace("1\\n'", "1'"), r"sent: 'more\nand more'"]


def test_plain_keys_with_modifiers(plain: Terminal) -> None:
    plain.type("a\x1b[13;2ub\x1b[27;5;13~c\x1b\rd\x1b[97;6ue\x1b[57441;5uf\x1b[97:65;2ug\r")
    plain.wait_for("sent: ")
    assert sent(plain) == [r"sent: 'a\nb\nc\ndefg'"]


def test_plain_lines_that_wait_when_the_input_opens_were_typed(tmp_path: Path) -> None:
    with Terminal(home=tmp_path, command=(*COMMAND, "plain", "late")) as terminal:
        terminal.wait_for("waiting")
        terminal.type("one\rtwo\rend\r")
        assert terminal.wait_for_end() == 0
        assert sent(terminal) == ["sent: 'one'", "sent: 'two'", "sent: 'end'"]


def test_plain_the_end_of_input_right_after_a_line(plain: Terminal) -> None:
    plain.type("hello\r" + CTRL_D)
    plain.wait_for("sent: 'hello'")
    plain.wait_for("EOFError")


def test_a_shell_in_emacs_gets_no_escape_sequence(tmp_path: Path) -> None:
    command = (*COMMAND, "plain")
    with Terminal(home=tmp_path, command=command, TERM="dumb", INSIDE_EMACS="29.1") as terminal:
        terminal.wait_for(">")
        terminal.type("hello\r")
        terminal.wait_for("sent: 'hello'")
        assert ESCAPE.encode() not in terminal.raw


graphemes = pytest.mark.parametrize(
    "grapheme",
    ["🇫🇷", "👍🏽", "👩‍👩‍👧", "e\u0301", "❤️", "1\ufe0f\u20e3", "한", "x"],
    ids=["flag", "skin", "family", "accent", "variation", "keycap", "hangul", "letter"],
)


@graphemes
def test_backspace_removes_one_grapheme(grapheme: str, keys: Terminal) -> None:
    keys.type(f"a{grapheme}{grapheme}")
    keys.watch_for(LINE_S)
    keys.type("\x7fb\r")
    keys.wait_for("sent: ")
    assert keys.raw.partition(b"sent: ")[2].startswith(repr(f"a{grapheme}b").encode())


@graphemes
@pytest.mark.parametrize("delete", ["\x1b[3~", CTRL_D], ids=["delete", "ctrl-d"])
def test_the_cursor_passes_and_deletes_one_grapheme(
    grapheme: str, delete: str, keys: Terminal
) -> None:
    keys.type(f"a{grapheme}{grapheme}b")
    keys.watch_for(LINE_S)
    keys.type(LEFT * 2 + delete + HOME + RIGHT * 2 + "c\r")
    keys.wait_for("sent: ")
    assert keys.raw.partition(b"sent: ")[2].startswith(repr(f"a{grapheme}cb").encode())


def test_a_paste_made_while_a_reply_streams_is_one_message(
    starter_model: Path, tmp_path: Path
) -> None:
    flags = ("-m", starter_model, "--temperature", "0", "--max-tokens", "60")
    with Terminal(*flags, home=tmp_path) as terminal:
        terminal.wait_for(READY)
        terminal.line("Write a long story about a river.")
        terminal.wait_for(r"── model\n\S.{20}")
        on, off = (terminal.raw.rfind(b"\x1b[?2004" + end) for end in (b"h", b"l"))
        assert on > off  # else the terminal would not mark it
        terminal.paste("one\rtwo\rthree")
        terminal.type(" lines")
        terminal.wait_for(r"cut off after 60 .*\n\n› one\n  two\n  three lines\n")
