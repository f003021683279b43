"""Colours for code, line by line, by Pygments."""

import re
from functools import cache
from typing import TYPE_CHECKING

from rich.style import Style

from llama_chat.terminal.markdown.painting import PLAIN, Span

if TYPE_CHECKING:
    from pygments.lexer import Lexer

_WINDOW_LINES = 100
_WINDOW_CHARACTERS = 4_000
"""How much of the code before a line is read again for it at most."""

_STYLES = {
    "Token.Comment": Style(dim=True),
    "Token.Keyword": Style(color="magenta"),
    "Token.Literal.Number": Style(color="cyan"),
    "Token.Literal.String": Style(color="green"),
    "Token.Name.Attribute": Style(color="cyan"),
    "Token.Name.Builtin": Style(color="cyan"),
    "Token.Name.Class": Style(color="blue", bold=True),
    "Token.Name.Decorator": Style(color="blue"),
    "Token.Name.Function": Style(color="blue"),
    "Token.Name.Tag": Style(color="magenta"),
    "Token.Generic.Deleted": Style(color="red"),
    "Token.Generic.Inserted": Style(color="green"),
    "Token.Generic.Heading": Style(bold=True),
    "Token.Generic.Subheading": Style(bold=True),
}
"""Colours of the palette, so that they are those the user has chosen; other tokens are plain."""

_COMMENTS = (("/*", "*/"), ("<!--", "-->"))
"""Many lexers know these comments only as a whole, so an open one is closed for them."""

_OPTIONS = {"php": {"startinline": True}}
"""Code in an answer often lacks ``<?php``."""

_LANGUAGE = re.compile(r"[^\s{}:,]+")

_Tokens = list[tuple[str, str]]
"""Kinds and texts."""


class Highlighter:
    """One block of code.

    A lexer reads from the beginning of a text and cannot be asked for its state at the end. So
    every new line is read again with the lines before it that matter: those since the last line
    that reads the same on its own. Mostly that is one line; inside a string or a comment it is all
    of them, but no more than the window: the cost of a line is bounded, however long the code.
    """

    def __init__(self, lexer: "Lexer") -> None:
        """Colour code by ``lexer``."""
        self._lexer = lexer
        self._window: list[str] = []
        self._n_characters = 0

    def line(self, text: str) -> list[Span]:
        """Colour the next line, given without its newline."""
        line = text + "\n"
        n_before = self._n_characters
        if len(self._window) >= _WINDOW_LINES or n_before + len(line) > _WINDOW_CHARACTERS:
            self.forget()
        alone = self._read([line])
        tokens = self._read([*self._window, line]) if self._window else alone
        if tokens == alone:
            self.forget()
        self._window.append(line)
        self._n_characters += len(line)
        return [Span(piece.rstrip("\n"), _style(kind)) for kind, piece in tokens]

    def forget(self) -> None:
        """Read the next line as if it were the first."""
        self._window.clear()
        self._n_characters = 0

    def _read(self, lines: list[str]) -> _Tokens:
        """The tokens of the last line."""
        code = "".join(lines)
        comment = (end for begin, end in _COMMENTS if code.rfind(begin) > code.rfind(end))
        whole = code + next(comment, "")
        try:
            tokens = [(str(kind), t) for _, kind, t in self._lexer.get_tokens_unprocessed(whole)]
        except Exception:  # many lexers by many authors: the code is worth more than its colours
            tokens = []
        if "".join(piece for _, piece in tokens) != whole:
            return [("Token", lines[-1])]
        return _between(tokens, len(code) - len(lines[-1]), len(code))


def _between(tokens: _Tokens, start: int, end: int) -> _Tokens:
    """The tokens between two places of their text; those across an edge are cut."""
    found: _Tokens = []
    position = 0
    for kind, piece in tokens:
        inside = piece[max(start - position, 0) : max(end - position, 0)]
        if inside:
            found.append((kind, inside))
        position += len(piece)
    return found


@cache
def _style(kind: str) -> Style:
    """The style of a kind of token: its own, or that of the nearest kind it belongs to."""
    while kind and kind not in _STYLES:
        kind = kind.rpartition(".")[0]
    return _STYLES.get(kind, PLAIN)


def highlighter(info: str) -> Highlighter | None:
    """Colours for the language that the ``info`` beside a fence names; None if it is unknown."""
    language = _LANGUAGE.search(info)
    if not language:
        return None
    # Only now: not every conversation has code in it.
    from pygments.lexers import get_lexer_by_name
    from pygments.lexers.special import TextLexer
    from pygments.util import ClassNotFound

    name = language[0].lower()
    try:
        lexer = get_lexer_by_name(name, **_OPTIONS.get(name, {}))
    except ClassNotFound:
        return None
    return None if isinstance(lexer, TextLexer) else Highlighter(lexer)
