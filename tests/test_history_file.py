"""The history of inputs: a private file, written by many programs at once."""

import fcntl
import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.history import FileHistory, InMemoryHistory

from llama_chat.terminal import history
from llama_chat.terminal.history import open_history, put_aside, take_up
from tests.conftest import ROOT
from tests.permissions import mode_of

PROGRAMS, LINES = 20, 500

WRITE = """
import os, sys
from llama_chat.terminal.history import open_history
programs, lines = map(int, sys.argv[1:])
children = []
for program in range(programs):
    child = os.fork()
    if child == 0:
        history = open_history(print, keep=True)
        for line in range(lines):
            # Some are longer than any buffer, and of many lines.
            text = f"{program}:{line} é" + "\\nx" * (9000 if line % 100 == 0 else line % 3)
            history.append_string(text)
        os._exit(0)
    children.append(child)
sys.exit(max(os.waitpid(child, 0)[1] for child in children))
"""


def test_twenty_programs_write_10_000_inputs_and_each_is_there_once(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WRITE, str(PROGRAMS), str(LINES)],
        cwd=ROOT,
        env=os.environ | {"XDG_STATE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == ""
    path = tmp_path / "llama-chat" / "history"
    found = Counter(FileHistory(str(path)).load_history_strings())
    expected = {
        f"{program}:{line} é" + "\nx" * (9000 if line % 100 == 0 else line % 3)
        for program in range(PROGRAMS)
        for line in range(LINES)
    }
    assert len(found) == found.total() == len(expected) == 10_000
    assert set(found) == expected


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path / "llama-chat" / "history"


@pytest.fixture
def told() -> list[str]:
    """Warnings of this test."""
    return []


ENTRY = r"\n# \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+\n"


def test_inputs_are_appended_as_prompt_toolkit_reads_them(path: Path, told: list[str]) -> None:
    first = open_history(told.append, keep=True)
    assert (mode_of(path), path.read_bytes(), told) == (0o600, b"", [])
    for text in ("one", "two\nlines\n", "\r\u2028é", "lone \udc80"):
        first.append_string(text)
    parts = re.split(ENTRY, path.read_bytes().decode())
    assert parts == ["", "+one\n", "+two\n+lines\n+\n", "+\r\u2028é\n", "+lone ?\n"]
    kept = ["lone ?", "\r\u2028é", "two\nlines\n", "one"]
    assert open_history(told.append, keep=True).load_history_strings() == kept
    assert (mode_of(path), told) == (0o600, [])


def test_what_is_not_to_be_kept_leaves_no_file(path: Path, told: list[str]) -> None:
    kept = open_history(told.append, keep=False)
    kept.append_string("secret")
    assert isinstance(kept, InMemoryHistory)
    assert (kept.get_strings(), path.parent.exists(), told) == (["secret"], False, [])


def test_without_a_file_inputs_are_in_memory(path: Path, told: list[str]) -> None:
    path.mkdir(parents=True)
    assert isinstance(open_history(told.append, keep=True), InMemoryHistory)
    assert told == [f"{str(path)!r}: is a directory: what you type is not remembered"]


def test_a_link_to_a_file_elsewhere_is_written_through(
    path: Path, told: list[str], tmp_path: Path
) -> None:
    path.parent.mkdir()
    (tmp_path / "dotfile").touch()
    path.symlink_to(tmp_path / "dotfile")
    open_history(told.append, keep=True).append_string("x")
    assert (tmp_path / "dotfile").read_bytes().endswith(b"\n+x\n")
    assert (path.is_symlink(), told) == (True, [])


def test_an_input_waits_for_programs_that_write_but_not_for_the_disk(
    path: Path, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = open_history(told.append, keep=True)
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        monkeypatch.setattr(time, "sleep", lambda _: fcntl.flock(other, fcntl.LOCK_UN))
        monkeypatch.delattr(os, "fsync")
        kept.append_string("waited")
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)  # it is unlocked at once
    assert (path.read_bytes().endswith(b"\n+waited\n"), told) == (True, [])


def test_once_an_input_cannot_be_stored_none_is_and_it_is_told_once(
    path: Path, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = open_history(told.append, keep=True)
    monkeypatch.setattr(history, "_TIMEOUT_S", 0.001)
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        kept.append_string("lost")
        path.unlink()
    kept.append_string("lost too")
    assert (path.exists(), kept.get_strings()) == (False, ["lost", "lost too"])
    effect = "what you type from here on is not remembered"
    assert told == [f"{str(path)!r}: resource temporarily unavailable: {effect}"]


def test_a_history_that_cannot_be_read_is_not_written_either(path: Path, told: list[str]) -> None:
    kept = open_history(told.append, keep=True)
    path.unlink()
    path.mkdir()
    assert kept.load_history_strings() == []
    path.rmdir()
    path.touch()
    kept.append_string("x")
    assert path.read_bytes() == b""
    assert told == [f"{str(path)!r}: is a directory: earlier inputs are not remembered"]


def test_a_draft_that_is_left_comes_back_until_it_is_sent() -> None:
    buffer = Buffer(history=InMemoryHistory())
    strings = buffer.history._loaded_strings
    buffer.text = " "
    put_aside(buffer)
    assert (strings, buffer.text) == ([], "")
    for text in ("one", "two", "two"):  # the second was brought back, and is left again
        buffer.text = text
        put_aside(buffer)
        assert buffer.text == ""
    assert strings == ["two", "one"]
    buffer.text = "other"
    take_up(buffer)
    assert strings == ["two", "one"]
    buffer.text = "two"
    take_up(buffer)
    assert strings == ["one"]
    strings.insert(0, "sent")
    buffer.text = "sent"
    take_up(buffer)  # an input that was sent before stays
    assert strings == ["sent", "one"]
    strings.clear()
    take_up(buffer)
    assert strings == []
