"""Streaming inline Markdown: text that is final is released, the rest is held."""

import re
from typing import NamedTuple

from markdown_it.common import html_re
from markdown_it.rules_inline import StateInline
from rich.style import Style

from llama_chat.terminal.markdown.painting import PLAIN, Span
from llama_chat.terminal.markdown.parsing import (
    ESCAPABLE,
    MATH,
    PARSER,
    URL,
    URL_CHARACTERS,
    Parsed,
    is_within_word,
)

HELD_MAX = 300
"""Maximum number of characters held; then an open marker is taken literally."""

_PARSES_MAX = 20
"""Maximum number of parses that test if all markers in a held piece are closed."""


class _Unit(NamedTuple):
    """Construct in which no other marker has a meaning, such as a code span."""

    complete: re.Pattern[str]
    """Matches all of it, with a lookahead if the next character could make it longer."""
    partial: re.Pattern[str]
    """Matches all the rest of the text, if more text could make it complete."""


def _unit(complete: str, partial: str) -> _Unit:
    return _Unit(re.compile(complete), re.compile(partial))


_TAG = "|".join(
    (
        html_re.open_tag,
        html_re.close_tag,
        html_re.comment,
        html_re.processing,
        html_re.declaration,
        html_re.cdata,
    )
)
_ADDRESS = r"<[A-Za-z][A-Za-z0-9+.\-]{1,31}:[^<>\x00-\x20]*>"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9\-]{0,61}[A-Za-z0-9])?"
_NAME = r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~\-]"
_URL_START = r"h(?:t(?:t(?:ps?(?::/?)?)?)?)?"

_UNITS = {
    "`": _unit(r"(`+)(?!`).*?(?<!`)\1(?=[^`])", r"`.*"),
    "\\": _unit(rf"{MATH}|\\(?:{ESCAPABLE}|[\\)\]])", r"\\(?:[(\[].*)?"),
    "&": _unit(
        r"&(?:#[xX][0-9a-fA-F]{1,6}|#[0-9]{1,7}|[A-Za-z][A-Za-z0-9]{1,31});",
        r"&(?:#(?:[xX][0-9a-fA-F]{0,6}|[0-9]{0,7})|[A-Za-z][A-Za-z0-9]{0,31})?",
    ),
    "<": _unit(
        rf"{_TAG}|{_ADDRESS}|<{_NAME}+@{_LABEL}(?:\.{_LABEL})*>",
        r"<(?:/?[A-Za-z][A-Za-z0-9\-]*"
        r"""(?:[\s/](?:[^<>"']|"[^"]*"|'[^']*')*(?:"[^"]*|'[^']*)?)?"""
        rf"|/|[!?].*|[A-Za-z][A-Za-z0-9+.\-]*:[^<>\x00-\x20]*|{_NAME}*(?:@[A-Za-z0-9.\-]*)?)",
    ),
    "h": _unit(
        # The end of the run is looked for first, and only once: the address itself backtracks.
        rf"(?=https?://[{URL_CHARACTERS}()]*+[^{URL_CHARACTERS}()]){URL}",
        rf"{_URL_START}|https?://[{URL_CHARACTERS}()]*",
    ),
}

_SPACE = _unit(r"[ \t]+(?=[^ \t])", r"[ \t]+")
"""Blanks, held until text follows: at the end of a line they are dropped."""

_HEADING_SPACE = _unit(r"[ \t]+(?:#+[ \t]*)?(?=[^ \t#])", r"[ \t]+#*[ \t]*")
"""The same with the hashes that may close a heading."""

_DESTINATION = r"(?:[^\x00-\x20()\\]|\\.|\((?:[^\x00-\x20()\\]|\\.|\([^\x00-\x20()]*\))*\))*"
_LINK_END = _unit(
    rf"\]\([ \t]*(?:<[^<>]*>|(?!<){_DESTINATION})"
    r"""(?:[ \t]+(?:"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|\((?:\\.|[^()\\])*\)))?[ \t]*\)""",
    r"\](?:\([ \t]*(?:<[^<>]*>?|[^\x00-\x20]*)"
    r"""(?:[ \t]+(?:"(?:\\.|[^"\\])*\\?"?|'(?:\\.|[^'\\])*\\?'?|\((?:\\.|[^()\\])*\\?\)?)?)?"""
    r"[ \t]*)?",
)
"""The ``](address "title")`` after the text of a link."""

_RUN = re.compile(r"(.)\1*", re.DOTALL)
_LITERAL = re.compile(r"`+|\*+|_+|~+|\\[(\[]|!\[|.", re.DOTALL)
"""Marker or character that is taken literally if a piece is held for too long."""

_WORD_BEFORE = r"(?<![A-Za-z0-9])"
_STOP = re.compile(rf"[\\`*_~\[!<&]|{_WORD_BEFORE}https?://|{_WORD_BEFORE}{_URL_START}\Z|[ \t]+\Z")
"""First character that may be, or begin, a marker or unit; or blanks at the end."""

_HEADING_STOP = re.compile(rf"{_STOP.pattern}|[ \t]+#")

_NEEDS_PARSING = re.compile(r"[\\`*_~\[!<&:]")


