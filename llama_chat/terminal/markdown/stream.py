"""Streaming formatter of Markdown, line by line."""

import re
from collections.abc import Callable, Collection

from llama_chat.errors import counted
from llama_chat.terminal.markdown.blocks import (
    Fence,
    Level,
    Line,
    Mode,
    PendingTable,
    Verbatim,
)
from llama_chat.terminal.markdown.inline import HELD_MAX, InlineStream
from llama_chat.terminal.markdown.line_starts import Kind, Start, columns, recognise
from llama_chat.terminal.markdown.painting import DIM, HEADINGS, Painter, Span, stripped, width_of
from llama_chat.terminal.markdown.prose import ROW_MAX, ProseLine

CODE_MAX = 2_000
"""Length beyond which a line of code is written as it arrives, without colours."""

MARKERS_MAX = 32
"""Quotes and list items that may begin in one line; further markers are text."""

BAR = Span("│ ", DIM)
RULE = Span("─" * 8, DIM)
"""Horizontal rule, short enough that no terminal wraps it."""

_ALL = frozenset(Kind) - {Kind.TASK, Kind.UNDERLINE}
_ANYWHERE = frozenset({Kind.BULLET, Kind.NUMBER, Kind.FENCE, Kind.ROW})
"""Kinds recognised at any indentation, since models often indent them too far."""
_ITEMS = frozenset({Kind.BULLET, Kind.NUMBER})
_UNDERLINES = {"=": "═", "-": "─"}
_CLOSING = {"\\[": "\\]", "$$": "$$"}


