"""Tables without lines, no wider than what they are drawn in."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from llama_chat.terminal.sanitizer import sanitize

_GAP = 2
"""Columns of the terminal between two columns of a table."""


@dataclass(frozen=True, slots=True)
class FittedTable:
    """Rows whose cells are cut, or folded, where the terminal is narrow."""

    rows: Sequence[Sequence[RenderableType]]
    """Texts are sanitized before they are drawn."""
    headings: Sequence[str] = ()
    """None of them: the table begins with its first row."""
    right: Collection[int] = ()
    """Columns aligned at the right."""
    yielding: Mapping[int, int] = field(default_factory=dict)
    """Columns in the order in which they give way, and the width at which each stops; the others
    follow, the last first."""
    fold: bool = False
    """Cells that do not fit take more lines."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        rows = [list(map(self._cell, row)) for row in self.rows]
        heads = [Text(heading, no_wrap=True, overflow="ellipsis") for heading in self.headings]
        cells = [*([heads] if heads else []), *rows]
        if not cells:
            return
        natural = [
            max(Measurement.get(console, options, cell).maximum for cell in column)
            for column in zip(*cells, strict=True)
        ]
        widths = self._fit(natural, options.max_width)
        table = Table(
            box=None, pad_edge=False, show_header=bool(heads), header_style="bold", padding=(0, 1)
        )
        for i, width in enumerate(widths):
            head = heads[i] if heads else ""
            table.add_column(head, justify="right" if i in self.right else "left", width=width)
        for row in rows:
            table.add_row(*row)
        # What is narrower than the gaps gets its left edge: the console crops, Rich would drop all.
        needed = sum(widths) + _GAP * (len(widths) - 1)
        yield from console.render(table, options.update(max_width=max(needed, options.max_width)))

    def _cell(self, cell: RenderableType) -> RenderableType:
        if not isinstance(cell, str):
            return cell
        return Text(
            sanitize(cell), no_wrap=not self.fold, overflow="fold" if self.fold else "ellipsis"
        )

    def _fit(self, natural: Sequence[int], available: int) -> list[int]:
        """Widths of the columns, in columns of the terminal; the sum with gaps fits if it can."""
        widths = list(natural)
        rest = dict.fromkeys(reversed(range(len(widths))), 1)
        excess = sum(widths) + _GAP * (len(widths) - 1) - available
        for column, least in [*self.yielding.items(), *rest.items()]:
            cut = max(0, min(excess, widths[column] - least))
            widths[column] -= cut
            excess -= cut
        return widths
