"""Terminals that reflow: windows of tmux."""

import os
import re
import subprocess
import termios
import time
from collections.abc import Callable
from pathlib import Path

from harness.process import ROOT
from harness.program import environment

TIMEOUT_S = 30.0

SHELL = "shell$"
"""Prompt of the shell."""


class Tmux:
    """A window of a tmux server of its own, with an interactive shell."""

    def __init__(self, home: Path) -> None:
        self._socket = str(home / "tmux")
        env = environment(home, TERM="screen-256color", SHELL="/bin/bash")
        shell = f"exec env PS1='{SHELL} ' bash --norc -i"
        size = ("-x", "100", "-y", "30")
        command = ["tmux", "-f", os.devnull, "-S", self._socket, "new-session", "-d", *size, shell]
        subprocess.run(command, env=env, cwd=ROOT, check=True)
        self.ask("set-option", "-g", "history-limit", "20000")

    def ask(self, *command: str) -> str:
        """Run a command of tmux, and return what it prints."""
        done = ["tmux", "-S", self._socket, *command]
        return subprocess.run(done, capture_output=True, text=True, check=True).stdout

    @property
    def text(self) -> str:
        """Scrollback and screen, with wrapped lines joined."""
        return self.ask("capture-pane", "-p", "-J", "-S", "-")

    @property
    def shown(self) -> str:
        """The screen."""
        return self.ask("capture-pane", "-p", "-J")

    def type(self, text: str) -> None:
        """Type characters."""
        self.ask("send-keys", "-l", text)

    def press(self, *names: str) -> None:
        """Press keys by their names in tmux."""
        self.ask("send-keys", *names)

    def paste(self, text: str) -> None:
        """Paste, bracketed if the program asked for that."""
        self.ask("set-buffer", text)
        self.ask("paste-buffer", "-p")

    @property
    def scrollback(self) -> str:
        """The rows above the screen."""
        has_any = self.ask("display-message", "-p", "#{history_size}").strip() != "0"
        return self.ask("capture-pane", "-p", "-J", "-S", "-", "-E", "-1") if has_any else ""

    def resize(self, columns: int, lines: int) -> str:
        """Change the size of the window, and wait until programs in it can know: tmux is slow.

        Returns:
            The scrollback as tmux leaves it when it breaks rows anew, before a program draws.

        Raises:
            TimeoutError: if they never can.
        """
        self.ask("resize-window", "-x", str(columns), "-y", str(lines))
        scrollback = self.scrollback
        with Path(self.ask("display-message", "-p", "#{pane_tty}").strip()).open() as tty:
            self._wait(lambda: termios.tcgetwinsize(tty) == (lines, columns), "new size")
        return scrollback

    def wait_for(self, pattern: str, *, shown: bool = True) -> str:
        """Wait until the screen, or all text, matches; return it.

        Raises:
            TimeoutError: if it does not.
        """
        text = ""

        def matches() -> bool:
            nonlocal text
            text = self.shown if shown else self.text
            return bool(re.search(pattern, text))

        self._wait(matches, repr(pattern))
        return text

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + TIMEOUT_S
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError(f"no {what}")
            time.sleep(0.05)

    def kill(self) -> None:
        """End the server."""
        self.ask("kill-server")
