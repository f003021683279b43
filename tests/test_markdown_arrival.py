"""Markdown as a user sees it arrive: early, whole, and once, on terminals of any width."""

import json
import re
import sys
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from rich.color import ColorSystem

from harness.terminal import Terminal
from llama_chat.terminal.markdown import MarkdownStream, Painter
from llama_chat.terminal.markdown.inline import HELD_MAX
from llama_chat.terminal.renderer import REPLY_MARK
from tests.markdown_output import formatted, styled, visible

DATA = Path(__file__).parent / "data"
REPLY: list[str] = json.loads((DATA / "markdown_reply.json").read_text())
SHOWN = (DATA / "markdown_reply.txt").read_text()
"""The reply at 80 columns."""

PRICES = """\
Tea       Origin           Price per 100 g  Steepings
────────  ───────────────  ───────────────  ─────────
Sencha    Shizuoka, Japan           9.50 €  3
Longjing  Hangzhou, 中国           24.00 €  5
Assam     India                     4.20 €  1 or 2
"""
PRICES_NARROW = """\
Tea: Sencha
Origin: Shizuoka, Japan
Price per 100 g: 9.50 €
Steepings: 3

Tea: Longjing
Origin: Hangzhou, 中国
Price per 100 g: 24.00 €
Steepings: 5

Tea: Assam
Origin: India
Price per 100 g: 4.20 €
Steepings: 1 or 2
"""
TASTES = """\
Tea: Gyokuro
How it is made: Shaded for three weeks before the harvest, then steamed
What it tastes like: Sweet, thick, like seaweed
What goes well with it: Nothing at all, or wagashi (https://example.org/wagashi)

Tea: Lapsang Souchong
How it is made: Dried over a fire of pine wood
What it tastes like: Smoke, leather, dried longan
What goes well with it: Old cheese | smoked fish
"""
TASTES_WRAPPED = """\
Tea              How it is made   What it tastes   What goes well with it
                                  like
───────────────  ───────────────  ───────────────  ─────────────────────────────
Gyokuro          Shaded for       Sweet, thick,    Nothing at all, or wagashi
                 three weeks      like seaweed     (https://example.org/wagashi)
                 before the
                 harvest, then
                 steamed
Lapsang          Dried over a     Smoke, leather,  Old cheese | smoked fish
Souchong         fire of pine     dried longan
                 wood
"""
TASTES_WIDE_COLUMNS = (
    ("Tea", "Gyokuro", "Lapsang Souchong"),
    (
        "How it is made",
        "Shaded for three weeks before the harvest, then steamed",
        "Dried over a fire of pine wood",
    ),
    ("What it tastes like", "Sweet, thick, like seaweed", "Smoke, leather, dried longan"),
    (
        "What goes well with it",
        "Nothing at all, or wagashi (https://example.org/wagashi)",
        "Old cheese | smoked fish",
    ),
)
FENCES = [token for token in MarkdownIt().parse("".join(REPLY)) if token.type == "fence"]
UNBROKEN = {
    *(line.strip() for fence in FENCES for line in fence.content.splitlines()),
    *TASTES.splitlines(),
    *(line for line in SHOWN.splitlines() if re.search("^(中文|日本語|<p )|https:", line)),
}
"""Lines not broken, or not only between words: code, records, HTML, Chinese, addresses."""
BETWEEN_TABLES = "And one that few terminals can hold:\n\n"


def shown(width: int, later_width: int) -> str:
    """Return the reply as shown by a terminal whose width changes between its two large tables."""
    widths = [max(map(len, column)) for column in TASTES_WIDE_COLUMNS]
    rows = zip(*TASTES_WIDE_COLUMNS, strict=True)
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    lines.insert(1, "  ".join("─" * width for width in widths))
    text = SHOWN.replace(PRICES, PRICES_NARROW) if width < 53 else SHOWN
    wide = "\n".join([*lines, ""])
    tastes = TASTES if later_width < 80 else TASTES_WRAPPED if later_width < 160 else wide
    return text.replace(TASTES_WRAPPED, tastes)


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("later_width", [40, 80, 200])
def test_a_terminal_holds_the_whole_reply_once(
    width: int, later_width: int, tmp_path: Path
) -> None:
    player = [sys.executable, "-m", "tests.play_reply", str(DATA / "markdown_reply.json")]
    # Two of the three lines on the screen are short and one is empty when the width changes: pyte
    # cuts off what a real terminal would wrap again.
    with Terminal(BETWEEN_TABLES, command=player, size=(width, 3), home=tmp_path) as terminal:
        terminal.wait_for(BETWEEN_TABLES.replace(" ", r"\s+"))
        terminal.resize(later_width, 3)
        terminal.no_echo()
        terminal.type("\r")
        assert terminal.wait_for_end() == 0
    screen = terminal.screen
    rows = [*screen.history.top, *(screen.buffer[y] for y in range(screen.lines))]
    physical = ["".join(row[x].data for x in range(200)) for row in rows]
    assert physical.pop(0).rstrip() == REPLY_MARK
    for line in shown(width, later_width).splitlines():
        wanted = squeezed(line)
        found, words = squeezed(physical[0]), physical.pop(0)
        while len(found) < len(wanted):
            found, words = found + squeezed(physical[0]), f"{words} {physical.pop(0)}"
        assert found == wanted
        if line.strip() not in UNBROKEN:
            assert words.replace("│", "").split() == line.replace("│", "").split()
    (below,) = physical
    assert squeezed(below) == ""


