"""Formatter of the rest of a text whose beginning is on the screen."""

from collections.abc import Callable

from llama_chat.terminal.markdown.blocks import Fence, Line, Mode, PendingTable
from llama_chat.terminal.markdown.painting import Painter, Span
from llama_chat.terminal.markdown.prose import ProseLine
from llama_chat.terminal.markdown.stream import MarkdownStream
from llama_chat.terminal.markdown.table import split_row


class ResumedStream(MarkdownStream):
    """Formatter that goes on after a text that it was finished with, in a new row.

    It reads that text again, so that emphasis, code and tables that were cut are known. Of the
    line that was cut only the rest is written, without the markers that begin or end in it; a row
    of a table is written whole once it is complete.
    """

    def __init__(
        self, painter: Painter, width: Callable[[], int], shown: str, *, wrap: bool = False
    ) -> None:
        """Go on after ``shown``; see ``MarkdownStream`` for the other arguments."""
        super().__init__(painter, width, wrap=wrap)
        self._may_repeat = ""
        """Text that is shown, and that the open line or table header may begin with."""
        self._lead: list[Span] = []
        """Margin of the row with the rest of the cut line."""
        self._is_shown = False
        """True until something new is written of the cut line."""
        self._cut_row: str | None = None
        """The cut line, if it is a row of a table."""
        self._cut_line: Line | None = None
        """The line in which the text was cut; None while that is read again."""
        self.push(shown)
        self._cut_line = self._line
        self._resume()

    def _resume(self) -> None:
        """Open the block again in which the text was cut, and note what is shown of the line."""
        line, block = self._line, self._block
        self._lead = line.hanging
        shown = ""
        if isinstance(block, PendingTable):
            shown = self._resume_table(block)
        match line.mode:
            case Mode.START:
                shown += _text(line.margin) + line.held
            case Mode.PROSE:
                self._lead, shown = self._prose.restart()
            case Mode.WHOLE:
                shown = _text(line.margin) + "".join(line.pieces)
                if isinstance(block, Fence):
                    shown = self._resume_code(block, "".join(line.pieces))
        self._may_repeat = shown
        self._is_shown = line.mode is not Mode.START or bool(shown)
        if isinstance(self._block, Fence):
            super()._write(self._block.top, "\n")

    def _resume_table(self, table: PendingTable) -> str:
        """Count the rows that are shown; returns the header if it was shown as prose."""
        line, text = self._line, table.prose.text
        shown = _text(table.margin) + text
        table.prose = ProseLine(table.margin, table.hanging, self._row_width, row=text)
        is_delimited = line.mode is Mode.START and table.table.delimit(line.held.strip(" \t"))
        if not (table.is_certain or is_delimited):
            return shown
        table.margin = table.hanging
        table.table.n_shown = 1 + len(table.table.rows)
        if line.mode is Mode.WHOLE:
            self._cut_row = "".join(line.pieces)
        return ""

    def _resume_code(self, fence: Fence, text: str) -> str:
        """Go on within a line of code; returns what is shown of it."""
        line = self._line
        if fence.is_closed_by(text):
            self._block, line.mode = None, Mode.DROPPED
        if not text.strip():  # its indentation is not seen
            self._lead = []
            return ""
        shown = fence.plain(text)
        self._lead = [*line.margin, Span(fence.indentation)]
        return _text(line.margin) + shown

    def _write(self, spans: list[Span], newline: str = "") -> None:
        if self._is_shown:
            spans = self._new(spans)
            if spans:
                spans, self._is_shown = [*self._lead, *spans], False
            else:
                newline = ""  # the cursor is in a new row already
        super()._write(spans, newline)

    def _new(self, spans: list[Span]) -> list[Span]:
        """Leave out the text that is shown, and blanks of prose in front of the rest.

        Markers are shown as text if they were not closed, and are not in ``spans``.
        """
        for n_shown, span in enumerate(spans):
            for index, character in enumerate(span.text):
                at = self._may_repeat.find(character)
                if at >= 0:
                    self._may_repeat = self._may_repeat[at + 1 :]
                elif self._line.mode is not Mode.PROSE or character not in " \t\n":
                    return [span._replace(text=span.text[index:]), *spans[n_shown + 1 :]]
        return []

    def _end_line(self, newline: str) -> None:
        super()._end_line(newline)
        if not isinstance(self._block, PendingTable) or self._block.is_certain:
            self._is_shown = False

    def _end_whole(self, text: str, newline: str) -> None:
        super()._end_whole(text, newline)
        if self._cut_row is not None and isinstance(self._block, PendingTable):
            n_cells = len(self._block.table.header)
            is_shown = split_row(text, n_cells) == split_row(self._cut_row, n_cells)
            self._block.table.n_shown += is_shown
            self._cut_row = None

    def _close_block(self, newline: str = "\n") -> None:
        super()._close_block(newline)
        if self._line is not self._cut_line:
            self._is_shown = False


def _text(spans: list[Span]) -> str:
    return "".join(span.text for span in spans)
