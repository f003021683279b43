"""Styled spans of text, and their conversion to escape sequences."""

from collections.abc import Iterable, Mapping
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
"""Styles by level, the last for deeper ones too; palette colours follow the user's theme."""


class Span(NamedTuple):
    """Piece of a line in one style."""

    text: str
    style: Style = PLAIN
    whole: bool = False
    """True for code and addresses, which word wrap never breaks."""


class Painter:
    """Converter of spans to text for the terminal: sanitized, with escape sequences for styles.

    Every span ends in the default style, since writing may be interrupted at any point.
    """

    def __init__(
        self,
        color_system: ColorSystem | None,
        *,
        colored: bool = True,
        substitutes: Mapping[str, Style] | None = None,
    ) -> None:
        """Paint for a terminal.

        Args:
            color_system: colours that it supports; None adds no escape sequences.
            colored: whether to use colours, or only bold, italic and the like.
            substitutes: styles in place of colours, by their names.
        """
        self._color_system = color_system
        self._colored = colored
        self._substitutes = substitutes or {}

    def paint(self, spans: Iterable[Span]) -> str:
        """Convert the spans of a line to text."""
        system = self._color_system
        return "".join(
            self._adapted(style).render(sanitize(text), color_system=system)
            for text, style, _ in spans
            if text
        )

    def _adapted(self, style: Style) -> Style:
        if not self._colored:
            return style.without_color
        substitute = self._substitutes.get(style.color.name) if style.color else None
        return style.without_color + substitute if substitute else style


def width_of(spans: Iterable[Span]) -> int:
    """Compute the terminal columns that ``spans`` take."""
    return sum(cell_len(sanitize(span.text)) for span in spans)


def stripped(spans: list[Span]) -> list[Span]:
    """Return ``spans`` without blanks at their end, which would be copied."""
    spans = spans.copy()
    while spans and not (text := spans[-1].text.rstrip(" \t")):
        spans.pop()
    if spans:
        spans[-1] = spans[-1]._replace(text=text)
    return spans
