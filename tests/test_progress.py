"""Slow jobs show a progress bar, on a terminal only."""

import os
import subprocess
import sys
from pathlib import Path

import pexpect
import pyte
import pytest

ROOT = Path(__file__).resolve().parent.parent

QUICK = """
from llama_chat.terminal.progress import progress
with progress("Working") as report:
    for done in range(11):
        report(done, 10)
"""

SLOW = """
import time
from llama_chat.terminal.progress import DELAY_S, progress
with progress("Working [b]hard[/b]") as report:
    end = time.monotonic() + 2 * DELAY_S
    while time.monotonic() < end:
        report(3, 10)
    print("the answer")
"""

UNTIL_TOLD = """
import select, sys
from llama_chat.terminal.progress import progress
with progress("Working [b]hard[/b]") as report:
    while not select.select([sys.stdin], [], [], 0.01)[0]:
        report(3, 10)
"""

IN_BYTES = (
    UNTIL_TOLD.replace('[/b]"', '[/b]", in_bytes=True')
    .replace("report(3, 10)", "report(done := done + 2**20, 2**40)")
    .replace("as report:", "as report:\n    done = 3 * 2**38")
)

FAILING = UNTIL_TOLD + "    raise SystemExit(3)\n"


def spawn(script: str, **env: str) -> "pexpect.spawn[bytes]":
    """Start a Python program in a new terminal, which does not echo."""
    environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    return pexpect.spawn(
        sys.executable,
        ["-c", script],
        cwd=str(ROOT),
        env=environment | {"TERM": "xterm-256color"} | env,
        timeout=20,
        echo=False,
        dimensions=(24, 80),
    )


def output_of(child: "pexpect.spawn[bytes]") -> bytes:
    child.expect(pexpect.EOF)
    return bytes(child.before)


@pytest.mark.parametrize(("script", "status"), [(UNTIL_TOLD, 0), (FAILING, 3)])
def test_a_slow_job_shows_a_bar_that_leaves_no_trace(script: str, status: int) -> None:
    child = spawn(script)
    child.expect(rb"30%.*?(\d:\d\d|-:--:--)")  # with the time left
    shown = bytes(child.before) + bytes(child.after)
    assert b"Working [b]hard[/b]" in shown
    child.sendline("")
    shown += output_of(child)
    child.wait()
    assert child.exitstatus == status

    screen = pyte.Screen(80, 24)
    pyte.ByteStream(screen).feed(shown)
    assert "".join(screen.display).strip() == ""
    assert (screen.cursor.x, screen.cursor.y, screen.cursor.hidden) == (0, 0, False)


def test_a_job_of_bytes_shows_how_many_and_their_rate() -> None:
    child = spawn(IN_BYTES)
    child.expect(rb"75%.*?0\.8/1\.1 TB.*?\d+\.\d [GM]B/s")
    child.sendline("")
    output_of(child)


def test_a_quick_job_shows_nothing() -> None:
    assert output_of(spawn(QUICK)) == b""


def test_a_terminal_that_cannot_move_its_cursor_shows_nothing() -> None:
    assert output_of(spawn(SLOW, TERM="dumb")) == b"the answer\r\n"


def test_no_colour_means_none() -> None:
    child = spawn(UNTIL_TOLD, NO_COLOR="1")
    child.expect("30%")
    assert b"\x1b[3" not in child.before
    child.sendline("")
    assert b"\x1b[3" not in output_of(child)


@pytest.mark.parametrize("force", [{}, {"FORCE_COLOR": "1"}])
def test_a_pipe_gets_nothing(force: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SLOW],
        cwd=ROOT,
        env=os.environ | force,
        capture_output=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == (b"the answer\n", b"")


def test_the_bar_does_not_touch_stdout(tmp_path: Path) -> None:
    answer = tmp_path / "answer"
    script = f"import os; os.dup2(os.open({str(answer)!r}, os.O_CREAT | os.O_WRONLY), 1)\n{SLOW}"
    assert b"30%" in output_of(spawn(script))
    assert answer.read_bytes() == b"the answer\n"
