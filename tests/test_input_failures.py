"""A failure in the input is one line, and the chat goes on: no stack trace, no wait for Enter."""

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.terminal import CTRL_C, CTRL_G, READY, UP, Terminal

WIDE = (400, 40)
"""Size of a terminal in which no line wraps."""


def assert_told_once(terminal: Terminal, warning: str) -> None:
    """Check that one warning was written, and nothing else of a failure."""
    assert re.findall("(?m)^warning: .*", terminal.text) == [warning]
    assert not re.search("Traceback|Exception|Press ENTER", terminal.text)


@pytest.mark.parametrize(
    "what",
    [
        "history",
        "storing",
        "menu",
        "tab",
        "toolbar",
        "writing",
        "callback",
        "task",
        "lost task",
        "first drawing",
        "opening",
        "clearing",
    ],
)
def test_the_input_goes_on_whatever_fails_in_it(what: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.play_failure"]
    with Terminal(what, home=tmp_path, command=command) as terminal:
        opened = 2 if what == "first drawing" else 1  # Ctrl-C between the two ends the program
        terminal.wait_until(lambda: terminal.raw.count("›".encode()) >= opened)
        terminal.type("x" + CTRL_C)
        # A menu that is open already is what Tab chooses from.
        terminal.type("h\t" if what == "tab" else "/h\t")
        if what not in ("storing", "opening", "first drawing"):
            terminal.wait_for(f"told: the {what} fails")
        terminal.type(CTRL_C + "hello\r")
        assert terminal.wait_for_end() == 0
        assert f"sent: 'hello'; failures: {{'the {what} fails'}}" in terminal.text
        assert not re.search("Traceback|Press ENTER", terminal.text)


def fill_the_disk(history: Path) -> None:
    history.unlink()
    history.symlink_to("/dev/full")


def replace_by_a_folder(history: Path) -> None:
    history.unlink()
    history.mkdir()


def remove_the_folder(history: Path) -> None:
    history.unlink()
    history.parent.rmdir()


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (fill_the_disk, "no space left on device"),
        (replace_by_a_folder, "is a directory"),
        (remove_the_folder, "no such file or directory"),
    ],
)
@pytest.mark.parametrize("flags", [(), ("--plain",)])
def test_a_history_that_cannot_be_written_is_told_once(
    damage: Callable[[Path], None],
    why: str,
    flags: tuple[str, ...],
    gguf_model: Path,
    tmp_path: Path,
) -> None:
    history = tmp_path / ".local/state/llama-chat/history"
    with Terminal("-m", gguf_model, *flags, home=tmp_path, size=WIDE) as terminal:
        terminal.wait_for(r"template \w+\n\n?>" if flags else READY)
        damage(history)
        terminal.line("/top-k 7")
        terminal.wait_for(r"top-k is 7")
        terminal.line("/top-k 8")
        terminal.wait_for(r"top-k is 8")
        terminal.type(UP + UP + "1\r")  # it goes on in memory
        terminal.wait_for(r"top-k is 71")
        terminal.line("/exit")
        assert terminal.wait_for_end() == 0
        effect = "what you type from here on is not remembered"
        assert_told_once(terminal, f"warning: {str(history)!r}: {why}: {effect}")


@pytest.mark.parametrize("flags", [(), ("--plain",)])
def test_a_history_that_cannot_be_read_is_told_once(
    flags: tuple[str, ...], gguf_model: Path, tmp_path: Path
) -> None:
    history = tmp_path / ".local/state/llama-chat/history"
    history.parent.mkdir(parents=True)
    history.symlink_to("/proc/self/mem")  # reading its beginning is an error
    with Terminal("-m", gguf_model, *flags, home=tmp_path, size=WIDE) as terminal:
        terminal.wait_for(r"not remembered[\s\S]*\n[›>]")
        terminal.line("/top-k 7")
        terminal.wait_for(r"top-k is 7")
        terminal.line("/exit")
        assert terminal.wait_for_end() == 0
        effect = "earlier inputs are not remembered"
        assert_told_once(terminal, f"warning: {str(history)!r}: input/output error: {effect}")


@pytest.mark.parametrize(
    ("editor", "warning"),
    [
        ("/nowhere/editor", "editor '/nowhere/editor': no such file or directory: name an editor"),
        ("false", "editor 'false': it ended with status 1: nothing was changed"),
        ("sh -c 'kill $$'", "editor 'sh': signal 15 ended it: nothing was changed"),
        ("rm", "text for the editor: no such file or directory: set TMPDIR"),
        ("'", "VISUAL: a quote in it is never closed: name an editor"),
    ],
)
def test_an_editor_that_fails_leaves_the_text(
    editor: str, warning: str, gguf_model: Path, tmp_path: Path
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with Terminal(
        "-m", gguf_model, home=tmp_path, VISUAL=editor, TMPDIR=str(temporary)
    ) as terminal:
        terminal.wait_for(READY)
        before = {*temporary.iterdir()}
        terminal.type("draft" + CTRL_G)
        terminal.wait_for(rf"warning: {re.escape(warning)}.*\n› draft")
        assert {*temporary.iterdir()} == before
        terminal.type("s\r")
        terminal.wait_for(r"› drafts\n")
        assert not re.search("Traceback|Press ENTER", terminal.text)


def test_text_of_an_editor_that_is_not_utf_8_is_kept(gguf_model: Path, tmp_path: Path) -> None:
    editor = tmp_path / "editor"
    editor.write_text("#!/bin/sh\nprintf 'a\\377b\\n' > \"$1\"\n")
    editor.chmod(0o755)
    with Terminal("-m", gguf_model, home=tmp_path, size=WIDE, VISUAL=str(editor)) as terminal:
        terminal.wait_for(READY)
        terminal.type("draft" + CTRL_G)
        terminal.wait_for(r"warning: text of the editor: byte 1 is not UTF-8: .*\n› draft")
        kept = re.search(r"it is kept in (\S+)\n", terminal.text)
    assert kept is not None
    assert Path(kept[1]).read_bytes() == b"a\xffb\n"
    shutil.rmtree(Path(kept[1]).parent)


def test_a_text_that_cannot_be_stored_for_the_editor_stays(
    gguf_model: Path, tmp_path: Path
) -> None:
    command = ["prlimit", "--fsize=5", sys.executable, "-m", "llama_chat"]
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    variables = {"VISUAL": "true", "TMPDIR": str(temporary)}
    with Terminal(
        "-m", gguf_model, home=tmp_path, size=WIDE, command=command, **variables
    ) as terminal:
        terminal.wait_for(READY)
        before = {*temporary.iterdir()}
        terminal.type("a long draft" + CTRL_G)
        why = "text for the editor: file too large: set TMPDIR"
        terminal.wait_for(rf"warning: {why}\n› a long draft")
        assert {*temporary.iterdir()} == before
