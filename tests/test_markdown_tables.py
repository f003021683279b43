"""Tables of Markdown as they are shown on the terminal."""

import pytest

from tests.markdown_output import formatted

TABLES = {
    "alignment": (
        """
| left | right | both | none |
|:-----|------:|:----:|------|
| a    | b     | c    | d    |
| aaaaa | bbbbbb | ccccc | ddddd |
""",
        """
left    right  both   none
─────  ──────  ─────  ─────
a           b    c    d
aaaaa  bbbbbb  ccccc  ddddd
""",
    ),
    "wide characters": (
        """
| 茶 | x |
|----|--:|
| 🍵🍵 | 1 |
| é | 22 |
""",
        """
茶     x
────  ──
🍵🍵   1
é     22
""",
    ),
    "markup in cells": (
        r"""
| **a** | `b\|c` |
|---|---|
| [x](u) | `\|` \| *y* |
| `one` | &lt;z&gt; |
""",
        """
a      b|c
─────  ─────
x (u)  | | y
one    <z>
""",
    ),
    "pipes in code": (
        """
| a `|` b | `c|d` |
|---|---|
| `one|two` | ``x`|`y`` |
| `a | b` |
| e` | f` |
""",
        """
a | b    c|d
───────  ─────
one|two  x`|`y
`a       b`
e`       f`
""",
    ),
    "line breaks in cells": (
        """
| a<br>b | c |
|---|--:|
| d <br/> *e*<BR />`<br>` | f |
""",
        """
a     c
b
────  ─
d     f
e
<br>
""",
    ),
    "rows shorter and longer than the header": (
        """
| a | b |
|---|---|
| 1 |
| 1 | 2 | 3 |
||
""",
        """
a  b
─  ─  ─
1
1  2  3

""",
    ),
    "no pipes around it": (
        """
*Tea* | °C | min
--- | ---: | :-:
Green | **75** | 2
 a\\|b | `x|y` | 3
|only | 1
*no row*
""",
        """
Tea     °C  min
─────  ───  ───
Green   75   2
a|b    x|y   3
only     1
no row
""",
    ),
    "no pipes around it, in a list in a quote": (
        "> - a | b\n>   -|-\n>   cc | d\n>\n> e\n",
        "│ • a   b\n│   ──  ─\n│   cc  d\n│\n│ e\n",
    ),
    "no pipes around it, unfinished": ("a | b\n-|-\nccc | d\ne", "a    b\n───  ─\nccc  d\ne"),
    "no table": (
        "a || b\nc | d\n- e | f\n\n1 | 2\n-|-|-\n3 | 4\n---\n5 | *6*",
        "a || b\nc | d\n• e | f\n\n1 | 2\n-|-|-\n3 | 4\n─────\n5 | 6",
    ),
    "no header": ("| | |\n|-|-|\n| a | b |\n", "a  b\n"),
    "one column": ("|a|\n|-|\n|b|\n", "a\n─\nb\n"),
    "only a header": ("|a|b|\n|-|-|\n", "a  b\n─  ─\n"),
    "text right after it": ("|a|\n|-|\n|b|\n*c*\n", "a\n─\nb\nc\n"),
    "text right before it": ("*a*\n|b|\n|-|\n", "a\nb\n─\n"),
    "in a list": ("- a\n\n  |b|c|\n  |-|-|\n  |d|e|\n", "• a\n\n  b  c\n  ─  ─\n  d  e\n"),
    "after a bullet": ("- |b|c|\n  |-|-|\n  |d|e|\n", "• b  c\n  ─  ─\n  d  e\n"),
    "in a quote": ("> |b|\n> |-|\n> |d|\n|e|\n", "│ b\n│ ─\n│ d\n|e|\n"),
    "unfinished": ("|a|b|\n|-|-|\n|c", "a  b\n─  ─\nc"),
    "unfinished in its second line": ("|a|b|\n|-|-", "a  b\n─  ─"),
    "only one line": ("|*a*|b|", "|a|b|"),
    "no second line": ("|*a*|b|\n|-|c|\n*d*\n", "|a|b|\n|-|c|\nd\n"),
    "too few cells in the second line": ("|a|b|\n|-|\n", "|a|b|\n|-|\n"),
    "two headers": ("|a|\n|b|\n|-|\n", "|a|\nb\n─\n"),
    "empty line before the second one": ("|a|\n\n|-|\n", "|a|\n\n|-|\n"),
}


@pytest.mark.parametrize(("source", "shown"), TABLES.values(), ids=TABLES.keys())
def test_tables(source: str, shown: str) -> None:
    assert formatted(source) == shown


WIDE = """\
> | Tea | *Taste* | |
> |---|--:|---|
> | Gyokuro | Sweet, thick, like **seaweed** | rare |
> | Assam |
> | | Malt | | more |
"""
RECORDS = """\
│ Tea: Gyokuro
│ Taste: Sweet, thick, like seaweed
│ rare
│
│ Tea: Assam
│ Taste:
│
│ Tea:
│ Taste: Malt
│ more
"""
ALIGNED = """\
│ Tea                           Taste
│ ───────  ──────────────────────────  ────  ────
│ Gyokuro  Sweet, thick, like seaweed  rare
│ Assam
│                                Malt        more
"""


WRAPPED = """\
│ Tea              Taste
│ ───────  ─────────────  ────  ────
│ Gyokuro  Sweet, thick,  rare
│           like seaweed
│ Assam
│                   Malt        more
"""


def test_a_table_that_is_too_wide_is_wrapped_or_becomes_records() -> None:
    width = max(map(len, ALIGNED.splitlines()))
    assert formatted(WIDE, width=width) == ALIGNED
    narrow = max(map(len, WRAPPED.splitlines()))
    assert formatted(WIDE, width=narrow) == WRAPPED
    assert formatted(WIDE, width=narrow - 2) == RECORDS
    assert formatted("|a|b|\n|-|-|\n", width=3) == "a\nb\n"


def test_a_table_without_pipes_around_it_that_is_too_wide_becomes_records() -> None:
    source = "Tea | *Taste*\n--- | ---\nSencha | fresh\nAssam | malty\n"
    records = "Tea | Taste\nTea: Sencha\nTaste: fresh\n\nTea: Assam\nTaste: malty\n"
    assert formatted(source, width=12) == records
    assert formatted(list(source), width=12, wrap=True) == records
    assert formatted("Tea | *Taste*\n--- | ---\n", width=9) == "Tea | Taste\n"
