"""``llama-chat config edit``: only valid files take effect, and no edit is ever lost."""

import contextlib
import os
import re
import shutil
import signal
import stat
import sys
import termios
import time
from pathlib import Path

import pytest

from harness.program import COMMAND, Result, assert_clean_error, run
from harness.terminal import TIMEOUT_S, Terminal
from tests.conftest import ROOT

WIDE = (500, 40)
"""Size of a terminal in which no line wraps."""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home, in a folder whose name needs quotes in a shell."""
    path = tmp_path / "a home's"
    path.mkdir()
    return path


@pytest.fixture
def usual(home: Path) -> Path:
    """The default path of the settings file, where no file is yet."""
    return home / ".config/llama-chat/config.toml"


@pytest.fixture
def file(usual: Path) -> Path:
    """A settings file at the default path."""
    usual.parent.mkdir(parents=True)
    usual.write_text("top_k = 5\n")
    return usual


def script(folder: Path, body: str) -> str:
    """Write an editor, a shell script whose ``$1`` is the file; returns its command."""
    path = folder / "editor.sh"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return f'"{path}"'


def left_beside(file: Path) -> list[Path]:
    """List the other files in the folder of ``file``, such as kept copies."""
    return sorted(path for path in file.parent.iterdir() if path != file)


def test_edit_without_a_change_makes_the_documented_file(home: Path, usual: Path) -> None:
    done = run("config", "edit", home=home, VISUAL="true")
    assert (done.status, done.out) == (0, "")
    assert done.err == f"made {usual}\nnot changed: {usual}\n"
    assert usual.read_bytes() == (ROOT / "config.toml").read_bytes()
    assert left_beside(usual) == []


def test_visual_beats_editor(home: Path) -> None:
    assert run("config", "edit", home=home, VISUAL="true", EDITOR="false").status == 0
    assert run("config", "edit", home=home, VISUAL="", EDITOR="true").status == 0
    assert run("config", "edit", home=home, VISUAL="", EDITOR="false").status == 1


def test_edit_gives_the_editor_a_private_copy_and_its_arguments(home: Path, file: Path) -> None:
    editor = script(
        home,
        f'printf "%s\\n" "$1" "$2" "$3" "$(ls -l "$3" | cut -c 1-10)" > "{home}/seen"\n'
        f'cp "{file}" "{home}/during"; echo "top_k = 6" > "$3"',
    )
    done = run("config", "edit", home=home, VISUAL=f"{editor} -w 'two words'")
    assert done == Result(0, "", f"changed: {file}\n")
    first, second, copy, mode = (home / "seen").read_text().splitlines()
    assert (first, second, mode) == ("-w", "two words", "-rw-------")
    assert Path(copy).parent == file.parent
    assert Path(copy).suffix == ".toml"
    assert (home / "during").read_text() == "top_k = 5\n"
    assert file.read_text() == "top_k = 6\n"
    assert left_beside(file) == []


def test_edit_finds_the_file_by_flag_or_variable(home: Path, file: Path) -> None:
    other = home / "deep/other.toml"
    for flags, env in (
        (("config", "edit", "--config", other), {}),
        (("--config", other, "config", "edit"), {}),
        (("config", "edit"), {"LLAMA_CHAT_CONFIG": str(other)}),
    ):
        done = run(*flags, home=home, stdin=b"", VISUAL="true", **env)
        assert done.err.endswith(f"not changed: {other}\n")
    assert file.read_text() == "top_k = 5\n"


@pytest.mark.parametrize(
    ("written", "parts"),
    [
        ("top_k = 5\\ntop_p = 3", ["line 2, top_p: 3 does not fit: give a number above 0 to 1"]),
        ("top_k = 5\\n\\ntop_q = 1", ["line 3: unknown key 'top_q'", "did you mean top_p?"]),
        ("top_k =\\n", ["not TOML", "line 1, column 8"]),
        ("system = '\\377'", ["byte 10 is not UTF-8"]),
    ],
)
def test_a_broken_edit_changes_nothing_and_is_kept(
    home: Path, file: Path, written: str, parts: list[str]
) -> None:
    editor = script(home, f'printf "{written}" > "$1"')
    done = run("config", "edit", home=home, VISUAL=editor)
    assert file.read_text() == "top_k = 5\n"
    (copy,) = left_beside(file)
    assert_clean_error(done, 2, copy.name, *parts)
    assert f"what you wrote is kept in {copy}\n" in done.err
    assert copy.read_bytes() == written.replace("\\n", "\n").encode().replace(b"\\377", b"\xff")
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600


def test_a_broken_file_can_be_repaired(home: Path, file: Path) -> None:
    file.write_bytes(b"top_k = \xff")
    result = run("config", "edit", home=home, VISUAL="true")
    assert_clean_error(result, 2, file.name, "byte 8 is not UTF-8")
    assert left_beside(file) == []
    run("config", "edit", home=home, VISUAL=script(home, 'echo "top_k = 1" > "$1"'))
    assert file.read_text() == "top_k = 1\n"


@pytest.mark.parametrize(
    ("body", "how", "kept"),
    [
        ("exit 3", "it ended with status 3: nothing was changed", False),
        ('echo "top_k = 9" > "$1"; exit 1', "status 1", True),
        ('echo "top_k = 9" > "$1"; kill -9 $$', "signal 9 ended it", True),
        ('rm "$1"', "no such file", False),
        ('rm "$1"; mkdir "$1"; rmdir "$1"; mkfifo "$1"', "not a file", None),
    ],
)
def test_an_editor_that_fails_changes_nothing_and_loses_nothing(
    home: Path, file: Path, body: str, how: str, kept: bool | None
) -> None:
    done = run("config", "edit", home=home, VISUAL=script(home, body))
    assert_clean_error(done, 2 if "rm" in body else 1, how)
    assert file.read_text() == "top_k = 5\n"
    if kept is not None:
        assert [copy.read_text() for copy in left_beside(file)] == ["top_k = 9\n"] * kept
    assert ("is kept in" in done.err) == bool(kept)


@pytest.mark.parametrize(
    ("env", "parts"),
    [
        ({"EDITOR": "no-such-editor -w"}, ["editor 'no-such-editor'", "no such file", "VISUAL"]),
        ({"VISUAL": "/"}, ["editor '/'", "permission denied"]),
        ({"EDITOR": "vi 'a"}, ["EDITOR: a quote in it is never closed"]),
        ({"EDITOR": " ", "PATH": "/nowhere"}, ["neither nano nor vi is here"]),
    ],
)
def test_a_bad_editor_is_reported(
    home: Path, file: Path, env: dict[str, str], parts: list[str]
) -> None:
    result = run("config", "edit", home=home, stdin=b"", **{"VISUAL": "", "EDITOR": ""} | env)
    assert_clean_error(result, 2, *parts)
    assert left_beside(file) == []


def test_the_editors_that_need_a_terminal_are_not_tried_without_one(home: Path) -> None:
    (home / "bin").mkdir()
    (home / "bin/vi").symlink_to(sys.executable)
    done = run("config", "edit", home=home, VISUAL="", EDITOR="", PATH=str(home / "bin"))
    assert_clean_error(done, 2, "vi needs a terminal", "VISUAL or EDITOR")
    assert not (home / ".config").exists()


def test_a_linked_settings_file_stays_a_link(home: Path, usual: Path) -> None:
    dotfiles = home / "dotfiles"
    dotfiles.mkdir()
    target = dotfiles / "llama"
    target.write_text("top_k = 5\n")
    target.chmod(0o640)
    usual.parent.mkdir(parents=True)
    usual.symlink_to(target)
    run("config", "edit", home=home, VISUAL=script(home, 'echo "top_k = 6" > "$1"'))
    assert usual.is_symlink()
    assert usual.readlink() == target
    assert target.read_text() == "top_k = 6\n"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert left_beside(target) == left_beside(usual) == []


def test_edit_refuses_a_path_that_is_no_file(home: Path, usual: Path) -> None:
    usual.mkdir(parents=True)
    assert_clean_error(run("config", "edit", home=home, VISUAL="true"), 2, "not a file")
    usual.rmdir()
    usual.symlink_to(home / "nowhere")
    assert_clean_error(run("config", "edit", home=home, VISUAL="true"), 2, "no such file")
    usual.unlink()
    usual.symlink_to(usual)
    assert_clean_error(run("config", "edit", home=home, VISUAL="true"), 2, "symbolic links")


def test_two_edits_at_once_lose_neither(home: Path, file: Path) -> None:
    editor = script(home, f'echo "top_k = 6" > "$1"; echo "top_k = 7" > "{file}"')
    done = run("config", "edit", home=home, VISUAL=editor)
    assert_clean_error(done, 6, "another program has changed it")
    assert file.read_text() == "top_k = 7\n"
    (copy,) = left_beside(file)
    assert copy.read_text() == "top_k = 6\n"
    assert str(copy) in done.err


def test_on_a_terminal_a_broken_edit_can_be_repaired(home: Path, file: Path) -> None:
    # Breaks the copy the first time, and repairs it the second time.
    editor = script(
        home, 'grep -q = "$1.seen" && v=0.5 || v=3; echo = > "$1.seen"; echo "top_p = $v" > "$1"'
    )
    with Terminal("config", "edit", home=home, size=WIDE, VISUAL=editor) as terminal:
        terminal.wait_for(r"line 1, top_p: 3 does not fit[^?]*edit again\? \[Y/n\]")
        terminal.line("")
        assert terminal.wait_for_end() == 0
        assert f"changed: {file}" in terminal.text
    assert file.read_text() == "top_p = 0.5\n"


@pytest.mark.parametrize(("keys", "status"), [("n\r", 2), ("\x04", 2), ("\x03", 130)])
def test_declining_to_edit_again_keeps_the_edit(
    home: Path, file: Path, keys: str, status: int
) -> None:
    editor = script(home, 'echo "top_p = 3" > "$1"')
    with Terminal("config", "edit", home=home, size=WIDE, VISUAL=editor) as terminal:
        terminal.wait_for(r"edit again\? \[Y/n\]")
        terminal.type(keys)
        assert terminal.wait_for_end() == status
        assert "is kept in" in terminal.text
    assert file.read_text() == "top_k = 5\n"
    assert [copy.read_text() for copy in left_beside(file)] == ["top_p = 3\n"]


def test_ctrl_c_belongs_to_the_editor(home: Path, file: Path) -> None:
    editor = script(home, 'trap \'echo "top_k = 6" > "$1"; exit 0\' INT; echo ready; read line')
    with Terminal("config", "edit", home=home, size=WIDE, VISUAL=editor) as terminal:
        terminal.wait_for("ready")
        terminal.type("\x03")
        assert terminal.wait_for_end() == 0
    assert file.read_text() == "top_k = 6\n"


def wait_for_end_of(pid: int) -> None:
    """Wait until a process has ended that is no child of this one.

    The system hangs up an editor whose terminal has lost its program.
    """
    end = time.monotonic() + TIMEOUT_S
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < end:
            os.kill(pid, 0)
        raise AssertionError(f"process {pid} still runs")


def test_a_killed_edit_loses_nothing_and_leaves_no_editor(home: Path, file: Path) -> None:
    editor = script(home, 'echo "top_k = 6" > "$1"; echo ready $$; read line')
    with Terminal("config", "edit", home=home, size=WIDE, VISUAL=editor) as terminal:
        found = re.search(r"ready (\d+)", terminal.wait_for(r"ready \d+\s"))
        terminal.child.kill(signal.SIGTERM)
        assert terminal.wait_for_end() == 128 + signal.SIGTERM
        assert "is kept in" in terminal.text
    assert found
    wait_for_end_of(int(found[1]))
    assert file.read_text() == "top_k = 5\n"
    assert [copy.read_text() for copy in left_beside(file)] == ["top_k = 6\n"]


def test_a_killed_editor_leaves_the_terminal_as_it_was(home: Path, file: Path) -> None:
    editor = script(home, "stty raw -echo; echo ready; read line; kill -9 $$")
    with Terminal(
        "-c", 'stty -a > "$0"; "$@"; stty -a >> "$0"', home / "modes", *COMMAND, "config", "edit",
        home=home, command=["/bin/sh"], VISUAL=editor,
    ) as terminal:  # fmt: skip
        terminal.wait_for("ready")
        raw = termios.tcgetattr(terminal.descriptor)[3]
        terminal.type("\n")
        terminal.wait_for_end()
    assert not raw & termios.ECHO
    modes = (home / "modes").read_text()
    before, after = modes[: len(modes) // 2], modes[len(modes) // 2 :]
    assert before == after
    assert " echo " in after


@pytest.mark.skipif(shutil.which("vi") is None, reason="there is no vi")
def test_edit_in_vi(home: Path, file: Path) -> None:
    with Terminal("config", "edit", home=home, VISUAL="vi", TERM="vt100") as terminal:
        terminal.wait_for("top_k = 5")
        terminal.type(":s/5/6/\r:wq\r")
        assert terminal.wait_for_end() == 0
    assert file.read_text() == "top_k = 6\n"
    assert left_beside(file) == []
