"""Text from models and files, made harmless to a terminal."""

import re

BIDI_CONTROLS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Characters that reorder the text around them."""

_TABLE: dict[int, str] = {
    **{code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"},
    0x7F: "\u2421",
    **dict.fromkeys(range(0x80, 0xA0), "\ufffd"),
    **dict.fromkeys(map(ord, BIDI_CONTROLS), "\ufffd"),
    **dict.fromkeys(range(0xD800, 0xE000), "\ufffd"),
}

_UNESCAPED = re.compile(f"[\x7f-\x9f{BIDI_CONTROLS}]")
"""Characters among these that JSON and TOML let through."""


def escaped(text: str) -> str:
    """JSON or TOML that says the same, with no character that ``sanitize`` would replace."""
    return _UNESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def sanitize(text: str) -> str:
    """Replace every character that could begin a control sequence by a visible one.

    Character by character, with no state: a sequence split over tokens is harmless too, since its
    introducer never gets through. Newline and tab stay.
    """
    return text.translate(_TABLE)
