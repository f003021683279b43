"""Syntax highlighting line by line, by Pygments."""

import re
from functools import cache
from typing import TYPE_CHECKING

from rich.style import Style

from llama_chat.terminal.markdown.painting import PLAIN, Span

if TYPE_CHECKING:
    from pygments.lexer import Lexer

_WINDOW_LINES = 100
_WINDOW_CHARACTERS = 4_000
"""Limits of the earlier code that is lexed again for each line."""

_LINE_MAX = 500
"""Length beyond which a line stays plain: some lexers take quadratic time."""

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
"""Styles by token kind, in palette colours, which the user has chosen; others are plain.

Bright blue, since plain blue is hard to read on black.
"""

_COMMENTS = (("/*", "*/"), ("<!--", "-->"))
"""Comments that many lexers recognise only once closed: an open one is closed for them."""

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
"""Names of languages that are highlighted.

Pygments knows many more, but some of its lexers never return on certain lines (mcschema and
easytrieve, for example). Fuzzing the lexers of these with thousands of lines found none.
"""

_OPTIONS = {"php": {"startinline": True}}
"""Lexer options by language; PHP code in an answer often lacks ``<?php``."""

_LANGUAGE = re.compile(r"[^\s{}:,]+")

_Tokens = list[tuple[str, str]]
"""Token kinds and texts."""


class Highlighter:
    """Highlighter of one block of code.

    A lexer starts at the beginning of a text and does not expose its state at the end. So each
    new line is lexed with the lines before it that matter: those since the last line that gives
    the same tokens on its own. Mostly that is one line; inside a string or a comment it is all of
    its lines, up to the limits of the window, which bound the cost of a line.
    """

    def __init__(self, lexer: "Lexer") -> None:
        """Highlight code with ``lexer``."""
        self._lexer = lexer
        self._window: list[str] = []
        self._n_characters = 0

    def line(self, text: str) -> list[Span]:
        """Highlight the next line, given without its newline."""
        if len(text) > _LINE_MAX:
            self.forget()
            return [Span(text)]
        if len(self._window) == _WINDOW_LINES or self._n_characters > _WINDOW_CHARACTERS:
            self.forget()
        line = text + "\n"
        alone = self._lex([line])
        tokens = self._lex([*self._window, line]) if self._window else alone
        if tokens == alone:
            self.forget()
        self._window.append(line)
        self._n_characters += len(line)
        return [Span(piece.rstrip("\n"), _style(kind)) for kind, piece in tokens]

    def forget(self) -> None:
        """Reset, so that the next line is lexed as if it were the first."""
        self._window.clear()
        self._n_characters = 0

    def _lex(self, lines: list[str]) -> _Tokens:
        """Return the tokens of the last line."""
        code = "".join(lines)
        comment = (end for begin, end in _COMMENTS if code.rfind(begin) > code.rfind(end))
        whole = code + next(comment, "")
        try:
            tokens = [(str(kind), t) for _, kind, t in self._lexer.get_tokens_unprocessed(whole)]
        except Exception:  # a bug of a lexer: the code is written plain
            tokens = []
        if "".join(piece for _, piece in tokens) != whole:
            return [("Token", lines[-1])]
        return _slice(tokens, len(code) - len(lines[-1]), len(code))


def _slice(tokens: _Tokens, start: int, end: int) -> _Tokens:
    """Return the tokens between two offsets in their text; those across an edge are cut."""
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
    """Return the style of a token kind, or of its nearest ancestor that has one."""
    while kind and kind not in _STYLES:
        kind = kind.rpartition(".")[0]
    return _STYLES.get(kind, PLAIN)


def language(info: str) -> str:
    """Return the language in the info string of a fence; empty if it names none."""
    found = _LANGUAGE.search(info)
    return found[0] if found else ""


def highlighter(info: str) -> Highlighter | None:
    """Return a highlighter for the info string of a fence; None if its language is unknown."""
    name = language(info).lower()
    if name not in LANGUAGES:
        return None
    # Imported late: neither the first prompt nor a command without replies waits for it.
    from pygments.lexers import get_lexer_by_name
    from pygments.util import ClassNotFound

    try:
        return Highlighter(get_lexer_by_name(name, **_OPTIONS.get(name, {})))
    except ClassNotFound:  # an older Pygments
        return None


def preload() -> None:
    """Load the highlighter of Python, so that a first block of code does not wait for it.

    Takes about 30 ms; that of another language then takes less.
    """
    highlighter("python")
