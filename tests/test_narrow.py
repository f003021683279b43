"""In a narrow terminal lists are cut where that costs least."""

import re
from pathlib import Path

from harness.terminal import READY, Terminal

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