class MarkdownStream:
    """Streaming formatter for a terminal that is only appended to.

    Returned text is final: later text never changes it. Code, and tables that do not fit, are left
    to the terminal to wrap, so that copying a long line gives one line; so is prose unless
    ``wrap`` is true.

    Unlike in CommonMark, emphasis and links end in the line they begin in, and lines are never
    joined.
    """

    def __init__(self, painter: Painter, width: Callable[[], int], *, wrap: bool = False) -> None:
        """Begin the text of one answer.

        Args:
            painter: converts spans to text for the terminal.
            width: returns the current columns of the terminal; called for each table and row.
            wrap: whether to break prose between words.
        """
        self._painter = painter
        self._width = width
        self._row_width = width if wrap else None
        self._written: list[str] = []
        self._line = Line()
        self._prose = ProseLine([], [], None)
        self._levels = [Level()]
        self._block: Fence | Verbatim | PendingTable | None = None
        self._is_after_blank = False
        self._n_more_blanks = 0
        """Number of empty lines left out, and written only if indented code surrounds them."""
        self._has_return = False
        """True if a carriage return is held, since its newline may follow."""

    @property
    def waiting(self) -> str:
        """Description of a held table, such as ``table, 5 rows``; empty if none is held.

        While it is not empty, the text returned so far is empty or ends with a newline.
        """
        block = self._block
        if not isinstance(block, PendingTable) or not block.is_certain or block.prose.is_begun:
            return ""
        n_rows = len(block.table.new_rows)
        return f"table, {counted(n_rows, 'row')}"

    def push(self, text: str) -> str:
        """Take more of the text; returns what is final now, ending in the default style."""
        if self._has_return:
            text = "\r" + text
        self._has_return = text.endswith("\r")
        self._read(text.removesuffix("\r").replace("\r\n", "\n"))
        return self._take()

    def finish(self) -> str:
        """End the text; returns the rest."""
        if self._has_return:
            self._has_return = False
            self._read("\r")
        line = self._line
        is_within = line.mode is not Mode.START or bool(line.held or line.margin)
        if is_within:
            self._decide(complete=True)
            self._end_line("")
            if isinstance(self._block, Fence) and line.mode is not Mode.DROPPED:
                self._write([], "\n")
        self._close_block("" if is_within else "\n")
        return self._take()

    def _take(self) -> str:
        written, self._written = "".join(self._written), []
        return written

    def _write(self, spans: list[Span], newline: str = "") -> None:
        self._written.append(self._painter.paint(spans) + newline)
        self._is_after_blank = False

    def _read(self, text: str) -> None:
        position = 0
        while position < len(text):
            if self._line.mode is not Mode.START:
                end = text.find("\n", position)
                self._continue(text[position : end if end >= 0 else None])
                if end < 0:
                    return
                position = end + 1
                self._end_line("\n")
                continue
            # Character by character until the kind is known, so that splits do not matter.
            if text[position] == "\n":
                self._decide(complete=True)
                self._end_line("\n")
            else:
                self._line.held += text[position]
                self._decide(complete=False)
            position += 1

    # The beginning of a line

    def _decide(self, *, complete: bool) -> None:
        """Process the beginning of the line, as far as its kind is certain."""
        line = self._line
        while line.mode is Mode.START and self._decide_next(complete):
            pass
        held_max = ROW_MAX if isinstance(self._block, PendingTable) else HELD_MAX
        if line.mode is Mode.START and len(line.held) > held_max:
            self._close_block()
            self._begin_prose(line.held)

    def _decide_next(self, complete: bool) -> bool:
        """Process the next marker; returns False if the kind is known or more text is needed."""
        line, block = self._line, self._block
        body = line.held.lstrip(" \t")
        if block and line.depth == block.depth:
            return self._continue_block(block, body, complete)
        if not body:
            if complete:
                self._close_block()
                line.mode = Mode.BLANK
            return False
        indent = columns(line.held.removesuffix(body), line.column)
        level = self._levels[line.depth]
        if not block and indent >= 4 and not level.is_paragraph and not level.start_of(indent):
            if level.is_code and self._is_after_blank:
                self._written.append("\n" * self._n_more_blanks)
            level.is_code = True
            self._begin_verbatim(line.held)
            return False
        kinds = {Kind.QUOTE} if block else self._possible_kinds(indent)
        start = recognise(body + "\n" * complete, kinds)
        if not start:
            return False
        if block and start.kind is not Kind.QUOTE:
            self._close_block()
        else:
            self._begin(start, body, indent)
        return True

    def _continue_block(
        self, block: Fence | Verbatim | PendingTable, body: str, complete: bool
    ) -> bool:
        """Begin a line if it continues the open block; otherwise end the block.

        Returns:
            True if the block has ended.
        """
        belongs = True
        if isinstance(block, Fence):
            self._begin_whole(self._line.held)
        elif not body:
            belongs = not complete
        elif isinstance(block, Verbatim):
            begin = self._begin_whole if block.end else self._begin_verbatim
            begin(self._line.held)
        elif block.is_certain:
            belongs = block.continues(body, complete=complete)
            if "|" in body and belongs:
                self._begin_whole(body)
        elif complete:
            belongs = block.is_certain = block.table.delimit(body)
            if belongs:
                self._line.mode = Mode.DROPPED
        else:
            belongs = body[-1] in "|:- \t"  # earlier ones are checked already
        if not belongs:
            self._close_block()
        return not belongs

    def _possible_kinds(self, indent: int) -> Collection[Kind]:
        """Return the kinds of lines that can begin in the column ``indent`` of a quote."""
        line, level = self._line, self._levels[self._line.depth]
        kinds = _ALL if indent - level.start_of(indent) < 4 else _ANYWHERE
        if line.has_item:
            kinds |= {Kind.TASK}
        elif level.is_paragraph and kinds is _ALL and indent >= max(level.items, default=0):
            kinds |= {Kind.UNDERLINE}
        return kinds if line.n_markers < MARKERS_MAX else kinds - _ITEMS - {Kind.QUOTE}

    def _begin(self, start: Start, body: str, indent: int) -> None:
        """Begin a line of a known kind, or enter the quote or list item it begins with."""
        line, level = self._line, self._levels[self._line.depth]
        blanks = Span(line.held.removesuffix(body))
        line.margin.append(blanks)
        line.hanging.append(blanks)
        kind, marker = start
        level.is_code = False
        rest = body[marker.end() :] if marker else ""
        if not marker or (kind in _ITEMS and level.is_paragraph and not rest.strip(" \t")):
            if not level.is_paragraph:
                level.leave_items(indent)
            self._begin_prose(body)
            return
        level.leave_items(indent)
        level.is_paragraph = False
        line.held = rest
        match kind:
            case Kind.QUOTE:
                self._begin_quote()
            case Kind.BULLET | Kind.NUMBER:
                self._begin_item(marker[0], indent)
            case Kind.TASK:
                line.margin.append(Span("☐" if marker[1] == " " else "☑"))
                line.hanging.append(Span("  "))
                self._begin_prose(rest)
            case Kind.HEADING:
                style = HEADINGS[min(len(marker[1]), len(HEADINGS)) - 1]
                self._begin_prose(rest, InlineStream(style, heading=True))
            case Kind.UNDERLINE:
                fits = level.columns <= self._width() - width_of(line.margin)
                length = level.columns if fits else len(RULE.text)
                line.margin.append(Span(_UNDERLINES[marker[1]] * length, DIM))
                self._begin_verbatim("")
            case Kind.RULE:
                line.margin.append(RULE)
                self._begin_verbatim("")
            case Kind.FENCE:
                self._begin_fence(marker, indent)
            case Kind.ROW:
                self._begin_whole(body)
            case _:
                self._block = Verbatim(line.depth, _CLOSING.get(marker[0].strip(), ""))
                self._begin_verbatim(body)

    def _begin_quote(self) -> None:
        line = self._line
        line.margin.append(BAR)
        line.hanging.append(BAR)
        line.depth += 1
        line.column = 0
        line.n_markers += 1
        if line.depth == len(self._levels):
            self._levels.append(Level())

    def _begin_item(self, marker: str, indent: int) -> None:
        line = self._line
        sign = marker.rstrip(" \t")
        blanks = marker.removeprefix(sign)
        text_column = columns(blanks, indent + len(sign))
        self._levels[line.depth].items.append(text_column)
        line.margin.append(Span((sign if sign[0].isdigit() else "•") + blanks))
        line.hanging.append(Span(" " * (text_column - indent)))
        line.column = text_column
        line.n_markers += 1
        line.has_item = True

    def _begin_fence(self, marker: re.Match[str], indent: int) -> None:
        line = self._line
        fence, info = (marker[1], marker[2]) if marker[1] else (marker[3], marker[4])
        container = self._levels[line.depth].start_of(indent)
        n_outer = next((n for n, s in reversed([*enumerate(line.margin, 1)]) if s is BAR), 0)
        self._block = Fence(line.depth, line.margin[:n_outer], container, indent, fence, info)
        if line.has_item:
            self._write(stripped(line.margin), "\n")
        self._write(self._block.top, "\n")
        line.mode = Mode.DROPPED

    def _begin_prose(self, text: str, heading: InlineStream | None = None) -> None:
        line = self._line
        line.mode = Mode.PROSE
        self._levels[line.depth].is_paragraph = not heading
        self._prose = ProseLine(line.margin, line.hanging, self._row_width, heading)
        self._write(line.margin)
        self._continue(text)

    def _begin_verbatim(self, text: str) -> None:
        self._line.mode = Mode.VERBATIM
        self._write([*self._line.margin, Span(text)])

    def _begin_whole(self, text: str) -> None:
        self._line.mode = Mode.WHOLE
        self._continue(text)

    # The rest of a line

    def _continue(self, text: str) -> None:
        """Take more of a line whose kind is known."""
        line, block = self._line, self._block
        if line.mode is Mode.PROSE:
            self._write(self._prose.push(text))
        elif line.mode is Mode.VERBATIM:
            self._write([Span(text)])
        elif line.mode is Mode.WHOLE:
            line.pieces.append(text)
            line.length += len(text)
            if block is None and line.length > ROW_MAX:
                self._begin_prose("".join(line.pieces))
            elif isinstance(block, Fence | Verbatim) and line.length > CODE_MAX:
                self._begin_verbatim(block.uncoloured("".join(line.pieces)))

    def _end_line(self, newline: str) -> None:
        """End a line; ``newline`` is empty if the text ends within it."""
        line = self._line
        match line.mode:
            case Mode.BLANK:
                self._end_blank(newline)
            case Mode.PROSE:
                if self._prose.held:
                    self._block = PendingTable(line.depth, line.margin, line.hanging, self._prose)
                else:
                    self._write(self._prose.finish(), newline)
                    self._levels[line.depth].columns = self._prose.columns
            case Mode.VERBATIM:
                self._write([], newline)
            case Mode.WHOLE:
                self._end_whole("".join(line.pieces), newline)
        del self._levels[line.depth + 1 :]
        self._line = Line()

    def _end_blank(self, newline: str) -> None:
        line = self._line
        self._levels[line.depth].is_paragraph = False
        if line.depth or line.has_item:
            self._write(stripped(line.margin), newline)
        elif self._is_after_blank:
            self._n_more_blanks += 1
        else:
            self._write([], newline)
            self._is_after_blank = True
            self._n_more_blanks = 0

    def _end_whole(self, text: str, newline: str) -> None:
        line, block = self._line, self._block
        match block:
            case Fence():
                if block.is_closed_by(text):
                    self._close_block(newline)
                else:
                    self._write([*line.margin, *block.spans(text)], newline)
            case Verbatim():
                self._write([*line.margin, Span(text)], newline)
                if text.rstrip(" \t").endswith(block.end):
                    self._block = None
            case PendingTable():
                block.table.add(text)
            case None:
                prose = ProseLine(line.margin, line.hanging, self._row_width, row=text)
                self._block = PendingTable(line.depth, line.margin, line.hanging, prose)

    def _close_block(self, newline: str = "\n") -> None:
        """End the open block; ``newline`` ends its last line if that is written now."""
        block, self._block = self._block, None
        if isinstance(block, Fence):
            self._write(block.bottom, newline)
        if not isinstance(block, PendingTable):
            return
        lines = block.lines(self._width(), wrap=self._row_width is not None)
        for n_more, line in zip(reversed(range(len(lines))), lines, strict=True):
            self._write(line, "\n" if n_more else newline)
        level = self._levels[block.depth]
        level.is_paragraph, level.columns = not block.is_certain, block.prose.columns