class InlineStream:
    """Formatter of one line of prose.

    It only finds the end of a piece that later text cannot change, since no marker is open in it.
    markdown-it then parses the piece with the characters before and after it, so that all pieces
    together equal the whole line, unless a marker is open for too long.

    The released pieces depend on the text alone, not on how it is split between calls of ``push``.
    """

    def __init__(self, base: Style = PLAIN, *, heading: bool = False) -> None:
        """Begin a line in the style ``base``; hashes at the end of a ``heading`` are dropped."""
        self._base = base
        self._heading = heading
        self._space = _HEADING_SPACE if heading else _SPACE
        self._stop = _HEADING_STOP if heading else _STOP
        self._released: list[Span] = []
        self._before = self._last = ""
        """Last character released, and last one pushed."""
        self._hold("")

    def _hold(self, text: str) -> None:
        """Begin a piece with ``text``."""
        self._held = text
        self._position = 0
        """Index of the next held character to scan."""
        self._openers: list[int] = []
        self._has_delimiters = False
        """True if ``*``, ``_`` or ``~~`` may be open."""
        self._n_brackets = 0
        self._may_be_closed = False
        """True if a marker since the last parse may have closed them."""
        self._n_parses = 0

    def push(self, text: str) -> list[Span]:
        """Take more of the line, without a newline; returns the spans that are final now."""
        # Searched with the last character, which decides if an address can begin after it.
        line = self._last + text
        position = len(self._last)
        while position < len(line):
            if not self._held:
                plain = self._stop.search(line, position)
                end = plain.start() if plain else len(line)
                if end > position:
                    self._emit(line[position:end])
                    position = end
                    continue
            self._held += line[position]
            position += 1
            self._advance()
        self._last = line[-1:]
        return self._take()

    @property
    def held(self) -> str:
        """The text that is not released yet."""
        return self._held

    def finish(self) -> list[Span]:
        """End the line; returns the rest, with open markers taken literally."""
        rest = self._held.rstrip(" \t")
        if self._heading:
            text = rest.rstrip("#")
            rest = text.rstrip(" \t") if text.endswith((" ", "\t")) else rest
        self._held = rest
        self._release(len(rest))
        return self._take()

    def _take(self) -> list[Span]:
        released, self._released = self._released, []
        return released

    def _advance(self) -> None:
        """Scan the held text, and release what later text cannot change."""
        while True:
            while self._position < len(self._held) and self._step():
                self._release_if_closed()
            if len(self._held) <= HELD_MAX:
                return
            self._give_up()

    def _step(self) -> bool:
        """Scan one unit, marker or character; returns False if that needs more text."""
        character = self._held[self._position]
        if character in "*_~":
            return self._pass_delimiters()
        if character == "!":
            if self._position + 1 == len(self._held):
                return False
            return (
                self._open_bracket("![") if self._held[self._position + 1] == "[" else self._pass(1)
            )
        if character == "[":
            return self._open_bracket("[")
        if character == "]" and self._n_brackets:
            return self._pass_unit(_LINK_END) and self._close_bracket()
        if character in " \t":
            return self._pass_unit(self._space)
        if character == "h" and self._is_in_word():
            return self._pass(1)
        unit = _UNITS.get(character)
        return self._pass_unit(unit) if unit else self._pass(1)

    def _pass(self, n_characters: int) -> bool:
        self._position += n_characters
        return True

    def _pass_unit(self, unit: _Unit) -> bool:
        if found := unit.complete.match(self._held, self._position):
            self._position = found.end()
            return True
        return not unit.partial.fullmatch(self._held, self._position) and self._pass(1)

    def _open_bracket(self, bracket: str) -> bool:
        self._openers.append(self._position)
        self._n_brackets += 1
        return self._pass(len(bracket))

    def _close_bracket(self) -> bool:
        self._n_brackets -= 1
        self._may_be_closed = True
        return True

    def _is_in_word(self) -> bool:
        before = self._held[self._position - 1] if self._position else self._before
        return before.isascii() and before.isalnum()

    def _pass_delimiters(self) -> bool:
        run = _RUN.match(self._held, self._position)
        if not run or run.end() == len(self._held):
            return False
        if run[0] != "~":
            state = StateInline(self._before + self._held, PARSER, {}, [])
            scanned = state.scanDelims(len(self._before) + self._position, run[1] != "_")
            self._may_be_closed = scanned.can_close
            before = (self._before + self._held[: self._position])[-1:]
            if scanned.can_open and not is_within_word(before, self._held[run.end()]):
                self._openers.append(self._position)
                self._has_delimiters = True
        return self._pass(len(run[0]))

    def _release_if_closed(self) -> None:
        """Release the scanned text if no marker is open in it."""
        if self._n_brackets:
            return
        if not self._has_delimiters:
            self._release(self._position)
        elif self._may_be_closed and self._n_parses < _PARSES_MAX:
            self._n_parses += 1
            self._may_be_closed = False
            parsed = self._parse(self._position)
            if parsed.settled:
                self._release(self._position, parsed)

    def _give_up(self) -> None:
        """Release text whose first marker has been open for too long.

        A marker in the second half may still be closed in time: it begins the next piece. One in
        the first half could too, but scanning the same text again and again would cost too much.
        """
        end = next((at for at in self._openers if at > HELD_MAX // 2), self._position)
        if not end and (literal := _LITERAL.match(self._held)):
            end = literal.end()
        self._release(end)

    def _parse(self, end: int) -> Parsed:
        return Parsed(self._before, self._held[:end], self._held[end : end + 1])

    def _release(self, end: int, parsed: Parsed | None = None) -> None:
        piece = self._held[:end]
        if parsed or _NEEDS_PARSING.search(piece):
            self._released += (parsed or self._parse(end)).spans(self._base)
            self._before = piece[-1]
        elif piece:
            self._emit(piece)
        self._hold(self._held[end:])

    def _emit(self, plain: str) -> None:
        self._released.append(Span(plain, self._base))
        self._before = plain[-1]


def format_line(text: str, base: Style = PLAIN) -> list[Span]:
    """Format a whole line or table cell."""
    line = InlineStream(base)
    return line.push(text) + line.finish()
