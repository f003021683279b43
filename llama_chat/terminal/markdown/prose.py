"""One line of prose: inline Markdown, in rows."""

from collections.abc import Callable

from llama_chat.terminal.markdown.inline import InlineStream
from llama_chat.terminal.markdown.painting import Span, width_of
from llama_chat.terminal.markdown.wrapping import WordWrap


class ProseLine:
    """Formatter of a line of prose as it arrives."""

    def __init__(
        self,
        margin: list[Span],
        hanging: list[Span],
        width: Callable[[], int] | None,
        inline: InlineStream | None = None,
    ) -> None:
        """Begin a line.

        Args:
            margin: what is written in front of it.
            hanging: what is to be written in front of its further rows.
            width: returns the current columns of the terminal, to break rows between words; None
                leaves that to the terminal.
            inline: formats its text.
        """
        self._inline = inline or InlineStream()
        self._wrap = WordWrap(margin, hanging, width) if width else None
        self.columns = 0
        """Columns of its text in a single row."""

    def push(self, text: str) -> list[Span]:
        """Take more of the line; returns what is final now."""
        return self._rows(self._inline.push(text))

    def finish(self) -> list[Span]:
        """End the line; returns the rest."""
        spans = self._rows(self._inline.finish())
        return spans + self._wrap.finish() if self._wrap else spans

    def _rows(self, spans: list[Span]) -> list[Span]:
        self.columns += width_of(spans)
        return self._wrap.push(spans) if self._wrap else spans
