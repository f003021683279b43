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

_LINE_MAX = 500
"""Characters of a line beyond which it stays plain: some lexers take quadratic time."""

_STYLES = {
    "Token.Comment": Style(dim=True),
    "Token.Keyword": Style(color="magenta"),
    "Token.Literal.Number": Style(color="cyan"),
    "Token.Literal.String": Style(color="green"),
    "Token.Name.Attribute": Style(color="cyan"),
    "Token.Name.Builtin": Style(color="cyan"),
    "Token.Name.Class": Style(color="bright_blue", bold=True),
    "Token.Name.Decorator": Style(color="bright_blue"),
    "Token.Name.Function": Style(color="bright_blue"),
    "Token.Name.Tag": Style(color="magenta"),
    "Token.Generic.Deleted": Style(color="red"),
    "Token.Generic.Inserted": Style(color="green"),
    "Token.Generic.Heading": Style(bold=True),
    "Token.Generic.Subheading": Style(bold=True),
}
"""Colours of the palette, so that they are those the user has chosen; other tokens are plain.

Bright blue, since plain blue is hard to read on black.
"""

_COMMENTS = (("/*", "*/"), ("<!--", "-->"))
"""Many lexers know these comments only as a whole, so an open one is closed for them."""

LANGUAGES = frozenset(
    """
    ada apache asm awk bash bat bibtex c c# c++ clojure cmake cobol common-lisp console cpp cs
    csharp css cuda dart delphi diff docker dockerfile elisp elixir elm erlang fish fortran
    fsharp gas glsl go golang graphql groovy haskell hcl hs html html+jinja http ini java
    javascript jinja jl js json json5 jsx julia kotlin latex less lisp llvm lua make makefile
    markdown matlab md mysql nasm nginx nim nix objc objective-c ocaml octave pascal perl php
    plpgsql postgresql powershell prolog proto protobuf ps1 py pycon python python3 r racket rb
    rs ruby rust sass scala scheme scss sed sh shell solidity sql sqlite3 swift terraform tex
    toml ts tsx typescript udiff vb.net verilog vhdl vim vue xml yaml yml zig zsh
    """.split()  # noqa: SIM905 - a list would take a hundred lines
)
"""Names of languages that are coloured.

Pygments knows many more, but some of its lexers never come back from certain lines (mcschema and
easytrieve do not). No such line was found for these by feeding them thousands of hostile ones.
"""

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
        if len(text) > _LINE_MAX:
            self.forget()
            return [Span(text)]
        if len(self._window) == _WINDOW_LINES or self._n_characters > _WINDOW_CHARACTERS:
            self.forget()
        line = text + "\n"
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
    found = _LANGUAGE.search(info.lower())
    if not found or found[0] not in LANGUAGES:
        return None
    # Only now: not every conversation has code in it.
    from pygments.lexers import get_lexer_by_name
    from pygments.util import ClassNotFound

    try:
        return Highlighter(get_lexer_by_name(found[0], **_OPTIONS.get(found[0], {})))
    except ClassNotFound:  # an older Pygments
        return None
