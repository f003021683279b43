"""Breaking of lines into rows, where a character of two columns may not fit into the last one."""

from collections.abc import Callable, Iterable

from prompt_toolkit.formatted_text import fragment_list_to_text, to_formatted_text
from prompt_toolkit.formatted_text.utils import fragment_list_width
from prompt_toolkit.layout.controls import GetLinePrefixCallable, UIContent
from prompt_toolkit.layout.screen import _CHAR_CACHE


def end_of(
    widths: Iterable[int], columns: int, indent: Callable[[int], int] = lambda row: 0
) -> tuple[int, int]:
    """Break a line at ``columns``; returns the row and the column in which it ends, from 0.

    At the margin the column is ``columns``: only a further character begins another row.

    Args:
        widths: columns of its characters.
        columns: those of the terminal.
        indent: returns the columns that are taken before the text of a row.
    """
    row, column = 0, indent(0)
    for width in widths:
        if column + width > columns:
            row += 1
            column = indent(row)
        column += width
    return row, column


def height_for_line(
    content: UIContent,
    lineno: int,
    width: int,
    get_line_prefix: GetLinePrefixCallable | None,
    slice_stop: int | None = None,
) -> int:
    """Count the rows of a line as ``Window`` draws it.

    ``UIContent.get_height_for_line`` divides the columns of the text by those of the window. It
    knows neither columns that stay free at the margin nor characters that are drawn as others: the
    cursor would be below the last row shown.
    """

    def indent(row: int) -> int:
        prefix = get_line_prefix(lineno, row) if get_line_prefix else ""
        return fragment_list_width(to_formatted_text(prefix))

    text = fragment_list_to_text(content.get_line(lineno))[:slice_stop]
    row, _ = end_of((_CHAR_CACHE[character, ""].width for character in text), width, indent)
    return row + 1
