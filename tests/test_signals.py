"""SIGTERM and SIGHUP at exact moments: the terminal is as it was, the status is the signal's."""

import re
import signal
import sys
import termios
from collections.abc import Sequence
from pathlib import Path

import pytest

from harness.program import Program
from harness.terminal import CTRL_D, CTRL_G, READY, Terminal
from llama_chat.cli import app


def signalled(number: int, at: int, function: str) -> Sequence[str]:
    """Return the command of the program with a signal at an event after a call of ``function``."""
    return (sys.executable, "-m", "harness.signalled", str(int(number)), str(at), function)


def assert_left_clean(terminal: Terminal, modes: list[object], status: int) -> None:
    """Wait for the end, and check the status, the terminal, and that nothing else was written."""
    assert terminal.wait_for_end() == status
    assert termios.tcgetattr(terminal.descriptor) == modes
    for on, off in ((b"[?2004h", b"[?2004l"), (b"[?25l", b"[?25h"), (b"[?7l", b"[?7h")):
        assert terminal.raw.rfind(on) <= terminal.raw.rfind(off)
    assert not re.search("Traceback|Exception|Error|never awaited|Press ENTER", terminal.text)


@pytest.mark.parametrize(
    ("function", "at"),
    [
        ("open_chat", 10),  # before anything is changed
        ("hold_keys", 1),
        ("hold_keys", 12),  # while the modes are set
        ("_run_chat", 100),  # while modules are imported
        ("new_event_loop", 3),
        ("_redraw", 3000),  # in the midst of the first drawing
        ("_start_auto_refresh_task", 1),  # just after it
        ("_poll_output_size", 1),  # in a task of the event loop
        ("load_history", 3),
        ("adopt_loaded", 50),
    ],
)
def test_a_signal_while_the_first_input_opens(
    function: str, at: int, gguf_model: Path, tmp_path: Path
) -> None:
    number = signal.SIGHUP if at % 2 else signal.SIGTERM
    command = signalled(number, at, function)
    with Terminal("-m", gguf_model, home=tmp_path, command=command) as terminal:
        modes = termios.tcgetattr(terminal.descriptor)
        assert_left_clean(terminal, modes, 128 + number)


@pytest.mark.parametrize("at", [12, 3000])
def test_ctrl_c_before_the_first_input(at: int, gguf_model: Path, tmp_path: Path) -> None:
    command = signalled(signal.SIGINT, at, "hold_keys")
    with Terminal("-m", gguf_model, home=tmp_path, command=command) as terminal:
        modes = termios.tcgetattr(terminal.descriptor)
        assert_left_clean(terminal, modes, 130)


@pytest.mark.parametrize(
    ("function", "at"), [("_polling", 4), ("_polling", 9), ("insert_text", 1), ("_echo", 6)]
)
def test_a_signal_while_the_plain_input_opens(
    function: str, at: int, gguf_model: Path, tmp_path: Path
) -> None:
    command = signalled(signal.SIGTERM, at, function)
    with Terminal("-m", gguf_model, "--plain", home=tmp_path, command=command) as terminal:
        modes = termios.tcgetattr(terminal.descriptor)
        assert_left_clean(terminal, modes, 143)


@pytest.mark.parametrize(
    ("function", "at"),
    [
        ("_handle", 30),  # a command runs
        ("_send", 400),  # a message is answered
        ("_stem_for", 1),  # and saved
        ("publish", 1),
        ("publish", 90),
        ("store_typeahead", 30),  # the first closes
    ],
)
def test_a_signal_between_two_inputs(
    function: str, at: int, gguf_model: Path, tmp_path: Path
) -> None:
    flags = ("-m", gguf_model, "--max-tokens", "3")
    command = signalled(signal.SIGTERM, at, function)
    with Terminal(*flags, home=tmp_path, command=command) as terminal:
        modes = termios.tcgetattr(terminal.descriptor)
        terminal.wait_for(READY)
        terminal.ask("/top-k 3", "top-k is 3")
        terminal.line("hello")
        assert_left_clean(terminal, modes, 143)


def test_a_signal_before_readline_waits_ends_the_plain_input(
    gguf_model: Path, tmp_path: Path
) -> None:
    with Terminal("-m", gguf_model, "--plain", home=tmp_path) as terminal:
        modes = termios.tcgetattr(terminal.descriptor)
        terminal.wait_for(r"template \w+\n\n?>")
        terminal.child.kill(signal.SIGHUP)  # whether it waits already or not
        assert_left_clean(terminal, modes, 129)


