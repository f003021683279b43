"""What the chat shows on the terminal."""

import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from llama_chat.terminal.sanitizer import sanitize
from llama_chat.terminal.streams import use_color


class Renderer:
    """Writes replies as they stream, and notes between them.

    Append-only: nothing that was written is touched again, and the terminal does the wrapping, so
    that copying a long line gives one line.
    """

    def __init__(self, color: str = "auto") -> None:
        colored = use_color(color, sys.stdout)
        self.console = Console(
            file=sys.stdout,
            highlight=False,
            markup=False,
            emoji=False,
            no_color=not colored,
            soft_wrap=True,
        )
        self._at_line_start = True

    def stream(self, text: str) -> None:
        """Write a piece of a reply."""
        if text:
            self.console.out(sanitize(text), end="", highlight=False)
            self.console.file.flush()
            self._at_line_start = text.endswith("\n")

    def end_reply(self) -> None:
        """End the last line of a reply, and leave one free."""
        self.console.out("" if self._at_line_start else "\n")
        self._at_line_start = True

    def space(self) -> None:
        """Leave a line free."""
        self.console.out("")

    def note(self, line: str, style: str = "dim") -> None:
        """Write a line that is ours, in dim letters."""
        self.console.print(Text(sanitize(line), style=style))

    def error(self, line: str) -> None:
        """Write what went wrong."""
        self.note(line, "red")

    def table(
        self, columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = ()
    ) -> None:
        """Write a table without lines; ``right`` names the columns of numbers."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in columns:
            table.add_column(column, justify="right" if column in right else "left", no_wrap=True)
        for row in rows:
            table.add_row(*(Text(sanitize(cell)) for cell in row))
        self.console.print(table, soft_wrap=False)
