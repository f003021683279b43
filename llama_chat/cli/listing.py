"""Writing of lists: a table for people, tabs for programs."""

import sys
from collections.abc import Collection, Mapping, Sequence

from llama_chat.terminal import streams
from llama_chat.terminal.sanitizer import sanitize
from llama_chat.terminal.streams import AnswerWriter


def write_rows(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    yielding: Mapping[int, int],
    right: Collection[int],
) -> None:
    """Write rows to stdout: a table that fits a terminal, or a line each with tabs in a pipe.

    Args:
        columns: headings, for terminals.
        rows: a cell for each column.
        yielding: minimum widths by column, in the order in which a narrow terminal cuts them.
        right: columns aligned at the right.
    """
    rows = [[sanitize(streams.one_line(cell)) for cell in row] for row in rows]
    if streams.is_terminal(sys.stdout):
        from rich.console import Console

        from llama_chat.terminal.tables import FittedTable

        console = Console(file=sys.stdout, highlight=False, color_system=None)
        console.print(FittedTable(rows, columns, right, yielding))
    else:
        write("".join("\t".join(row) + "\n" for row in rows))


def write(text: str) -> None:
    """Write a text to stdout."""
    writer = AnswerWriter()
    writer.write(text)
    writer.finish()
