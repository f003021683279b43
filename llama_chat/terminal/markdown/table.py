"""Parsing of GFM pipe tables, and their layout for a terminal."""

import re
from collections.abc import Iterable
from itertools import zip_longest
from typing import Literal

from rich.style import Style

from llama_chat.terminal.markdown.inline import format_line
from llama_chat.terminal.markdown.painting import BOLD, DIM, PLAIN, Span, width_of
from llama_chat.terminal.markdown.wrapping import WordWrap

Line = list[Span]
Cell = list[Line]
Alignment = Literal["left", "center", "right"]

CELL_MAX = 2_000
"""Length beyond which a cell is shown unformatted, to bound the time."""

_COLUMN_MIN = 12
"""Columns that a cell keeps if it is wrapped, unless it is narrower or has a longer word."""

_GAP = "  "
_CODE = r"(?<![`\\])(?P<ticks>`+)(?!`).*?(?<!`)(?P=ticks)(?!`)"
_PIPE = re.compile(r"(?<!\\)\|")
_CODE_OR_PIPE = re.compile(rf"{_CODE}|(?P<separator>{_PIPE.pattern})")
_CODE_OR_BREAK = re.compile(rf"{_CODE}|(?P<separator>[ \t]*<[bB][rR][ \t]*/?>[ \t]*)")
_DELIMITER = re.compile(r":?-+:?")


def split_row(line: str, n_cells: int) -> list[str]:
    """Split a row into its cells, without the blanks and pipes around them.

    Pipes in code divide nothing, unless the row has ``n_cells`` cells only if they do.
    """
    inner = line.strip(" \t").removeprefix("|")
    rows = [_PIPE.split(inner)]
    if "`" in inner and len(inner) <= CELL_MAX:
        rows.insert(0, _split(inner, _CODE_OR_PIPE))
    for cells in rows:
        if len(cells) > 1 and not cells[-1].strip(" \t"):
            cells.pop()  # the pipe at the end
    cells = next((cells for cells in rows if len(cells) == n_cells), rows[0])
    return [cell.strip(" \t").replace("\\|", "|").replace("\t", " ") for cell in cells]


def _split(text: str, pattern: re.Pattern[str]) -> list[str]:
    """Split ``text`` at the separators that ``pattern`` finds outside of code."""
    pieces, start = [], 0
    for found in pattern.finditer(text):
        if found["separator"]:
            pieces.append(text[start : found.start()])
            start = found.end()
    return [*pieces, text[start:]]