def squeezed(line: str) -> str:
    """Remove blanks and bars: a tab has become several blanks, and further rows have bars."""
    return "".join(line.replace("│", "").split())


def test_the_changed_widths_are_those_of_the_tables() -> None:
    """The expected text differs for each width, and is what is written."""
    assert len({shown(width, width) for width in (40, 80, 200)}) == 3
    for width in (40, 80, 200):
        assert formatted(REPLY, width=width) + "\n" == shown(width, width)


@pytest.mark.parametrize(
    ("source", "early"),
    [
        ("Hello wonderful", "Hello wonderful"),
        ("水温很重要所以", "水温很重要所以"),
        ("a **b** c", "a b c"),
        ("a **b", "a "),
        ("a *b*.", "a b."),
        ("a `b` *c", "a b "),
        ("**a *b* *c* d** e", "a b c d e"),
        ("a [b](u)", "a b (u)"),
        ("a_b_c d", "a_b_c d"),
        ("5 * 3", "5 * 3"),
        ("# A title", "A title"),
        ("- a *b* c", "• a b c"),
        ("1. a", "1. a"),
        ("> > a", "│ │ a"),
        ("```py\nx = 1\ny =", "┌─ py\nx = 1\n"),
        ("<div class='a", "<div class='a"),
        ("    a = ", "    a = "),
        ("see https://a.b/c and", "see https://a.b/c and"),
        ("| a | b |\n| c", "| a | b |\n"),
        ("if a | b or", "if a"),
        ("if a | b or\nc", "if a | b or\nc"),
    ],
)
def test_certain_text_is_written_before_the_line_ends(source: str, early: str) -> None:
    stream = MarkdownStream(Painter(None), lambda: 80)
    assert "".join(map(stream.push, source)) == early


@pytest.mark.parametrize(
    "opener", ["*", "**", "_", "~~", "`", "``", "[", "![", "[a](", "<a ", "<!--", "\\(", "http://"]
)
def test_an_open_marker_holds_back_a_limited_text(opener: str) -> None:
    assert HELD_MAX <= 300
    stream = MarkdownStream(Painter(None), lambda: 80)
    source = f"a {opener}" + "b c" * 200
    output = ""
    for n_sent, character in enumerate(source, 1):
        output += stream.push(character)
        assert n_sent - len(output) <= HELD_MAX
    assert output + stream.finish() == source


def test_a_marker_after_one_that_never_closes_is_still_formatted() -> None:
    assert formatted("a *" + "b " * 120 + "**c " + "d " * 60 + "e** f").endswith("d e f")


def test_a_table_reports_the_rows_that_it_holds_back() -> None:
    stream = MarkdownStream(Painter(ColorSystem.STANDARD), lambda: 80)
    said = ""
    for line in ["a\n", "| b |\n", "|---|\n", "| c |\n", "| d |\n", "| e", " |\n", "f\n"]:
        written = stream.push(line)
        said += f"{stream.waiting}; "
        assert not stream.waiting or written == ""
    assert said == (
        "; ; table, 0 rows; table, 1 row; table, 2 rows; table, 2 rows; table, 3 rows; ; "
    )


def test_a_very_long_line_of_code_is_written_before_it_ends() -> None:
    stream = MarkdownStream(Painter(ColorSystem.STANDARD), lambda: 80)
    line = "x = 1; " * 400
    early = stream.push(f"```python\n{line}")
    assert visible(styled(early)) == f"┌─ python\n{line}"
    assert visible(styled(stream.push("y\nz\n```\n") + stream.finish())) == "y\nz\n└─\n"


MARKS = ("*", "_", "~", "`", "[", "![", "<", "&", "\\(", "](", "http://", "|")
UNITS = ("*a ", "a* ", "[a](b ", "<a b='c' ", "1.a ", "a|")


@pytest.mark.parametrize(
    "text",
    [
        *(mark * 20_000 for mark in MARKS),
        *(unit * 4_000 + "." for unit in UNITS),
        *(start + "a" * 20_000 for start in ("#######", "-", "**", "[", "`", "<")),
        "a |\n|" + "-|" * 10_000,
        "a" * 1_000_000,
    ],
    ids=lambda text: text[:8],
)
def test_text_that_only_looks_like_markdown_stays_as_it_is(text: str) -> None:
    assert formatted(text) == text


def test_nesting_beyond_a_limit_is_text() -> None:
    assert formatted(">" * 1_000 + " a") == "│ " * 32 + ">" * 968 + " a"
    assert formatted("- " * 100 + "a") == "• " * 32 + "- " * 68 + "a"


def test_a_table_of_a_thousand_columns() -> None:
    source = "| *h* " * 1_000 + "|\n" + "|-" * 1_000 + "|\n" + "| c " * 1_000 + "|\n"
    assert formatted(source, width=80) == "h: c\n" * 1_000
    assert formatted(source, width=2_998) == "".join(
        "  ".join([cell] * 1_000) + "\n" for cell in "h─c"
    )


def test_nothing_is_written_after_the_end() -> None:
    stream = MarkdownStream(Painter(None), lambda: 80)
    assert stream.push("**a") + stream.finish() + stream.finish() == "**a"
