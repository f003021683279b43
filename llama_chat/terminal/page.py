"""Pages of text for the terminal: sections with tables and bars."""

import io
import shutil
from collections.abc import Iterable, Mapping

from rich.bar import Bar
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.text import Text

from llama_chat.terminal.sanitizer import sanitize
from llama_chat.terminal.streams import one_line
from llama_chat.terminal.tables import FittedTable

_LEAST_WIDTH, _GREATEST_WIDTH = 40, 100
"""Limits of the page's width, which otherwise is that of the terminal."""

_UNWRAPPED = 10_000
"""Width that no line has."""

_BAR_WIDTH = 60


def draw_page(
    title: RenderableType,
    sections: Mapping[str, RenderableType],
    *,
    colored: bool,
    wrapped: bool = True,
) -> str:
    """Draw a title, and sections under their headings.

    Args:
        title: the title.
        sections: what is below each heading.
        colored: whether to use colours; without them it is plain text.
        wrapped: whether it is at most as wide as the terminal, or lines are never broken.
    """
    page = io.StringIO()
    columns = min(max(shutil.get_terminal_size().columns, _LEAST_WIDTH), _GREATEST_WIDTH)
    console = Console(
        file=page,
        width=columns if wrapped else _UNWRAPPED,
        force_terminal=colored,
        color_system="standard" if colored else None,
        no_color=not colored,
        highlight=False,
        markup=False,
        emoji=False,
    )
    console.print(title)
    for heading, body in sections.items():
        console.print("", Text(heading, "bold"), Padding(body, (0, 0, 0, 2)), sep="\n")
    return "\n".join(line.rstrip() for line in page.getvalue().split("\n"))


def safe_text(value: object, style: str = "") -> Text:
    """Return ``value`` as one line without control characters, folded where it does not fit."""
    return Text(sanitize(one_line(str(value))), style, overflow="fold")


def shares(parts: Iterable[tuple[str, str, float]]) -> FittedTable:
    """Tabulate parts (label, amount as text, amount), each with its share and a bar."""
    known = [part for part in parts if part[2] > 0]
    total = sum(amount for _, _, amount in known)
    rows = [
        (
            Text(label),
            Text(shown),
            Text(f"{amount / total:.1%}"),
            Bar(total, 0, amount, width=_BAR_WIDTH, color="cyan"),
        )
        for label, shown, amount in known
    ]
    return FittedTable(rows, right=(1, 2))
