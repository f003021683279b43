"""No control sequence of a model reaches the terminal, however it is split."""

import json
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.program import environment
from harness.terminal import Terminal
from llama_chat.terminal.sanitizer import BIDI_CONTROLS, escaped, sanitize, sanitize_data
from llama_chat.terminal.streams import AnswerWriter

ATTACKS = [
    "\x1b]52;c;ZXZpbA==\x07",  # writes to the clipboard
    "\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\",
    "\x1b]0;title\x07",
    "\x1b[2J\x1b[H",
    "\x9b31m",  # C1 control sequence introducer
    "\x9d52;c;x\x9c",
    "\u202egpj.exe",
    "over\rwritten",
    "back\x08space",
]


@given(st.one_of(st.sampled_from(ATTACKS), st.text()))
def test_only_newline_and_tab_remain_of_the_controls(text: str) -> None:
    harmless = sanitize(text)
    assert len(harmless) == len(text)
    for character in harmless:
        assert character in "\n\t" or not (
            ord(character) < 0x20 or 0x7F <= ord(character) < 0xA0 or character in BIDI_CONTROLS
        )
    harmless.encode()  # no lone surrogate either


@given(st.sampled_from(ATTACKS), st.integers(0, 40))
def test_a_split_changes_nothing(attack: str, at: int) -> None:
    assert sanitize(attack[:at]) + sanitize(attack[at:]) == sanitize(attack)


MARKS = "\u061c\u200e\u200f"
"""Characters of Unicode that only have a direction."""

REORDERING = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
"""Classes of characters that reorder the text around them."""


def replacement(character: str) -> str:
    """Return what a terminal gets for a character, by the tables of Unicode."""
    code = ord(character)
    if unicodedata.category(character) == "Cc" and character not in "\n\t":
        return "\u2421" if code == 0x7F else chr(0x2400 + code) if code < 0x20 else "\ufffd"
    is_lone = unicodedata.category(character) == "Cs"
    is_reordering = unicodedata.bidirectional(character) in REORDERING or character in MARKS
    return "\ufffd" if is_lone or is_reordering else character


def test_every_character_is_itself_or_the_visible_one_for_it() -> None:
    characters = list(map(chr, range(0x10000)))
    harmless = list(map(replacement, characters))
    pairs = list(zip(characters, harmless, strict=True))
    assert list(sanitize("".join(characters))) == harmless
    assert list(sanitize_data("".join(characters))) == [
        character if character in MARKS else shown for character, shown in pairs
    ]
    is_raw = [c >= " " and (c != shown or c in "\u2028\u2029") for c, shown in pairs]
    assert escaped("".join(characters)) == "".join(
        f"\\u{ord(character):04x}" if raw else character
        for character, raw in zip(characters, is_raw, strict=True)
    )
    beyond = "".join(map(chr, range(0x10000, sys.maxunicode + 1)))
    assert sanitize(beyond) == sanitize_data(beyond) == escaped(beyond) == beyond


def test_ordinary_text_stays_as_it_is() -> None:
    text = "naïve 日本語 🇫🇷 عربي שלום\n\tcode"
    assert sanitize(text) == text


@given(st.one_of(st.sampled_from(ATTACKS), st.text()))
def test_json_for_a_terminal_says_the_same(text: str) -> None:
    harmless = escaped(json.dumps({text: [text]}, ensure_ascii=False))
    assert sanitize(harmless) == harmless
    assert json.loads(harmless) == {text: [text]}


def test_on_a_terminal_an_answer_begins_without_blanks(tmp_path: Path) -> None:
    code = (
        "from llama_chat.terminal.streams import AnswerWriter\n"
        "writer = AnswerWriter()\n"
        "for answer in (' ', '  one ', 'two\\n  three'), (' four',):\n"
        "    for piece in answer: writer.write(piece)\n"
        "    writer.finish()\n"
    )
    command = [sys.executable, "-c", code]
    with Terminal(command=command, home=tmp_path) as terminal:
        assert terminal.wait_for_end() == 0
        assert terminal.text.rstrip() == "one two\n  three\nfour"
    piped = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment(tmp_path))
    assert piped.stdout == b"   one two\n  three\n four\n"


@pytest.mark.parametrize(
    ("pieces", "written"),
    [
        (["a\r\nb\r\n"], "a\r\nb\n"),
        (["a\r", "\nb\r", "c\r"], "a\r\nb␍c␍\n"),
        (["\r", "\n\r\n", "a"], "\r\n\r\na\n"),
        (["a\n\r", "\r\n\n"], "a\n␍\n"),
        (["\r\n", "\n"], ""),
        (["\u200eאב\u200f\u061c ", "a\u202eb\u2066c"], "\u200eאב\u200f\u061c a\ufffdb\ufffdc\n"),
        (["\x1b[2J\x9b\x00"], "␛[2J\ufffd␀\n"),
    ],
)
def test_into_a_pipe_line_ends_and_direction_marks_are_data(
    pieces: list[str], written: str, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = AnswerWriter()
    for piece in pieces:
        writer.write(piece)
    writer.finish()
    assert capsys.readouterr().out == written
