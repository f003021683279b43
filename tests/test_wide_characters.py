"""Characters of two columns, which leave a column free where they do not fit."""

import sys
from pathlib import Path

import pytest

from harness.terminal import Terminal

COMMAND = (sys.executable, "-m", "tests.play_keys")
SENTENCE = "日本語の長い段落を貼り付ける試験。"


@pytest.mark.parametrize(("size", "n"), [((41, 12), 40), ((79, 24), 200)])
def test_the_end_of_a_long_text_is_on_the_screen(
    size: tuple[int, int], n: int, tmp_path: Path
) -> None:
    with Terminal(home=tmp_path, size=size, command=COMMAND) as terminal:
        terminal.wait_for("toolbar")
        terminal.paste(SENTENCE * n)
        terminal.type("<END>")
        terminal.wait_until(lambda: "<END>" in terminal.shown)
