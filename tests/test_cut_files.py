"""A model file that is cut short while it is mapped: an error, and not the end of the program."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.terminal import CTRL_D, READY, Terminal
from llama_chat.kernels import native
from tests.model_files import write_gguf

pytestmark = pytest.mark.skipif(not native.LIBRARY.exists(), reason="the kernels are not built")

WHY = "model: one of its files was cut short, or cannot be read any more: restore the file"


@pytest.fixture
def floats(tmp_path: Path) -> Path:
    """A model whose weights are used where they are mapped."""
    write_gguf(tmp_path / "floats.gguf")
    return tmp_path / "floats.gguf"


@pytest.mark.parametrize("use", ["load", "check", "convert"])
def test_what_reads_it_ends_with_an_error(floats: Path, use: str) -> None:
    command = [sys.executable, "-m", "tests.cut_file", str(floats), use]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert WHY in done.stdout


def test_the_chat_goes_on_and_keeps_what_was_said(floats: Path, tmp_path: Path) -> None:
    flags = ("-m", floats, "--temperature", "0", "--max-tokens", "8")
    with Terminal(*flags, home=tmp_path) as chat:
        chat.wait_for(READY)
        chat.ask("hello", r"tok/s|ended it at once")
        os.truncate(floats, 4096)
        chat.line("again")
        chat.wait_for(r"one of its files was cut short")
        chat.ask("/context", r"hello\n")
        chat.type(CTRL_D)
        assert chat.wait_for_end() == 0
