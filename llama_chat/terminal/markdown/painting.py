"""Pieces of text with a style, and their way to the terminal."""

from collections.abc import Iterable
from typing import NamedTuple

from rich.cells import cell_len
from rich.color import ColorSystem
from rich.style import Style

from llama_chat.terminal.sanitizer import sanitize

PLAIN = Style.null()
DIM = Style(dim=True)
BOLD = Style(bold=True)
ITALIC = Style(italic=True)
STRIKE = Style(strike=True)
UNDERLINE = Style(underline=True)
CODE = Style(color="cyan")
HEADINGS = (
    Style(bold=True, color="magenta"),
    Style(bold=True, color="cyan"),
    Style(bold=True, color="green"),
    BOLD,
)
"""By level; deeper ones are like the last. Palette colours: they follow the user's theme."""


class Span(NamedTuple):
    """A piece of one line, all in one style."""

    text: str
    style: Style = PLAIN


class Painter:
    """Makes spans fit to be written: harmless characters, and colours if there are any.

    The one place where escape sequences are made. Every span ends in the default style, since
    whoever writes it may be interrupted at any instant.
    """

    def __init__(self, color_system: ColorSystem | None, *, colored: bool = True) -> None:
        """Paint for a terminal.

        Args:
            color_system: what it can do; None adds nothing to the text.
            colored: whether to use colours, or only bold letters and the like.
        """
        self._color_system = color_system
        self._colored = colored

    def paint(self, spans: Iterable[Span]) -> str:
        """The spans of a line as text."""
        system = self._color_system
        return "".join(
            (style if self._colored else style.without_color).render(
                sanitize(text), color_system=system
            )
            for text, style in spans
            if text
        )


def width_of(spans: Iterable[Span]) -> int:
    """Columns that ``spans`` take."""
    return sum(cell_len(sanitize(text)) for text, _ in spans)


def stripped(spans: list[Span]) -> list[Span]:
    """``spans`` without blanks at their end, which would be copied."""
    spans = spans.copy()
    while spans and not (text := spans[-1].text.rstrip(" \t")):
        spans.pop()
    if spans:
        spans[-1] = Span(text, spans[-1].style)
    return spans
