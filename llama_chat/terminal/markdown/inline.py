"""Inline Markdown as it streams: what is certain is released, what is open is held."""

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
)

HELD_MAX = 300
"""Characters after which an opening marker is taken literally: nobody waits longer for text."""

_PARSES_MAX = 20
"""Attempts to find a piece settled, before it waits for the end of the line."""


class _Unit(NamedTuple):
    """Something whose inside no other marker reaches, such as a code span."""

    complete: re.Pattern[str]
    """All of it, looking at the next character if that could make it longer."""
    partial: re.Pattern[str]
    """All the rest of the text, if more text could make it complete."""


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
"""Blanks at the end of a line are dropped, so they wait for what follows."""

_HEADING_SPACE = _unit(r"[ \t]+(?:#+[ \t]*)?(?=[^ \t#])", r"[ \t]+#*[ \t]*")
"""So are the hashes that may close a heading."""

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
"""What is given up on at once."""

_WORD_BEFORE = r"(?<![A-Za-z0-9])"
_STOP = re.compile(rf"[\\`*_~\[!<&]|{_WORD_BEFORE}https?://|{_WORD_BEFORE}{_URL_START}\Z|[ \t]+\Z")
"""The first character that needs a closer look."""

_HEADING_STOP = re.compile(rf"{_STOP.pattern}|[ \t]+#")

_NEEDS_PARSING = re.compile(r"[\\`*_~\[!<&:]")


class InlineStream:
    """One line of prose.

    Here is only decided where a piece ends that nothing to its right can change: no marker is open
    in it. markdown-it then parses the piece between its neighbours, so that all pieces together
    are what the whole line would be, as long as no marker is open for too long.

    What is released depends on the text alone, never on how it was cut.
    """

    def __init__(self, base: Style = PLAIN, *, heading: bool = False) -> None:
        """Begin a line in the style ``base``; the hashes at the end of a ``heading`` go."""
        self._base = base
        self._heading = heading
        self._space = _HEADING_SPACE if heading else _SPACE
        self._stop = _HEADING_STOP if heading else _STOP
        self._released: list[Span] = []
        self._before = self._last = ""
        """The last characters released and taken."""
        self._hold("")

    def _hold(self, text: str) -> None:
        """Begin a piece with ``text``."""
        self._held = text
        self._at = 0
        """What lies before this is looked through."""
        self._openers: list[int] = []
        self._has_delimiters = False
        """Whether ``*``, ``_`` or ``~~`` may be open."""
        self._n_brackets = 0
        self._may_be_settled = False
        """Whether a marker since the last attempt may have closed them."""
        self._n_parses = 0

    def push(self, text: str) -> list[Span]:
        """Take more of the line, without a newline; returns what is certain now."""
        # The character before decides whether an address can begin at the first one.
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

    def finish(self) -> list[Span]:
        """End the line; returns the rest, markers that are still open taken literally."""
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
        """Look through the held text, and release what is settled."""
        while True:
            while self._at < len(self._held) and self._step():
                self._release_if_settled()
            if len(self._held) <= HELD_MAX:
                return
            self._give_up()

    def _step(self) -> bool:
        """Pass one unit, marker or character; False if that needs more text."""
        character = self._held[self._at]
        if character in "*_~":
            return self._pass_delimiters()
        if character == "!":
            if self._at + 1 == len(self._held):
                return False
            return self._open_bracket("![") if self._held[self._at + 1] == "[" else self._pass(1)
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
        self._at += n_characters
        return True

    def _pass_unit(self, unit: _Unit) -> bool:
        if found := unit.complete.match(self._held, self._at):
            self._at = found.end()
            return True
        return not unit.partial.fullmatch(self._held, self._at) and self._pass(1)

    def _open_bracket(self, bracket: str) -> bool:
        self._openers.append(self._at)
        self._n_brackets += 1
        return self._pass(len(bracket))

    def _close_bracket(self) -> bool:
        self._n_brackets -= 1
        self._may_be_settled = True
        return True

    def _is_in_word(self) -> bool:
        before = self._held[self._at - 1] if self._at else self._before
        return before.isascii() and before.isalnum()

    def _pass_delimiters(self) -> bool:
        run = _RUN.match(self._held, self._at)
        if not run or run.end() == len(self._held):
            return False
        if run[0] != "~":
            state = StateInline(self._before + self._held, PARSER, {}, [])
            scanned = state.scanDelims(len(self._before) + self._at, run[1] != "_")
            self._may_be_settled = scanned.can_close
            if scanned.can_open:
                self._openers.append(self._at)
                self._has_delimiters = True
        return self._pass(len(run[0]))

    def _release_if_settled(self) -> None:
        """Release the text looked through if no marker is open in it."""
        if self._n_brackets:
            return
        if not self._has_delimiters:
            self._release(self._at)
        elif self._may_be_settled and self._n_parses < _PARSES_MAX:
            self._n_parses += 1
            self._may_be_settled = False
            parsed = self._parse(self._at)
            if parsed.settled:
                self._release(self._at, parsed)

    def _give_up(self) -> None:
        """Release text whose first marker has been open for too long.

        A marker in the second half may still be closed in time: it begins the next piece. One in
        the first half could too, but looking through the same text ever again would cost too much.
        """
        end = next((at for at in self._openers if at > HELD_MAX // 2), self._at)
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
    """A whole line or table cell at once."""
    line = InlineStream(base)
    return line.push(text) + line.finish()
