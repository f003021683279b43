"""Colours that suit the background of the terminal."""

import os
import re
from collections.abc import Mapping

from rich.style import Style

_SUBSTITUTES: Mapping[str, Mapping[str, Style]] = {
    "dark": {},
    "light": {"bright_blue": Style(color="blue"), "cyan": Style(color="blue")},
    "": {"bright_blue": Style(bold=True)},
}
"""Styles by background, and by the colour they replace; the last are for an unknown background."""


_REPORT = re.compile(r"\x1b\]11;rgba?:([0-9a-f]+)/([0-9a-f]+)/([0-9a-f]+)", re.IGNORECASE)
"""Report of the colour of the background, as OSC 11 asks for it."""

_WEIGHTS = (0.299, 0.587, 0.114)
"""Parts of red, green and blue in what looks bright."""

_TYPING_TERMINALS = ("linux", "eterm", "cons25")
"""Terminals that write a question which they do not know, by the beginning of TERM."""


class Background:
    """Background of the terminal: by COLORFGBG, or by a report of the terminal.

    Nothing waits for the report: it comes among the keys, sooner or later or never.
    """

    def __init__(self) -> None:
        number = os.environ.get("COLORFGBG", "").rpartition(";")[2]
        self.name = ""
        """``dark`` or ``light``, or empty while it is not known."""
        if number.isdecimal():
            self.name = "light" if int(number) in (7, *range(9, 16)) else "dark"
        self._is_asked = bool(self.name) or os.environ.get("TERM", "").startswith(_TYPING_TERMINALS)

    def question(self) -> str:
        """Return the sequence that asks the terminal; empty if it was asked, or must not be."""
        question = "" if self._is_asked else "\x1b]11;?\x1b\\"
        self._is_asked = True
        return question

    def hear(self, report: str) -> None:
        """Take up a sequence from the terminal, if it is a report of its background."""
        if found := _REPORT.match(report):
            shares = (int(digits, 16) / (16 ** len(digits) - 1) for digits in found.groups())
            light = sum(weight * share for weight, share in zip(_WEIGHTS, shares, strict=True))
            self.name = "light" if light > 0.5 else "dark"


def substitutes(theme: str, background: Background) -> Mapping[str, Style]:
    """Return styles for colours that are hard to read with the setting ``theme``."""
    return _SUBSTITUTES[background.name if theme == "auto" else theme]
