"""Lengths of what is drawn as one, such as a flag of two characters."""

from itertools import islice

from prompt_toolkit.document import Document
from wcwidth import grapheme_boundary_before, iter_graphemes


def length_before(text: str, count: int) -> int:
    """Return the number of characters in the last ``count`` graphemes of ``text``."""
    start = len(text)
    for _ in range(count):
        start = grapheme_boundary_before(text, start)
    return len(text) - start


def length_after(text: str, count: int) -> int:
    """Return the number of characters in the first ``count`` graphemes of ``text``."""
    return sum(map(len, islice(iter_graphemes(text), count)))


def left_of(document: Document, count: int = 1) -> int:
    """Return how far the cursor goes to be ``count`` graphemes further left in its line."""
    if count < 0:
        return right_of(document, -count)
    return -length_before(document.current_line_before_cursor, count)


def right_of(document: Document, count: int = 1) -> int:
    """Return how far the cursor goes to be ``count`` graphemes further right in its line."""
    if count < 0:
        return left_of(document, -count)
    return length_after(document.current_line_after_cursor, count)
