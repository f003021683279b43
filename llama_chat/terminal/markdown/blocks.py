"""What can be open from one line to the next."""

from dataclasses import dataclass, field
from enum import Enum, auto

from llama_chat.terminal.markdown.highlighting import Highlighter
from llama_chat.terminal.markdown.line_starts import columns, without_indent
from llama_chat.terminal.markdown.painting import Span
from llama_chat.terminal.markdown.table import Table


class Mode(Enum):
    """What becomes of the rest of a line."""

    START = auto()
    """Its kind is not known yet."""
    BLANK = auto()
    PROSE = auto()
    VERBATIM = auto()
    """Written as it comes."""
    WHOLE = auto()
    """A line of code or the row of a table: dealt with when all of it is there."""
    DROPPED = auto()
    """A fence, or the line below the header of a table."""


@dataclass(slots=True)
class Line:
    """The line being read."""

    mode: Mode = Mode.START
    held: str = ""
    """What of its beginning is not dealt with yet."""
    pieces: list[str] = field(default_factory=list)
    """A line that is needed as a whole."""
    length: int = 0
    """Characters of the pieces."""
    margin: list[Span] = field(default_factory=list)
    """What is written at its left: indentation, bars of quotes, signs of list items."""
    hanging: list[Span] = field(default_factory=list)
    """The same for further lines of the same block: blanks instead of signs."""
    depth: int = 0
    """Quotes it is in."""
    column: int = 0
    """Where the held text begins in the innermost quote."""
    n_markers: int = 0
    has_item: bool = False
    """Whether a list item begins in it."""


@dataclass(slots=True)
class Level:
    """What is open in a quote, or outside of all."""

    items: list[int] = field(default_factory=list)
    """Columns in which the text of the open list items begins."""
    is_paragraph: bool = False
    """Whether the next line may go on with a paragraph."""
    is_code: bool = False
    """Whether the last line that is not empty is code by its indentation."""

    def leave_items(self, indent: int) -> None:
        """Close the items that a line with this indentation is not in."""
        while self.items and self.items[-1] > indent:
            self.items.pop()

    def start_of(self, indent: int) -> int:
        """The column in which the text of the item begins that such a line is in; 0 if in none."""
        return max((column for column in self.items if column <= indent), default=0)


@dataclass(slots=True)
class Fence:
    """Code between fences."""

    depth: int
    indent: int
    """Column of the fence."""
    marker: str
    highlighter: Highlighter | None
    code_indent: int = field(init=False)
    """How much of the indentation of the code is that of the fence.

    Models often forget the indentation inside a list. From the first line that has less than the
    fence, the code keeps what it has more than that line.
    """

    def __post_init__(self) -> None:
        self.code_indent = self.indent

    def is_closed_by(self, line: str) -> bool:
        """Whether ``line`` is the closing fence."""
        marker = without_indent(line, self.indent + 3).rstrip(" \t")
        return len(marker) >= len(self.marker) and not marker.strip(self.marker[0])

    def spans(self, line: str) -> list[Span]:
        """A line of the code, coloured."""
        code = self._code(line)
        return self.highlighter.line(code) if self.highlighter else [Span(code)]

    def uncoloured(self, line: str) -> str:
        """The code of a line that is too long for colours."""
        if self.highlighter:
            self.highlighter.forget()
        return self._code(line)

    def _code(self, line: str) -> str:
        body = line.lstrip(" \t")
        if body:
            self.code_indent = min(self.code_indent, columns(line.removesuffix(body)))
        return without_indent(line, self.code_indent)


@dataclass(frozen=True, slots=True)
class Verbatim:
    """HTML or LaTeX: lines as they are."""

    depth: int
    end: str
    """What its last line ends with; nothing if only an empty line ends it."""

    def uncoloured(self, line: str) -> str:
        """A line as it is."""
        return line


@dataclass(slots=True)
class PendingTable:
    """A table, or a line that would be the header of one."""

    depth: int
    margin: list[Span]
    hanging: list[Span]
    header: str
    table: Table
    is_certain: bool = False
    """Whether there is a delimiter row below the header."""
