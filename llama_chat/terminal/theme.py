"""Colours that suit the background of the terminal."""

import os
from collections.abc import Mapping

from rich.style import Style

_SUBSTITUTES: Mapping[str, Mapping[str, Style]] = {
    "dark": {},
    "light": {"bright_blue": Style(color="blue"), "cyan": Style(color="blue")},
    "": {"bright_blue": Style(bold=True)},
}
"""Styles by background, and by the colour they replace; the last are for an unknown background."""


def substitutes(theme: str) -> Mapping[str, Style]:
    """Return styles for colours that are hard to read with the setting ``theme``."""
    return _SUBSTITUTES[_background() if theme == "auto" else theme]


def _background() -> str:
    """Return ``dark`` or ``light`` if COLORFGBG says so, else an empty text.

    Terminals can be asked for their background, too. But an answer that comes late, as over slow
    connections, would be read as if it were typed.
    """
    number = os.environ.get("COLORFGBG", "").rpartition(";")[2]
    if not number.isdecimal():
        return ""
    return "light" if int(number) in (7, *range(9, 16)) else "dark"
