"""Sanitizing of text from models and files before it reaches a terminal."""

import re

BIDI_CONTROLS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Unicode characters that reorder the text around them."""

_TABLE: dict[int, str] = {
    **{code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"},
    0x7F: "\u2421",
    **dict.fromkeys(range(0x80, 0xA0), "\ufffd"),
    **dict.fromkeys(map(ord, BIDI_CONTROLS), "\ufffd"),
    **dict.fromkeys(range(0xD800, 0xE000), "\ufffd"),
}

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
