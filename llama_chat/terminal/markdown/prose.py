"""One line of prose: inline Markdown, in rows."""

import re
from collections.abc import Callable

from rich.cells import cell_len

from llama_chat.terminal.markdown.inline import HELD_MAX, InlineStream
from llama_chat.terminal.markdown.painting import Span
from llama_chat.terminal.markdown.wrapping import WordWrap
from llama_chat.terminal.sanitizer import sanitize

ROW_MAX = 10_000
"""Length beyond which a line begins no table."""

_PIPE = re.compile(r"(?<!\\)\|")


class ProseLine:
    """Formatter of a line of prose as it arrives.

    The rest of it from a pipe on is held, within limits: it may be the header of a table, whose
    first cell is released then.
    """

    def __init__(
        self,
        margin: list[Span],
        hanging: list[Span],
        width: Callable[[], int] | None,
        inline: InlineStream | None = None,
        *,
        row: str = "",
    ) -> None:
        """Begin a line.

        Args:
            margin: what is written in front of it.
            hanging: what is to be written in front of its further rows.
            width: returns the current columns of the terminal, to break rows between words; None
                leaves that to the terminal.
            inline: formats its text, which begins no table.
            row: the whole line, if it begins with a pipe.
        """
        self._inline = inline or InlineStream()
        self._may_be_row = inline is None
        self.text = row
        """The line, as long as it may be the header of a table."""
        self._pipe = 0 if row else -1
        """Index of the first pipe."""
        self._hanging = hanging
        self._wrap = WordWrap(margin, hanging, width) if width else None
        self._shown: list[Span] = []
        """Its text in a single row."""

    def push(self, text: str) -> list[Span]:
        """Take more of the line; returns what is final now."""
        if not self._may_be_row:
            return self._rows(self._inline.push(text))
        n_before = len(self.text)
        self.text += text
        if self._pipe >= 0:
            return self._release() if len(self.text) - self._pipe > HELD_MAX else []
        if found := _PIPE.search(self.text, n_before):
            self._pipe = found.start()
            return self._rows(self._inline.push(self.text[n_before : self._pipe]))
        self._may_be_row = len(self.text) <= ROW_MAX
        return self._rows(self._inline.push(text))

    @property
    def columns(self) -> int:
        """Columns of its text in a single row; a character may add to those of the one before."""
        return cell_len(sanitize("".join(span.text for span in self._shown)))

    @property
    def held(self) -> str:
        """The rest of a line that may be the header of a table."""
        return self.text[self._pipe :] if self._may_be_row and self._pipe >= 0 else ""

    @property
    def is_begun(self) -> bool:
        """True if the first cell of what may be a header is released."""
        return self._pipe > 0

    def restart(self) -> tuple[list[Span], str]:
        """Begin a row: all text so far is shown, also what is held.

        Returns:
            What is to be written in front of the row, and the text that is held.
        """
        hanging = self._wrap.restart() if self._wrap else self._hanging
        return hanging, self._inline.held + self.held

    def finish_cell(self) -> list[Span]:
        """End the first cell of a header; returns the rest of it."""
        spans = self._rows(self._inline.finish())
        return spans + self._wrap.finish() if self._wrap else spans

    def finish(self) -> list[Span]:
        """End the line; returns the rest."""
        return self._release() + self.finish_cell()

    def _release(self) -> list[Span]:
        """Release the held text: the line begins no table."""
        held, self._may_be_row = self.held, False
        return self._rows(self._inline.push(held))

    def _rows(self, spans: list[Span]) -> list[Span]:
        self._shown += spans
        return self._wrap.push(spans) if self._wrap else spans
