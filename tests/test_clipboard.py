"""``/copy`` through the programs that may lie between the chat and the terminal."""

import base64
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from harness.program import environment
from harness.terminal import READY, Terminal

PROMPT = ("--max-tokens", "200", "--temperature", "0")


def test_screen_passes_the_sequence_on_in_pieces(starter_model: Path, tmp_path: Path) -> None:
    flags = ("-m", starter_model, *PROMPT)
    env = {"STY": "1.pts", "SSH_TTY": "/dev/pts/9", "TMUX": ""}
    with Terminal(*flags, home=tmp_path, size=(120, 40), **env) as terminal:
        terminal.wait_for(READY)
        terminal.ask("Write a story about a river.", r"\n\n›")
        terminal.line("/copy")
        text = terminal.wait_for(r"copied \d+ characters through screen, if the terminal allows")
    pieces = re.findall(rb"\x1bP(.*?)\x1b\\", terminal.raw)
    found = re.fullmatch(rb"\x1b\]52;c;(.*)\x07", b"".join(pieces))
    assert found is not None
    assert max(map(len, pieces)) <= 256 < len(b"".join(pieces))
    copied = re.search(r"copied (\d+) characters", text)
    assert copied is not None
    assert len(base64.b64decode(found[1]).decode()) == int(copied[1])


@pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")
def test_tmux_takes_the_text(starter_model: Path, tmp_path: Path) -> None:
    env = environment(tmp_path, SSH_TTY="/dev/pts/9", TMUX_TMPDIR=str(tmp_path))
    tmux = ("tmux", "-u", "-L", "copy", "-f", os.devnull)

    def call(*words: str) -> str:
        return subprocess.run(
            [*tmux, *words], env=env, stdout=subprocess.PIPE, check=True, text=True
        ).stdout

    subprocess.run([*tmux, "new-session", "-d", "sleep 60"], env=env, check=True)
    try:
        where = call("display-message", "-p", "#{socket_path},#{pid},0").strip()
        flags = ("-m", starter_model, "--max-tokens", "30", "--temperature", "0")
        with Terminal(*flags, home=tmp_path, SSH_TTY="x", TMUX=where) as terminal:
            terminal.wait_for(READY)
            terminal.ask("What is the capital of France?", r"\S.*\n\n›")
            terminal.line("/copy")
            terminal.wait_for(r"copied 31 characters through tmux, if the terminal allows that")
            assert b"\x1b]52" not in terminal.raw
        assert call("show-buffer") == "The capital of France is Paris."
    finally:
        call("kill-server")
