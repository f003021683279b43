"""Sanitizing of text from models and files before it reaches a terminal."""

import re
from collections.abc import Iterable
from itertools import takewhile

DIRECTION_MARKS = "\u061c\u200e\u200f"
"""Unicode characters that only have a direction, as letters do."""

BIDI_CONTROLS = DIRECTION_MARKS + "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Unicode characters that reorder the text around them, or have a direction unseen."""

REPLACEMENTS: dict[str, str] = {
    **{chr(code): chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"},
    "\x7f": "\u2421",
    **dict.fromkeys(map(chr, range(0x80, 0xA0)), "\ufffd"),
    **dict.fromkeys(BIDI_CONTROLS, "\ufffd"),
    **dict.fromkeys(map(chr, range(0xD800, 0xE000)), "\ufffd"),
}
"""Visible characters, each for one that a terminal must not get."""

_TABLE = str.maketrans(REPLACEMENTS)
_DATA_TABLE = {code: _TABLE[code] for code in _TABLE if chr(code) not in DIRECTION_MARKS + "\r"}
_LONE_RETURN = re.compile(r"\r(?!\n)")

_UNESCAPED = re.compile(f"[\x7f-\x9f{BIDI_CONTROLS}\u2028\u2029\ud800-\udfff]")
"""Characters that JSON may hold as they are, and a terminal, a script or UTF-8 may not."""


def escaped(text: str) -> str:
    """Escape the characters of JSON or TOML that ``sanitize`` would replace, and line separators.

    TOML has no escape for a lone surrogate.
    """
    return _UNESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def sanitize(text: str) -> str:
    """Replace control, reordering and surrogate characters by visible ones.

    Stateless: an escape sequence split over tokens is harmless too, since its first character is
    replaced. Newline and tab stay.
    """
    return text.translate(_TABLE)


def sanitize_data(text: str) -> str:
    """Sanitize text for a pipe: direction marks stay, and carriage returns before a newline."""
    return _LONE_RETURN.sub(REPLACEMENTS["\r"], text.translate(_DATA_TABLE))


def restored(line: str, text: str) -> str:
    """Return ``line``, which was edited from ``sanitize(text)``, with the characters of ``text``.

    Those between the first and the last edit stay as they were shown.
    """
    shown = sanitize(text)
    n_before = _n_common(line, shown)
    n_after = _n_common(reversed(line[n_before:]), reversed(shown[n_before:]))
    return text[:n_before] + line[n_before : len(line) - n_after] + text[len(text) - n_after :]


def _n_common(one: Iterable[str], other: Iterable[str]) -> int:
    """Return the number of characters with which both begin."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
