"""State of the line being read, and of the blocks that are open across lines."""

from dataclasses import dataclass, field
from enum import Enum, auto

from llama_chat.terminal.markdown.highlighting import Highlighter, highlighter, language
from llama_chat.terminal.markdown.inline import HELD_MAX
from llama_chat.terminal.markdown.line_starts import columns, without_indent
from llama_chat.terminal.markdown.painting import DIM, Span, stripped, width_of
from llama_chat.terminal.markdown.prose import ProseLine
from llama_chat.terminal.markdown.table import Table

_LANGUAGE_MAX = 20
"""Length to which the name of a language is cut."""


class Mode(Enum):
    """Treatment of the rest of a line."""

    START = auto()
    """Undecided: the kind of the line is not known yet."""
    BLANK = auto()
    PROSE = auto()
    VERBATIM = auto()
    """Written as it arrives."""
    WHOLE = auto()
    """Line of code or row of a table, processed once it is complete."""
    DROPPED = auto()
    """Fence, or delimiter row of a table; not written."""


@dataclass(slots=True)
class Line:
    """Line being read."""

    mode: Mode = Mode.START
    held: str = ""
    """Part of its beginning that is not processed yet."""
    pieces: list[str] = field(default_factory=list)
    """Pieces of a line that is processed once it is complete."""
    length: int = 0
    """Number of characters in the pieces."""
    margin: list[Span] = field(default_factory=list)
    """Left margin: indentation, bars of quotes, signs of list items."""
    hanging: list[Span] = field(default_factory=list)
    """The same for further lines of the block, with blanks instead of the signs."""
    depth: int = 0
    """Number of quotes it is in."""
    column: int = 0
    """Column in the innermost quote where the held text begins."""
    n_markers: int = 0
    has_item: bool = False
    """True if a list item begins in it."""


@dataclass(slots=True)
class Level:
    """State of the list items and the paragraph in one quote, or outside of all quotes."""

    items: list[int] = field(default_factory=list)
    """Columns in which the text of the open list items begins."""
    is_paragraph: bool = False
    """True if the next line may continue a paragraph."""
    columns: int = 0
    """Columns of the last line of the paragraph."""
    is_code: bool = False
    """True if the last line that is not empty is indented code."""

    def leave_items(self, indent: int) -> None:
        """Close the list items that a line with this indentation is not in."""
        while self.items and self.items[-1] > indent:
            self.items.pop()

    def start_of(self, indent: int) -> int:
        """Return the text column of the list item that such a line is in; 0 if in none."""
        return max((column for column in self.items if column <= indent), default=0)


@dataclass(slots=True)
class Fence:
    """Fenced code block, shown between two dim lines, the first with the language."""

    depth: int
    margin: list[Span]
    """Bars of the quotes it is in."""
    container: int
    """Column of the text of the list item it is in, where its code is shown."""
    indent: int
    """Column of the fence."""
    marker: str
    info: str
    """Language, perhaps with more behind."""
    highlighter: Highlighter | None = field(init=False)
    code_indent: int = field(init=False)
    """Columns of indentation removed from the code: at first those of the fence.

    Models often forget the indentation inside a list. A line that has less lowers the number for
    itself and all later lines.
    """

    def __post_init__(self) -> None:
        self.code_indent = self.indent
        self.highlighter = highlighter(self.info)

    @property
    def top(self) -> list[Span]:
        """Line above the code."""
        return self._edge(f"┌─ {language(self.info)[:_LANGUAGE_MAX]}".rstrip(" "))

    @property
    def bottom(self) -> list[Span]:
        """Line below the code."""
        return self._edge("└─")

    def _edge(self, line: str) -> list[Span]:
        return [*self.margin, Span(self.indentation), Span(line, DIM)]

    @property
    def indentation(self) -> str:
        """Blanks in front of each of its lines: those of the list item it is in."""
        return " " * min(self.container, self.code_indent)

    def is_closed_by(self, line: str) -> bool:
        """True if ``line`` is the closing fence."""
        marker = without_indent(line, self.indent + 3).rstrip(" \t")
        return len(marker) >= len(self.marker) and not marker.strip(self.marker[0])

    def spans(self, line: str) -> list[Span]:
        """Highlight a line of the code."""
        code = self._code(line)
        spans = self.highlighter.line(code) if self.highlighter else [Span(code)]
        return [Span(self.indentation), *spans] if code else spans

    def uncoloured(self, line: str) -> str:
        """Return the code of a line that is too long to highlight."""
        if self.highlighter:
            self.highlighter.forget()
        return self.plain(line)

    def plain(self, line: str) -> str:
        """Return a line of the code, or its beginning, as it is shown, without colours."""
        code = self._code(line)
        return self.indentation + code

    def _code(self, line: str) -> str:
        body = line.lstrip(" \t")
        if body:
            self.code_indent = min(self.code_indent, columns(line.removesuffix(body)))
        return without_indent(line, self.code_indent)


@dataclass(frozen=True, slots=True)
class Verbatim:
    """HTML or LaTeX block, written unchanged."""

    depth: int
    end: str
    """End of its last line; empty if only an empty line ends the block."""

    def uncoloured(self, line: str) -> str:
        """Return the line unchanged."""
        return line


@dataclass(slots=True)
class PendingTable:
    """Table, or a line that may be the header of one."""

    depth: int
    margin: list[Span]
    hanging: list[Span]
    prose: ProseLine
    """The line that may be the header; its margin and first cell are written if it is begun."""
    table: Table = field(init=False)
    is_certain: bool = False
    """True if there is a delimiter row below the header."""

    def __post_init__(self) -> None:
        self.table = Table(self.prose.text)

    def continues(self, line: str, *, complete: bool) -> bool:
        """True if ``line`` is, or as far as it is complete may be, a row of the table."""
        if self.prose.text.startswith("|"):
            return line.startswith("|")
        return "|" in line or not (complete or len(line) > HELD_MAX)

    def lines(self, width: int, *, wrap: bool) -> list[list[Span]]:
        """Lay out the table, without what is written, or format the line if it begins none."""
        if self.table.n_shown and not self.table.new_rows:
            return []
        margin = [] if self.prose.is_begun else self.margin
        if not self.is_certain:
            return [[*margin, *self.prose.finish()]]
        held = self.prose.held if self.prose.is_begun else ""
        first, *more = self.table.lay_out(width - width_of(self.hanging), held, wrap=wrap)
        lines = [[*margin, *self.prose.finish_cell(), *first]]
        return [stripped(line) for line in (*lines, *([*self.hanging, *line] for line in more))]