def test_a_second_signal_does_not_cut_off_the_first(starter_model: Path, tmp_path: Path) -> None:
    """As when a window is closed: the shell sends SIGHUP, and so does the terminal."""
    flags = ("-m", starter_model, "--max-tokens", "4000", "--temperature", "0")
    with Terminal(*flags, home=tmp_path) as terminal:
        terminal.wait_for(READY)
        terminal.line("Write a long story about a river.")
        terminal.wait_for(r"about a river\.\n(\S.*\n)*\S.{40}")
        for _ in range(50):
            terminal.child.kill(signal.SIGHUP)
        terminal.vanish()
        assert terminal.child.returncode == 129
    with Terminal("-m", starter_model, "--continue", home=tmp_path) as again:
        again.wait_for(READY)
        again.ask("/tree", r"2 model .*● here")


def test_ctrl_backslash_in_a_reply_ends_the_chat_and_keeps_its_text(
    starter_model: Path, tmp_path: Path
) -> None:
    flags = ("-m", starter_model, "--max-tokens", "4000", "--temperature", "0")
    with Terminal(*flags, home=tmp_path) as terminal:
        modes = termios.tcgetattr(terminal.descriptor)
        terminal.wait_for(READY)
        terminal.line("Write a long story about a river.")
        terminal.wait_for(r"about a river\.\n(\S.*\n)*\S.{40}")
        terminal.type("\x1c")
        assert_left_clean(terminal, modes, 128 + signal.SIGQUIT)
    with Terminal("-m", starter_model, "--continue", home=tmp_path) as again:
        again.wait_for(READY)
        again.ask("/tree", r"2 model .{20}.*● here")


def test_a_signal_ends_the_editor_too(gguf_model: Path, tmp_path: Path) -> None:
    editor = tmp_path / "editor"
    editor.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid; echo editing; exec sleep 100\n")
    editor.chmod(0o755)
    with Terminal("-m", gguf_model, home=tmp_path, VISUAL=str(editor)) as terminal:
        modes = termios.tcgetattr(terminal.descriptor)
        terminal.wait_for(READY)
        terminal.type("draft" + CTRL_G)
        terminal.wait_for("editing")
        terminal.child.kill(signal.SIGTERM)
        assert_left_clean(terminal, modes, 143)
        assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()


def test_a_reply_that_is_stopped_before_its_first_token(gguf_model: Path, tmp_path: Path) -> None:
    command = signalled(signal.SIGINT, 5, "show_reply")
    flags = ("-m", gguf_model, "--temperature", "0", "--max-tokens", "4")
    with Terminal(*flags, home=tmp_path, command=command) as terminal:
        terminal.wait_for(READY)
        terminal.ask("hello", r"stopped before the first token; /continue goes on\n\n")
        assert "kept" not in terminal.text
        terminal.ask("/continue", "cut off after 4 tokens")


@pytest.mark.parametrize("at", [1, 8])
def test_ctrl_c_while_python_ends_prints_nothing(at: int, gguf_model: Path, tmp_path: Path) -> None:
    command = signalled(signal.SIGINT, at, "_exitfunc")  # once the program has returned
    with Terminal("-m", gguf_model, home=tmp_path, command=command) as terminal:
        modes = termios.tcgetattr(terminal.descriptor)
        terminal.wait_for(READY)
        terminal.type(CTRL_D)
        assert_left_clean(terminal, modes, 128 + signal.SIGINT)


@pytest.mark.parametrize("module", ["llama_chat.errors", "typer", "llama_chat.cli.root"])
def test_ctrl_c_while_the_program_is_imported_prints_nothing(module: str, tmp_path: Path) -> None:
    program = f"""
import os, signal, sys
class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupts())
from llama_chat.__main__ import main
main()
"""
    with Program(home=tmp_path, command=(sys.executable, "-c", program)) as child:
        written = child.communicate()
        assert (child.wait(0) in (-signal.SIGINT, 130), written) == (True, (b"", b""))


@pytest.mark.parametrize(("cause", "status"), [(SystemExit(129), 129), (KeyboardInterrupt(), 130)])
def test_a_signal_while_a_class_is_made_keeps_its_status(
    cause: BaseException, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted:
        def __set_name__(self, owner: type, name: str) -> None:
            raise cause

    def build(arguments: Sequence[str]) -> object:
        return type("Made", (), {"field": Interrupted()})

    monkeypatch.setattr(app, "build", build)
    assert app.run([]) == status
