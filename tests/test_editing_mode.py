"""The keys of vi in the input."""

import re
from pathlib import Path

import pytest

from harness.terminal import CTRL_C, ESCAPE, READY, Terminal


@pytest.mark.parametrize(
    ("flags", "env"),
    [(("--editing-mode", "vi"), {}), ((), {"LLAMA_CHAT_EDITING_MODE": "vi"})],
)
def test_the_keys_of_vi(
    flags: tuple[str, ...], env: dict[str, str], gguf_model: Path, tmp_path: Path
) -> None:
    with Terminal("-m", gguf_model, *flags, home=tmp_path, size=(160, 40), **env) as terminal:
        terminal.wait_for(READY)
        terminal.type("/top-k 77 words")
        terminal.wait_for("77 words")
        terminal.type(ESCAPE)
        terminal.watch_for(0.2)
        terminal.type("bdw0")
        terminal.wait_for(r"› /top-k 77\n")
        terminal.type("A\x7f\x7f\r")
        terminal.wait_for(r"top-k is 7 ")
        terminal.type("one" + ESCAPE + "\r" + "two")  # as Alt-Enter sends it
        terminal.wait_for("› one\n  two")


def test_the_keys_change_in_the_chat(gguf_model: Path, tmp_path: Path) -> None:
    with Terminal("-m", gguf_model, home=tmp_path) as terminal:
        terminal.wait_for(READY)
        terminal.ask("/set editing_mode vi", "editing-mode is vi")
        terminal.type("/top-k 5")
        terminal.wait_for("› /top-k 5")
        terminal.type(ESCAPE)
        terminal.watch_for(0.2)
        terminal.type("x")
        terminal.watch_for(0.2)
        terminal.type("A6\r")
        terminal.wait_for("top-k is 6 ")
        terminal.ask("/editing-mode emacs", "editing-mode is emacs")


def test_ctrl_c_begins_a_line_that_is_typed(gguf_model: Path, tmp_path: Path) -> None:
    with Terminal("-m", gguf_model, "--editing-mode", "vi", home=tmp_path) as terminal:
        terminal.wait_for(READY)
        terminal.type("words")
        terminal.wait_for("› words")
        terminal.type(ESCAPE)
        terminal.watch_for(0.2)
        terminal.type(CTRL_C)
        terminal.wait_for(r"›\n")
        terminal.type("/top-k 6\r")
        terminal.wait_for("top-k is 6 ")


def test_plain_the_keys_of_vi(gguf_model: Path, tmp_path: Path) -> None:
    flags = ("--plain", "--editing-mode", "vi")
    with Terminal("-m", gguf_model, *flags, home=tmp_path) as terminal:
        terminal.wait_for(r"template \w+\n\n?>")
        terminal.type("/top-k 5")
        terminal.wait_for("/top-k 5")
        terminal.type(ESCAPE)
        terminal.watch_for(0.7)
        terminal.type("xA6\r")
        terminal.wait_for("top-k is 6 ")
        assert not re.search("Traceback", terminal.text)
