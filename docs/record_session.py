"""Record the picture in the README: a first session, as the terminal shows it.

    python docs/record_session.py

It types into the real program in a pseudo-terminal and writes ``docs/first-session.svg``.
"""

import re
import sys
import tempfile
from pathlib import Path

import pyte
from pyte.screens import Char
from rich.console import Console
from rich.style import Style
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from harness.process import cold  # noqa: E402
from harness.terminal import READY, Terminal  # noqa: E402
from llama_chat.library import find_model  # noqa: E402

WIDTH, HEIGHT = 92, 44
LINES = (
    ("Write a Python function that returns the squares of a list.", r"\n\n(?=›)"),
    ("What is the capital of France?", r"Paris\."),
    ("/why 6", r"\n\n(?=›)"),
    ("/undo", r"undone"),
    ("What is the capital of Italy?", r"Rome\."),
    ("/tree", r"● here"),
)
pyte.graphics.TEXT[2] = "+blink"
"""Dim, which pyte does not know; nothing blinks here."""

COLORS = {"brown": "yellow"}
"""Rich's names of colours that pyte names differently."""


def main() -> None:
    """Record the session."""
    flags = ("-m", find_model(""), "--temperature", "0", "--max-tokens", "200")
    console = Console(width=WIDTH, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    with (
        cold(),
        tempfile.TemporaryDirectory() as home,
        Terminal(*flags, home=Path(home), size=(WIDTH, HEIGHT)) as terminal,
    ):
        terminal.wait_for(READY)
        for line, answer in LINES:
            terminal.ask(line, answer)
        terminal.type("/co")
        terminal.wait_for(r"context +Tokens of each message")
        rows = [*terminal.screen.history.top, *(terminal.screen.buffer[y] for y in range(HEIGHT))]
        for row in rows:
            console.print(styled([row[x] for x in range(WIDTH)]), soft_wrap=True)
    (ROOT / "docs" / "first-session.svg").write_text(console.export_svg(title="llama-chat"))


def styled(row: list[Char]) -> Text:
    """Convert a row of the screen to text with its colours."""
    text = Text()
    for cell in row:
        style = Style(
            color=color_of(cell.fg),
            bgcolor=color_of(cell.bg),
            bold=cell.bold,
            italic=cell.italics,
            underline=cell.underscore,
            reverse=cell.reverse,
            dim=cell.blink,
            # Makes blanks a separate run: some viewers drop them at the start of a run.
            blink=cell.data == " " or None,
        )
        text.append(cell.data, style)
    return text


def color_of(name: str) -> str | None:
    """Return Rich's name of a screen colour; None for the default colour."""
    if name == "default":
        return None
    if re.fullmatch("[0-9a-f]{6}", name):
        return f"#{name}"
    return COLORS.get(name, name.replace("bright", "bright_"))


if __name__ == "__main__":
    main()
