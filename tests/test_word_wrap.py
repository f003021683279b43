"""Word wrap: rows break between words, fit the terminal, and hold the text once."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.color import ColorSystem

from harness.program import environment
from harness.terminal import Terminal
from llama_chat.terminal.markdown import MarkdownStream, Painter
from tests.markdown_output import cut, formatted, styled, visible
from tests.test_markdown_streaming import HOSTILE, PLACES, TEXTS

WORDS = [
    *("a", "of", "word,", "steeped;", "(infusion)", "antidisestablishmentarianism", "x=1", "--"),
    *(
        "e\u0301te\u0301",
        "水温很重要。",
        "お茶を「入れる」",
        "한국어",
        "中文,English混排",
        "Ｆ",
        "\u3000",
    ),
    *(
        "😀",
        "👩\u200d👩\u200d👧",
        "👍🏽",
        "🇩🇪🇫🇷",
        "☺\ufe0f",
        "❤\ufe0f愛",
        "न\u200dम\u094dस",
        "no\xa0break",
    ),
    *("שלום", "עולם,", "مرحبا", "بالعالم", "https://example.org/" + "path/" * 9),
    *("<https://ja.example/水温/お茶>", "[茶](https://e.org/茶)", "`code`", "`水温很重要`"),
    *("**bold", "face**", "*it*", "~~gone~~"),
]
STARTS = ["", "", "- ", "  - ", "1. ", "10) ", "> ", "> > ", "> - ", "- [ ] ", "# ", "- > "]
PROSE = st.lists(
    st.tuples(st.sampled_from(STARTS), st.lists(st.sampled_from(WORDS), min_size=1, max_size=40)),
    min_size=1,
    max_size=4,
).map(lambda lines: "\n\n".join(start + " ".join(words) for start, words in lines))
WIDTHS = st.integers(20, 200)

MARGIN = re.compile(r"(?:[ \t│•]|[0-9]+[.)] |☐ )*")


def unwrapped(wrapped: str, text: str) -> str:
    """Join the rows of ``wrapped`` where ``text``, which was not wrapped, has no newline.

    A row break stands for the blanks there, or for nothing beside a wide character.
    """
    joined = ""
    position = 0
    while position < len(wrapped):
        here, there = wrapped[position], text[len(joined) : len(joined) + 1]
        if here != "\n" or there == "\n":
            joined += here
            position += 1
            continue
        line = text[text.rfind("\n", 0, len(joined)) + 1 : len(joined)]
        margin = MARGIN.match(line)
        hanging = re.sub("[^│\t]", " ", margin[0]) if margin else ""
        position += 1
        if wrapped.startswith(hanging, position):
            position += len(hanging)  # else it would leave too little of the row
        blanks = re.match(r"[ \t]*", text[len(joined) :])
        assert blanks
        assert blanks[0] or any(cell_len(c) != 1 for c in (joined[-1], there)), joined[-20:]
        joined += blanks[0]
    return joined


def columns(row: str) -> int:
    """Return the columns of a terminal that draws each character on its own."""
    return max(cell_len(row), sum(map(cell_len, row)))


@given(PROSE, PLACES, WIDTHS)
@example("- " + "水温" * 100 + "(很)" * 50, [], 21)
@example("> " * 12 + "a b c " * 9, [3, 9], 20)
def test_rows_fit_and_hold_the_text_once(text: str, places: list[int], width: int) -> None:
    wrapped = formatted(cut(text, places), width=width, wrap=True)
    assert wrapped == formatted(text, width=width, wrap=True)
    assert unwrapped(wrapped, formatted(text)) == formatted(text)
    for row in wrapped.split("\n"):
        inside = row[len(MARGIN.match(row)[0]) :]  # type: ignore[index]
        assert columns(row) <= width or " " not in inside
        assert row == row.rstrip(" ")


@given(TEXTS | HOSTILE | st.text(), PLACES, st.integers(-1, 60))
def test_any_text_is_wrapped_to_itself(text: str, places: list[int], width: int) -> None:
    """Code, tables and HTML are not wrapped, and their rows are those without wrap."""
    wrapped = formatted(cut(text, places), width=width, wrap=True)
    assert wrapped == formatted(text, width=width, wrap=True)
    plain = formatted(text, width=width)
    assert "".join(re.sub("│", "", wrapped).split()) == "".join(re.sub("│", "", plain).split())
    colored = "".join(formatted(cut(text, places), width=width, wrap=True, color=True))
    assert visible(styled(colored)) == wrapped


ROWS = {
    "prose": ("the quick brown fox jumps over", 20, "the quick brown fox\njumps over"),
    "a row that is just full": ("aaaa bbbb cc dd", 9, "aaaa bbbb\ncc dd"),
    "several blanks": ("aaaa  bbbb   cccc", 10, "aaaa  bbbb\ncccc"),
    "a list": ("- aaaa bbbb cccc\n  1. d e f g h", 11, "• aaaa bbbb\n  cccc\n  1. d e f\n     g h"),
    "a task": ("- [x] aaaa bbbb", 10, "• ☑ aaaa\n    bbbb"),
    "a paragraph of a list": ("- a\n\n  bbbb cccc", 8, "• a\n\n  bbbb\n  cccc"),
    "a quote": ("> aaaa bbbb\n> > cccc dddd", 9, "│ aaaa\n│ bbbb\n│ │ cccc\n│ │ dddd"),
    "a heading": ("# aaaa bbbb", 8, "aaaa\nbbbb"),
    "a heading in a list": ("1. # aaaa bbbb", 9, "1. aaaa\n   bbbb"),
    "Chinese": ("水温很重要，所以", 10, "水温很重\n要，所以"),
    "Japanese": ("お茶を「入れる」", 8, "お茶を\n「入れ\nる」"),
    "Chinese and English": ("使用Python编程", 8, "使用\nPython编\n程"),
    "combining marks": ("e\u0301e\u0301 e\u0301e\u0301 e", 5, "e\u0301e\u0301 e\u0301e\u0301\ne"),
    "no-break space": ("aa bb\xa0cc", 6, "aa\nbb\xa0cc"),
    "an address": ("see https://e.org/aaaa/bbbb now", 12, "see\nhttps://e.org/aaaa/bbbb\nnow"),
    "an address of a link": ("a [b](https://e.org/a_b) c", 14, "a b\n(https://e.org/a_b)\nc"),
    "an address with wide characters": (
        "a <https://e.org/茶茶茶茶>",
        10,
        "a\nhttps://e.org/茶茶茶茶",
    ),
    "code in prose": ("type `git add -p x` now", 12, "type\ngit add -p x\nnow"),
    "emphasis": ("aa **bb cc** dd", 6, "aa bb\ncc dd"),
    "a long word": ("a " + "b" * 25 + " c d", 10, "a\n" + "b" * 25 + "\nc d"),
    "a long word that ends a row": ("b" * 20 + " c", 10, "b" * 20 + "\nc"),
    "code": ("```\naaaa bbbb cccc\n```", 8, "┌─\naaaa bbbb cccc\n└─"),
    "indented code": ("    aaaa bbbb cccc", 8, "    aaaa bbbb cccc"),
    "a record of a table": ("|a|b|\n|-|-|\n|cc dd|ee ff gg|", 8, "a: cc dd\nb: ee ff\n  gg"),
    "a line that begins no table": ("|aaaa bbbb|\ncccc dddd", 8, "|aaaa\nbbbb|\ncccc\ndddd"),
    "HTML": ("<div>aaaa bbbb\n", 8, "<div>aaaa bbbb\n"),
    "an indentation of most of the row": ("> > > > aaaa bbbb", 12, "│ │ │ │ aaaa\nbbbb"),
}


@pytest.mark.parametrize(("source", "width", "rows"), ROWS.values(), ids=ROWS.keys())
def test_rows(source: str, width: int, rows: str) -> None:
    assert formatted(source, width=width, wrap=True) == rows
    assert formatted(list(source), width=width, wrap=True) == rows


def test_a_word_is_written_once_it_is_known_to_fit() -> None:
    stream = MarkdownStream(Painter(None), lambda: 12, wrap=True)
    pieces = ["The qu", "ick b", "row", "n ", "f", "ox https://", "a.example", "/b/", "c d", "\n"]
    written = [stream.push(piece) for piece in pieces]
    assert written[:6] == ["The", " quick", "\n", "", "brown", " fox"]
    assert written[6:] == ["", "", "\nhttps://a.example/b/c\n", "d\n"]
    assert stream.finish() == ""


def test_a_letter_with_a_hundred_thousand_accents_is_a_word() -> None:
    """Its width is not counted anew for each of them: that would take a quarter of an hour."""
    word = "e" + 100_000 * "\u0301"
    assert formatted(list(f"a {word} b"), width=4, wrap=True) == f"a {word}\nb"


def test_what_was_generated_is_shown_when_a_reply_ends_within_a_word() -> None:
    for source in ("The qui", "- **bo", "> `co", "see https://a.b/c", "水", "a b *c d"):
        stream = MarkdownStream(Painter(None), lambda: 80, wrap=True)
        written = "".join(map(stream.push, source)) + stream.finish()
        assert written == formatted(source)


@pytest.mark.parametrize("wrap", ["words", "terminal"])
def test_only_a_terminal_gets_wrapped_text_and_only_if_it_is_set(wrap: str, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.json"
    tokens.write_text(json.dumps(["- the quick brown fox jum", "ps over the lazy", "\nbye"]))
    player = [sys.executable, "-m", "tests.play_reply", str(tokens), "never", wrap]
    with Terminal(command=player, size=(25, 8), home=tmp_path) as terminal:
        terminal.wait_for_end()
        mark, *rows = terminal.shown.split("\n")[:3]
    assert (
        rows
        == {
            "words": ["• the quick brown fox", "  jumps over the lazy"],
            "terminal": ["• the quick brown fox jum", "ps over the lazy"],
        }[wrap]
    )
    piped = subprocess.run(player, stdout=subprocess.PIPE, check=True, env=environment(tmp_path))
    assert piped.stdout.decode() == f"{mark}\n• the quick brown fox jumps over the lazy\nbye\n"


def test_a_new_width_counts_from_the_next_row() -> None:
    width = 20
    stream = MarkdownStream(Painter(ColorSystem.STANDARD), lambda: width, wrap=True)
    written = stream.push("aaaa bbbb ")
    width = 8
    written += stream.push("cccc dddd eeee ffff ")
    width = 30
    written += stream.push("gggg hhhh iiii jjjj kkkk") + stream.finish()
    assert written == "aaaa bbbb cccc dddd\neeee\nffff\ngggg hhhh iiii jjjj kkkk"
