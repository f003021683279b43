"""What lists have in common: a table for people, tabs and JSON for programs."""

import json
import shutil
import sys
from collections.abc import Collection, Sequence
from datetime import datetime

from llama_chat.terminal import streams
from llama_chat.terminal.sanitizer import escaped, sanitize
from llama_chat.terminal.streams import AnswerWriter

_GAP = "  "

_LATEST = 253_400_000_000
"""In seconds since 1970; in the year 10000 dates end, but the time of a file may be later."""


def date(seconds: float) -> datetime:
    """A time in seconds since 1970, in local time."""
    return datetime.fromtimestamp(min(max(seconds, 0), _LATEST))


def write_rows(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    yielding: Sequence[tuple[int, int]],
    right: Collection[int],
) -> None:
    """Write rows to stdout: a table that fits a terminal, or a line each with tabs in a pipe.

    Args:
        columns: headings, for terminals.
        rows: a cell for each column.
        yielding: which column is cut first where a terminal is narrow, and how much of it stays.
        right: columns that stand at the right.
    """
    rows = [[sanitize(streams.one_line(cell)) for cell in row] for row in rows]
    if streams.is_terminal(sys.stdout):
        width = shutil.get_terminal_size().columns
        write(_table([columns, *rows], width, yielding, right))
    else:
        write("".join("\t".join(row) + "\n" for row in rows))


def _table(
    rows: Sequence[Sequence[str]],
    width: int,
    yielding: Sequence[tuple[int, int]],
    right: Collection[int],
) -> str:
    """Rows in columns that fit into ``width``; what is cut ends in …."""
    from rich.cells import cell_len, set_cell_size

    def fit(cell: str, width: int) -> str:
        if cell_len(cell) > width:
            cell = set_cell_size(cell, width - 1) + "…"
        return set_cell_size(cell, width)

    widths = [max(map(cell_len, cells)) for cells in zip(*rows, strict=True)]
    for column, least in [*yielding, *((column, 1) for column in reversed(range(len(widths))))]:
        excess = sum(widths) + len(_GAP) * (len(widths) - 1) - width
        widths[column] -= max(0, min(excess, widths[column] - least))
    lines = []
    for row in rows:
        cells = [
            cell.rjust(widths[column]) if column in right else cell
            for column, cell in enumerate(row)
        ]
        lines.append(fit(_GAP.join(map(fit, cells, widths)), width).rstrip() + "\n")
    return "".join(lines)


def write_json(value: object) -> None:
    """Write one line of JSON to stdout."""
    write(escaped(json.dumps(value, ensure_ascii=False)))


def write(text: str) -> None:
    """Write a text to stdout."""
    writer = AnswerWriter()
    writer.write(text)
    writer.finish()