class Table:
    """Rows of a table, laid out once all are known."""

    def __init__(self, header: str) -> None:
        """Begin a table with the line that may be its header."""
        self._header = header
        self.header: list[str] = []
        self.alignments: list[Alignment] = []
        self.rows: list[list[str]] = []
        self.n_shown = 0
        """Number of rows that are shown already, with the header, and are not laid out again."""

    @property
    def new_rows(self) -> list[list[str]]:
        """The rows that are not shown yet."""
        return self.rows[max(self.n_shown - 1, 0) :]

    def delimit(self, line: str) -> bool:
        """Take the line below the header; returns False if that is no delimiter row for it."""
        cells = split_row(line, 0)
        self.header = split_row(self._header, len(cells))
        if len(cells) != len(self.header) or not all(map(_DELIMITER.fullmatch, cells)):
            return False
        self.alignments = [_alignment(cell) for cell in cells]
        return True

    def add(self, line: str) -> None:
        """Take a row; it may have fewer or more cells than the header."""
        self.rows.append(split_row(line, len(self.header)))

    def lay_out(self, columns: int, held: str = "", *, wrap: bool = False) -> list[Line]:
        """Lay out the lines of the table, at most ``columns`` wide.

        Cells of a table that is too wide take more lines, if all columns can keep enough for that.
        Else every row becomes a record of ``header: value`` lines. No word is broken or cut.

        Args:
            columns: columns of the terminal for it.
            held: the header without its first cell, if that is written already, and is left out.
            wrap: whether the lines of records are broken between words, or of any length.
        """
        head = BOLD
        if held:
            head, self.alignments[0] = PLAIN, "left"
        n_cells = max(map(len, [self.header, *self.rows]))
        header, *rows = (
            [format_cell(cell, style) for cell in cells] + [[[]]] * (n_cells - len(cells))
            for cells, style in [(self.header, head), *((row, PLAIN) for row in self.rows)]
        )
        new_rows = rows[len(rows) - len(self.new_rows) :]
        widths = list(map(_width, zip(header, *rows, strict=True)))
        room = columns - len(_GAP) * (n_cells - 1)
        if sum(widths) > room and not held and (narrower := _narrowed([header, *rows], room)):
            widths = narrower
            header, *new_rows = (
                [_wrapped(cell, width) for cell, width in zip(row, widths, strict=True)]
                for row in [header, *new_rows]
            )
        elif sum(widths) > room:
            records = _records(header, new_rows) if new_rows or not (held or self.n_shown) else []
            if wrap:
                records = [row for line in records for row in _wrapped([line], columns, "  ")]
            return [[Span(" "), *format_line(held)], *records] if held else records or [[]]
        lines = [line for row in new_rows for line in self._lines(row, widths)]
        if not self.n_shown and any(cell != [[]] for cell in header):
            rule = [[Span("─" * width, DIM)] for width in widths]
            lines[:0] = [*self._lines(header, widths), self._line(rule, widths)]
        if held:
            lines[0] = lines[0][1 + len(header[0][0]) :]
        return lines or [[]]

    def _lines(self, cells: list[Cell], widths: list[int]) -> list[Line]:
        rows = zip_longest(*cells, fillvalue=[])
        return [self._line(list(row), widths) for row in rows]

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


def _narrowed(rows: list[list[Cell]], room: int) -> list[int]:
    """Return widths of columns whose cells are wrapped; none if that takes more than ``room``."""
    columns = list(zip(*rows, strict=True))
    widths = [min(_width(column), max(room, 0)) for column in columns]
    least = [
        max(min(width, _COLUMN_MIN), _width(_wrapped(cell, _COLUMN_MIN) for cell in column))
        for column, width in zip(columns, widths, strict=True)
    ]
    if sum(least) > room:
        return []
    while sum(widths) > room:
        shrinkable = (i for i, width in enumerate(widths) if width > least[i])
        widths[max(shrinkable, key=widths.__getitem__)] -= 1
    return widths


def _width(cells: Iterable[Cell]) -> int:
    return max(width_of(line) for cell in cells for line in cell)


def _wrapped(cell: Cell, width: int, indent: str = "") -> Cell:
    """Break the lines of a cell between words; further rows of a line begin with ``indent``."""
    lines: Cell = []
    for line in cell:
        wrap = WordWrap([], [Span(indent)], lambda: width)
        lines.append([])
        for span in [*wrap.push(line), *wrap.finish()]:
            if span.text == "\n":
                lines.append([])
            else:
                lines[-1].append(span)
    return lines


def format_cell(cell: str, base: Style = PLAIN) -> Cell:
    """Format the inline Markdown of a cell."""
    if len(cell) > CELL_MAX:
        return [[Span(cell, base)]]
    return [format_line(line, base) for line in _split(cell, _CODE_OR_BREAK)]


def _alignment(cell: str) -> Alignment:
    if cell.endswith(":"):
        return "center" if cell.startswith(":") else "right"
    return "left"


def _records(header: list[Cell], rows: list[list[Cell]]) -> list[Line]:
    """Format every row as ``header: value`` lines, with an empty line between rows."""
    names = [[span for line in cell for span in line] for cell in header]
    if not rows:
        return [name for name in names if name]
    lines: list[Line] = []
    for row in rows:
        pairs = [pair for pair in zip(names, row, strict=True) if pair != ([], [[]])]
        if lines and pairs:
            lines.append([])
        for name, (value, *more) in pairs:
            colon = Span(": " if value else ":", BOLD)
            lines.append([*name, colon, *value] if name else value)
            lines += [[Span("  "), *line] for line in more]
    return lines
