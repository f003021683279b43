"""A reply that goes on after a cut is formatted as if it had not been cut, and shown once."""

import re
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from harness.fault_server import Act, answer, fault_server, part, stream
from harness.terminal import CTRL_C, Terminal
from llama_chat.terminal.markdown import MarkdownStream, Painter, ResumedStream
from tests.test_markdown_streaming import SOURCE, TEXTS

TABLE = "| name | value |\n|---|--:|\n| a | 1 |\n"
ROW = "name  value\n────  ─────\na         1\n"


def shown(text: str, rest: str, *, wrap: bool = False, width: int = 40) -> tuple[str, str]:
    """Return the output for a text that was cut, and for the rest of it."""
    first = MarkdownStream(Painter(None), lambda: width, wrap=wrap)
    before = first.push(text) + first.finish()
    second = ResumedStream(Painter(None), lambda: width, text, wrap=wrap)
    return before, "".join(map(second.push, rest)) + second.finish()


@pytest.mark.parametrize(
    ("text", "rest", "before", "after"),
    [
        (TABLE, "| b | 22 |\n\nend", ROW, "b        22\n\nend"),
        (TABLE + "| b", "b | 22 |\n", ROW + "b\n", "bb       22\n"),
        (TABLE + "| b | 22 |", "\n| c | 3 |\n", ROW + "b        22\n", "c         3\n"),
        ("| na", "me | x |\n|---|---|\n| 1 | 2 |\n", "| na\n", "name  x\n────  ─\n1     2\n"),
        ("| a | b |\n|---|-", "--|\n| 1 | 2 |", "a  b\n─  ─\n", "1  2\n"),
        ("a | b\n---|---\n1 | 2\n", "3 | 4\n", "a  b\n─  ─\n1  2\n", "3  4\n"),
        ("| a | b |\n", "not | a table", "| a | b |\n", "not | a table"),
        ("a `co", "de` b", "a `co", "de b"),
        ("a **bo", "ld** b", "a **bo", "ld b"),
        ("a *", "*bold** b", "a *", "bold b"),
        ("[te", "xt](http://u.v) b", "[te", "xt (http://u.v) b"),
        ("- item", " goes on\n- next", "• item", "  goes on\n• next"),
        ("a", "\n\nb", "a", "\nb"),
        ("- x\n  ```\n  f(", "a)\n  ```\ny", "• x\n  ┌─\n  f(\n  └─", "  ┌─\n  a)\n  └─\ny"),
        ("```py\nx\n```", "\ny", "┌─ py\nx\n└─", "y"),
    ],
)  # fmt: skip
def test_only_what_is_new_is_shown(text: str, rest: str, before: str, after: str) -> None:
    assert tuple(map(str.rstrip, shown(text, rest))) == (before.rstrip(), after.rstrip())


@given(TEXTS, st.integers(0, 400), st.booleans())
@example(SOURCE, len(SOURCE) // 2, True)
def test_nothing_is_lost_at_a_cut(text: str, place: int, wrap: bool) -> None:
    place %= len(text) + 1
    assume(not re.search(r"(```|~~~).*\Z", text[:place]))  # what follows a fence is not shown
    whole = MarkdownStream(Painter(None), lambda: 40, wrap=wrap)
    written = whole.push(text) + whole.finish()
    all_shown = iter("".join(shown(text[:place], text[place:], wrap=wrap)))
    assert not [c for c in written if c.isalnum() and c not in all_shown]


def test_a_table_goes_on_after_ctrl_c(tmp_path: Path) -> None:
    rows = [f"| row {number} | {number**2} |\n" for number in range(40)]
    begun = "".join(["Squares:\n\n| name | square |\n|---|--:|\n", *rows[:20]]) + "| row 2"
    rest = "0 | 400 |\n" + "".join(rows[21:])
    scripts = [[*stream(part(begun)), Act.HOLD], answer(rest)]
    with (
        fault_server(*scripts) as server,
        Terminal("--endpoint", server.url, home=tmp_path, size=(80, 100)) as chat,
    ):
        chat.wait_for(r"template the server's\n›")
        chat.line("squares")
        chat.wait_for(r"table, 20 rows")
        chat.type(CTRL_C)
        chat.wait_for(r"/continue goes on\n\n›")
        before = chat.text
        chat.line("/continue")
        after = chat.wait_for(r"row 39 [\s\S]*\n›").rpartition("› /continue\n")[2]
    assert re.findall(r"row \d+ +\d+", before) == [f"row {n:<2}  {n**2:>6}" for n in range(20)]
    assert re.findall(r"row \d+ +\d+", after) == [f"row {n:<2}  {n**2:>6}" for n in range(20, 40)]
    assert "|" not in before + after
    assert "name" not in after
