"""The status while a reply is written: it is seen, and leaves no trace."""

import os
import random
import re
import shlex
import shutil
import subprocess
import tempfile
import time
from io import StringIO
from pathlib import Path

import pyte
import pytest
from rich.console import Console

from harness.program import COMMAND, environment
from harness.terminal import READY, TIMEOUT_S, Terminal, row
from llama_chat.terminal import status_line
from llama_chat.terminal.status_line import StatusLine

STATUS = r"\d+ tokens · \d+\.\d tok/s · Ctrl-C stops"
STORY = "Write a long story about a river."


def test_a_status_is_below_the_reply_and_goes_at_its_end(
    starter_model: Path, tmp_path: Path
) -> None:
    flags = ("-m", starter_model, "--temperature", "0", "--max-tokens", "150")
    with Terminal(*flags, home=tmp_path, size=(60, 12)) as terminal:
        terminal.wait_for(READY)
        terminal.line(STORY)
        began = time.monotonic()
        terminal.wait_for(STATUS + r"\s*\Z")
        terminal.wait_for(r"cut off after 150 tokens[\s\S]*\n›")
        assert terminal.screen.history.top  # it scrolled
        seconds = time.monotonic() - began
        assert not re.search("Ctrl-C stops", terminal.text)
        n_drawn = terminal.raw.count(b"Ctrl-C stops")
        assert 1 <= n_drawn <= seconds / status_line.PERIOD_S


@pytest.mark.parametrize("flag", ["--plain", "--quiet"])
def test_without_a_status(flag: str, starter_model: Path, tmp_path: Path) -> None:
    flags = ("-m", starter_model, "--temperature", "0", "--max-tokens", "80", flag)
    with Terminal(*flags, home=tmp_path) as terminal:
        terminal.wait_for(r"[›>]")
        terminal.line(STORY)
        terminal.wait_for("cut off after 80")
        assert b"Ctrl-C stops" not in terminal.raw
        assert "── model" not in terminal.text


def test_quiet_is_set_in_the_chat_too(babble: Terminal) -> None:
    babble.ask("/quiet on", "quiet is true")
    babble.ask("hello", "cut off after 8")
    assert "── model" not in babble.text
    babble.ask("/quiet off", "quiet is false")
    babble.ask("again", "── model\n.*\ncut off after 8")


def screen_of(data: str, columns: int, lines: int) -> list[str]:
    """Return the rows of scrollback and screen."""
    screen = pyte.HistoryScreen(columns, lines, history=10_000, ratio=0.5)
    pyte.Stream(screen).feed(data.replace("\n", "\r\n"))
    rows = [*screen.history.top, *(screen.buffer[y] for y in range(lines))]
    return "\n".join(map(row, rows)).rstrip().split("\n")


def test_the_status_changes_nothing_that_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Text of all kinds in pieces of all sizes, with a drawing after nearly each of them."""
    chance = random.Random(0)
    monkeypatch.setattr(status_line, "PERIOD_S", 1e-9)
    words = ["a", "river", "\n", "\n\n", "\t", "世界", "é", "e\u0301", "👩", "\x1b[1mbold\x1b[0m"]
    words += ["long" * 30, " ", " ", "https://example.org/" + "x" * 50]
    n_drawn = 0
    for _ in range(60):
        columns, lines = chance.randrange(20, 100), chance.randrange(3, 30)
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setenv("LINES", str(lines))
        pieces = [chance.choice(words) for _ in range(200)]
        file = StringIO()
        console = Console(file=file)
        with StatusLine(console, hidden=False, colored=chance.random() < 0.5) as status:
            for piece in pieces:
                console.file.write(piece)
                status.count()
        drawn = file.getvalue()
        n_drawn += drawn.count("\x1b7")
        assert screen_of(drawn, columns, lines) == screen_of("".join(pieces), columns, lines)
    assert n_drawn > 2000


def in_tmux(home: Path, *arguments: str | Path) -> str:
    """Ask for a story in tmux, and return what its scrollback and screen hold at the end."""
    tmux = ("tmux", "-u", "-L", f"status-{home.name}-{len(arguments)}", "-f", os.devnull)
    env = environment(home, TERM="xterm-256color")

    def call(*words: str) -> str:
        # The server that the first call starts would hold a pipe open.
        with tempfile.TemporaryFile() as file:
            subprocess.run([*tmux, *words], env=env, stdout=file, stderr=file)
            file.seek(0)
            return file.read().decode()

    def wait_for(pattern: str) -> str:
        end = time.monotonic() + TIMEOUT_S
        while not re.search(pattern, text := call("capture-pane", "-p", "-S", "-")):
            assert time.monotonic() < end, text
            time.sleep(0.05)
        return text

    program = shlex.join([*COMMAND, *map(str, arguments)])
    try:
        call("new-session", "-d", "-x", "60", "-y", "12", program)
        wait_for(r"context 0/\d+")
        call("send-keys", STORY, "Enter")
        return wait_for(r"cut off after \d+")
    finally:
        call("kill-server")


@pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")
def test_in_tmux_a_reply_is_the_same_with_and_without_a_status(
    starter_model: Path, tmp_path: Path
) -> None:
    flags = ("-m", starter_model, "--temperature", "0", "--max-tokens", "150", "--color", "never")
    replies = []
    for more in ([], ["--quiet"]):
        text = in_tmux(tmp_path, *flags, *more)
        replies.append(
            re.search(r"[\s\S]*about a river\.\n(?:── model\n)?([\s\S]*)\n+cut off", text)
        )
    assert replies[0] is not None
    assert replies[1] is not None
    assert replies[0][1] == replies[1][1]
