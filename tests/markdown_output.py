"""Format Markdown in tests, and parse the output."""

import re
from collections.abc import Iterable, Mapping
from itertools import pairwise

from rich.color import ColorSystem
from rich.style import Style

from llama_chat.terminal.markdown import MarkdownStream, Painter

_CODES = {
    "1": "bold",
    "2": "dim",
    "3": "italic",
    "4": "underline",
    "9": "strike",
    "31": "red",
    "32": "green",
    "35": "magenta",
    "36": "cyan",
    "94": "bright blue",
}
_PIECE = re.compile(r"\x1b\[([1-9][0-9;]*)m([^\x1b\n]+)\x1b\[0m|([^\x1b]+)")

Styled = list[tuple[str, frozenset[str]]]
"""Characters, each with the names of its styles."""


def formatted(
    pieces: str | Iterable[str],
    *,
    width: int = 200,
    color: bool = False,
    wrap: bool = False,
    substitutes: Mapping[str, Style] | None = None,
) -> str:
    """Return all output for a text that arrives in ``pieces``; a string is one piece."""
    system = ColorSystem.STANDARD if color else None
    stream = MarkdownStream(Painter(system, substitutes=substitutes), lambda: width, wrap=wrap)
    pieces = [pieces] if isinstance(pieces, str) else pieces
    return "".join(stream.push(piece) for piece in pieces) + stream.finish()


def styled(output: str) -> Styled:
    """Parse ``output`` into characters and their styles.

    Raises:
        ValueError: if it has other escape sequences than styles, or a style that does not end in
            its line.
    """
    characters: Styled = []
    position = 0
    while position < len(output):
        piece = _PIECE.match(output, position)
        if not piece:
            raise ValueError(output[position:])
        codes, inside, plain = piece.groups()
        styles = frozenset(_CODES[code] for code in codes.split(";")) if codes else frozenset()
        characters += [(character, styles) for character in inside or plain]
        position = piece.end()
    return characters


def visible(characters: Styled) -> str:
    """Join the characters without their styles."""
    return "".join(character for character, _ in characters)


def having(source: str, style: str) -> list[str]:
    """Return the runs of characters that have ``style`` when ``source`` is formatted."""
    characters = styled(formatted(source, color=True))
    text = "".join(c if style in styles else "\0" for c, styles in characters)
    return [run for run in text.split("\0") if run]


def cut(text: str, places: Iterable[int]) -> list[str]:
    """Cut ``text`` into pieces at ``places``, modulo its length."""
    edges = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[start:end] for start, end in pairwise(edges)]
