"""Word wrap of prose that arrives in pieces: what is written is never changed."""

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator

from rich.cells import cell_len

from llama_chat.terminal.markdown.painting import Span
from llama_chat.terminal.sanitizer import sanitize

_PIECE = re.compile(r"[ \t]+|[^ \t]+")
_TAB_STOP = 8
"""Distance of the tab stops of a terminal."""

_WIDENING = "\ufe0f"
"""Variation selector after which a narrow character may be drawn wide."""

_NO_BREAK_BEFORE = frozenset({"Pe", "Pf", "Po", "Lm", "Mn", "Mc", "Me", "Cf", "Sk", "Zs"})
_NO_BREAK_AFTER = frozenset({"Ps", "Pi", "Cf"})
"""Unicode categories of characters that no row begins, or ends, with: closing punctuation, marks,
joiners and modifiers; opening punctuation and joiners."""


class WordWrap:
    """Breaker of one line of prose into rows that fit the terminal.

    A word is released once it is known to fit in its row. Rows are broken at blanks, which are
    dropped there, and beside wide characters. A word that is wider than a row has one of its own,
    where it is released as it arrives: the terminal breaks it, and copying it gives one line.
    """

    def __init__(
        self, margin: Iterable[Span], hanging: Iterable[Span], width: Callable[[], int]
    ) -> None:
        """Begin a line.

        Args:
            margin: what is written in front of it.
            hanging: what is to be written in front of its further rows.
            width: returns the current columns of the terminal; called for each row.
        """
        self._hanging = list(hanging)
        self._width = width
        self._limit = width()
        self._column = _column_after(0, margin)
        """Column after what is held, if it were in this row."""
        self._is_begun = False
        """True if the row has a word."""
        self._blanks: list[Span] = []
        self._word: list[Span] = []
        self._last = ""
        """Last character of the word; empty after a blank."""
        self._is_long = False
        """True while a word that is wider than a row is released as it arrives."""
        self._released: list[Span] = []

    def push(self, spans: Iterable[Span]) -> list[Span]:
        """Take more of the line; returns what fits, with a newline between two rows."""
        for text, style, whole in spans:
            for piece in [sanitize(text)] if whole else _PIECE.findall(sanitize(text)):
                if piece[:1] in (" ", "\t") and not whole:
                    self._end_word()
                    self._hold(self._blanks, Span(piece, style))
                    continue
                for part in [piece] if whole else _parts(piece):
                    self._add(Span(part, style))
        return self._take()

    def finish(self) -> list[Span]:
        """End the line; returns the rest."""
        self._end_word()
        if self._column <= self._limit:
            self._released += self._blanks
        self._blanks = []
        return self._take()

    def restart(self) -> list[Span]:
        """Begin a row without the held text; returns what is to be written in front of it."""
        self._word, self._last, self._is_long = [], "", False
        self._break()
        _, *hanging = self._take()
        return hanging

    def _take(self) -> list[Span]:
        released, self._released = self._released, []
        return released

    def _add(self, part: Span) -> None:
        """Take a part of a word, or a word beside a wide character."""
        if not part.text:
            return
        if self._last and _may_break(self._last, part.text[0]):
            self._end_word()
        self._last = part.text[-1]
        self._hold(self._word, part)
        if not self._is_long and self._column > self._limit and self._is_begun:
            self._break()
        if self._is_long or self._column > self._limit:
            self._is_long = True
            self._release()

    def _hold(self, held: list[Span], part: Span) -> None:
        held.append(part)
        self._column = _column_after(self._column, [part])

    def _break(self) -> None:
        """Begin a row; an indentation that leaves too little of it is left out."""
        self._limit = self._width()
        hanging = self._hanging
        self._column = _column_after(0, hanging)
        if self._column > self._limit // 2:
            hanging, self._column = [], 0
        self._column = _column_after(self._column, self._word)
        self._released += [Span("\n"), *hanging]
        self._blanks = []
        self._is_begun = False

    def _end_word(self) -> None:
        if self._word:
            self._release()
        self._last = ""
        self._is_long = False

    def _release(self) -> None:
        self._released += [*self._blanks, *self._word]
        self._blanks, self._word = [], []
        self._is_begun = True


def wrapped(text: str, width: int) -> str:
    """Return ``text`` with its lines broken between words, as ``WordWrap`` does."""

    def rows(line: str) -> str:
        wrap = WordWrap([], [], lambda: width)
        return _text([*wrap.push([Span(line)]), *wrap.finish()])

    return "\n".join(map(rows, text.split("\n")))


def _text(spans: Iterable[Span]) -> str:
    return "".join(span.text for span in spans)


def _column_after(column: int, spans: Iterable[Span]) -> int:
    """Return the column after ``spans`` that begin in ``column``."""
    for span in spans:
        *tabbed, rest = span.text.split("\t")
        for part in tabbed:
            column = (column + _cells(part)) // _TAB_STOP * _TAB_STOP + _TAB_STOP
        column += _cells(rest)
    return column


def _cells(text: str) -> int:
    """Return the most columns that a terminal may need: some draw joined emoji one by one.

    Those of a text are those of its pieces, wherever it is cut.
    """
    if text.isascii():
        return len(text)
    return sum(map(cell_len, text)) + text.count(_WIDENING)


def _parts(word: str) -> Iterator[str]:
    """Divide a word where a row may be broken in it."""
    start = 0
    if not word.isascii():
        for index in range(1, len(word)):
            if _may_break(word[index - 1], word[index]):
                yield word[start:index]
                start = index
    yield word[start:]


def _may_break(before: str, after: str) -> bool:
    """True if a row may be broken between two characters of a word."""
    return (
        (cell_len(before) > 1 or cell_len(after) > 1)
        and before not in "\"'"
        and after not in "\"'"
        and unicodedata.category(before) not in _NO_BREAK_AFTER
        and unicodedata.category(after) not in _NO_BREAK_BEFORE
    )
