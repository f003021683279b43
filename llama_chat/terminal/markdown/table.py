"""Parsing of GFM pipe tables, and their layout for a terminal."""

import re
from typing import Literal

from rich.style import Style

from llama_chat.terminal.markdown.inline import format_line
from llama_chat.terminal.markdown.painting import BOLD, DIM, PLAIN, Span, width_of

Line = list[Span]
Alignment = Literal["left", "center", "right"]

CELL_MAX = 2_000
"""Length beyond which a cell is shown unformatted, to bound the time."""

_GAP = "  "
_PIPE = re.compile(r"(?<!\\)\|")
_DELIMITER = re.compile(r":?-+:?")


def split_row(line: str) -> list[str]:
    """Split a row into its cells, without the blanks and pipes around them."""
    inner = line.strip(" \t").removeprefix("|")
    cells = _PIPE.split(inner)
    if len(cells) > 1 and not cells[-1].strip(" \t"):
        cells.pop()  # the pipe at the end
    return [cell.strip(" \t").replace("\\|", "|").replace("\t", " ") for cell in cells]


class Table:
    """Rows of a table, laid out once all are known."""

    def __init__(self, header: str) -> None:
        """Begin a table with the line that may be its header."""
        self.header = split_row(header)
        self.alignments: list[Alignment] = []
        self.rows: list[list[str]] = []

    def delimit(self, line: str) -> bool:
        """Take the line below the header; returns False if that is no delimiter row for it."""
        cells = split_row(line)
        if len(cells) != len(self.header) or not all(map(_DELIMITER.fullmatch, cells)):
            return False
        self.alignments = [_alignment(cell) for cell in cells]
        return True

    def add(self, line: str) -> None:
        """Take a row; it may have fewer or more cells than the header."""
        self.rows.append(split_row(line))

    def lay_out(self, columns: int) -> list[Line]:
        """Lay out the lines of the table, at most ``columns`` wide.

        If that is impossible, every row becomes a record of ``header: value`` lines of any length,
        so that no cell is broken or cut.
        """
        n_cells = max(map(len, [self.header, *self.rows]))
        header, *rows = (
            [format_cell(cell, style) for cell in cells] + [[]] * (n_cells - len(cells))
            for cells, style in [(self.header, BOLD), *((row, PLAIN) for row in self.rows)]
        )
        widths = [max(map(width_of, column)) for column in zip(header, *rows, strict=True)]
        if sum(widths) + len(_GAP) * (n_cells - 1) > columns:
            return _records(header, rows)
        lines = [self._line(row, widths) for row in rows]
        if any(header):
            rule = [[Span("─" * width, DIM)] for width in widths]
            lines[:0] = [self._line(header, widths), self._line(rule, widths)]
        return lines

    def _line(self, cells: list[Line], widths: list[int]) -> Line:
        line: Line = []
        for index, (cell, width) in enumerate(zip(cells, widths, strict=True)):
            alignment = self.alignments[index] if index < len(self.alignments) else "left"
            spare = width - width_of(cell)
            before = {"left": 0, "center": spare // 2, "right": spare}[alignment]
            line += [Span(" " * before), *cell, Span(" " * (spare - before) + _GAP)]
        while line and not line[-1].text.strip(" "):
            line.pop()  # blanks at the end would be copied
        return line


def format_cell(cell: str, base: Style = PLAIN) -> Line:
    """Format the inline Markdown of a cell."""
    return format_line(cell, base) if len(cell) <= CELL_MAX else [Span(cell, base)]


def _alignment(cell: str) -> Alignment:
    if cell.endswith(":"):
        return "center" if cell.startswith(":") else "right"
    return "left"


def _records(header: list[Line], rows: list[list[Line]]) -> list[Line]:
    """Format every row as ``header: value`` lines, with an empty line between rows."""
    if not rows:
        return [cell for cell in header if cell]
    lines: list[Line] = []
    for row in rows:
        pairs = [(name, value) for name, value in zip(header, row, strict=True) if name or value]
        if lines and pairs:
            lines.append([])
        for name, value in pairs:
            colon = Span(": " if value else ":", BOLD)
            lines.append([*name, colon, *value] if name else value)
    return lines
