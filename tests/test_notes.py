"""Notes and errors of the chat break between words, as replies do."""

from pathlib import Path

import pytest

from harness.terminal import Terminal

ERROR = "/top-k: 'x' does not fit: give a whole number from 0 to 1000000"
PATH = "/nowhere/" + "long" * 20


@pytest.mark.parametrize(
    ("flag", "rows"),
    [
        ("--wrap=words", ["/top-k: 'x' does not fit: give a whole", "number from 0 to 1000000"]),
        ("--wrap=terminal", [ERROR[:40], ERROR[40:]]),
        ("--plain", [ERROR[:40], ERROR[40:]]),
    ],
)
def test_notes_break_between_words(
    flag: str, rows: list[str], gguf_model: Path, tmp_path: Path
) -> None:
    with Terminal("-m", gguf_model, flag, home=tmp_path, size=(40, 30)) as terminal:
        terminal.wait_for(r"chatml\n[›>]")
        terminal.line("/top-k x")
        text = terminal.wait_for(r"1000000\n")
        assert "\n".join(rows) in text
        assert rows[0] in [row.rstrip() for row in text.split("\n")]
        terminal.type("\x15")  # Ctrl-U
        terminal.line(f"/file {PATH}")
        terminal.wait_for(r"no such\s+file")
        assert f"{PATH}'" in terminal.raw.decode()  # a word that no newline divides
