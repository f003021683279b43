"""In a narrow terminal lists are cut where that costs least; in a low one the input stays."""

import re
from pathlib import Path

import pytest

from harness.terminal import CTRL_C, CTRL_R, READY, Terminal

WIDTH = 44


def test_marks_and_values_are_not_what_is_cut(gguf_model: Path, tmp_path: Path) -> None:
    flags = ("-m", gguf_model, "--temperature", "0", "--max-tokens", "8")
    with Terminal(*flags, home=tmp_path, size=(WIDTH, 60)) as terminal:
        terminal.wait_for(READY)
        terminal.line("a question that is longer than this terminal is wide")
        terminal.wait_for(r"/max-tokens allows more\n")
        terminal.ask("/retry", r"version 2")
        drawn = terminal.ask("/tree", r"● here").splitlines()
        assert re.fullmatch(r"1 you    a question that is .*…", drawn[0])
        assert drawn[2].endswith("  ● here")
        settings = terminal.ask("/settings", r"^template-here .*$")
        shown = ("temperature +0\\.0", "template +auto", "overflow +drop-oldest", "model +/.*…")
        for line in shown:
            assert re.search(rf"(?m)^{line} +\S", settings)
        assert max(map(len, [*drawn, *settings.splitlines()])) <= WIDTH


@pytest.mark.parametrize("lines", [3, 4, 8])
def test_a_command_is_typed_in_a_low_window(lines: int, gguf_model: Path, tmp_path: Path) -> None:
    with Terminal("-m", gguf_model, home=tmp_path, size=(80, lines)) as terminal:
        terminal.wait_for(READY)
        terminal.type("/he")
        terminal.wait_for(r"› /he\n +help " if lines > 3 else r"› /he\n random")
        terminal.type(CTRL_R)  # which needs one more line
        terminal.wait_until(lambda: "I-search" in terminal.shown)
        terminal.type(CTRL_C)
        terminal.type("\x15/top-k 5")
        terminal.wait_until(lambda: "› /top-k 5" in terminal.shown)
        assert "too small" not in terminal.text


def test_the_input_stays_when_a_window_becomes_low(gguf_model: Path, tmp_path: Path) -> None:
    with Terminal("-m", gguf_model, home=tmp_path, size=(80, 24)) as terminal:
        terminal.wait_for(READY)
        terminal.type("/he")
        terminal.wait_for(r"› /he\n +help ")
        terminal.resize(80, 4)
        terminal.wait_for_quiet()
        terminal.type("l")
        terminal.wait_for(r"› /hel\n +help ")
        assert "too small" not in terminal.text
