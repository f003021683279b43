"""Tables of the program: of lists, counts and settings."""

from rich.console import Console

from llama_chat.terminal.tables import FittedTable


def drawn(table: FittedTable) -> str:
    """Return the lines of ``table`` in a terminal of 40 columns."""
    console = Console(width=40, color_system="standard", force_terminal=True)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_no_line_ends_in_blanks_that_would_be_copied() -> None:
    rows = [("a", "1", "long"), ("bcd", "20", ""), ("", "", "")]
    lines = drawn(FittedTable(rows, ("name", "n", ""), right=(1,))).split("\n")
    assert lines[1:] == ["a      1  long", "bcd   20", "", ""]
    assert lines[0].endswith(" n\x1b[0m")  # bold


def test_an_empty_header_is_left_out() -> None:
    assert drawn(FittedTable([("a", "b")], ("", ""))) == "a  b\n"
