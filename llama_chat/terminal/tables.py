"""Tables without borders that fit the width they are drawn in."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from llama_chat.terminal.sanitizer import sanitize

_GAP = 2
"""Terminal columns between two columns of a table."""


@dataclass(frozen=True, slots=True)
class FittedTable:
    """Table whose cells are cut or folded if the terminal is narrow."""

    rows: Sequence[Sequence[RenderableType]]
    """Cells; strings are sanitized before they are drawn."""
    headings: Sequence[str] = ()
    """Column headings; if all are empty there is no header row."""
    right: Collection[int] = ()
    """Columns aligned at the right."""
    yielding: Mapping[int, int] = field(default_factory=dict)
    """Minimum widths by column, in the order in which columns shrink; then all shrink to 1, the
    last first."""
    fold: bool = False
    """True if cells that do not fit take more lines, instead of being cut."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        rows = [list(map(self._cell, row)) for row in self.rows]
        headings = self.headings if any(self.headings) else ()
        heads = [Text(heading, no_wrap=True, overflow="ellipsis") for heading in headings]
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
        # If not even the gaps fit, the console crops the lines: Rich would drop all columns.
        needed = sum(widths) + _GAP * (len(widths) - 1)
        options = options.update(max_width=max(needed, options.max_width))
        for line in Segment.split_lines(console.render(table, options)):
            yield from _stripped(line)
            yield Segment.line()

    def _cell(self, cell: RenderableType) -> RenderableType:
        if not isinstance(cell, str):
            return cell
        return Text(
            sanitize(cell), no_wrap=not self.fold, overflow="fold" if self.fold else "ellipsis"
        )

    def _fit(self, natural: Sequence[int], available: int) -> list[int]:
        """Compute column widths in terminal columns; their sum with the gaps fits if possible."""
        widths = list(natural)
        rest = dict.fromkeys(reversed(range(len(widths))), 1)
        excess = sum(widths) + _GAP * (len(widths) - 1) - available
        for column, least in [*self.yielding.items(), *rest.items()]:
            cut = max(0, min(excess, widths[column] - least))
            widths[column] -= cut
            excess -= cut
        return widths


def _stripped(line: Sequence[Segment]) -> Sequence[Segment]:
    """Return a line without the blanks at its end, which would be copied."""
    for index in reversed(range(len(line))):
        if text := line[index].text.rstrip(" "):
            return [*line[:index], line[index]._replace(text=text)]
    return []
