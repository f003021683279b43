"""Copying to the clipboard."""

import base64
import os
import shutil
import subprocess

from llama_chat.terminal.renderer import Renderer

_TMUX = ["tmux", "load-buffer", "-w", "-"]

_TOOLS = (
    ("WAYLAND_DISPLAY", ["wl-copy"]),
    ("DISPLAY", ["xclip", "-selection", "clipboard"]),
    ("DISPLAY", ["xsel", "--clipboard", "--input"]),
    (None, ["pbcopy"]),
)
"""Environment variable that a tool needs, and its command."""

_TIMEOUT_S = 5.0

_SCREEN_BYTES = 256
"""Longest sequence that every version of screen passes on."""


def copy(text: str, renderer: Renderer) -> str:
    """Copy ``text`` with a tool of this machine, else through the terminal; returns which.

    Over SSH only the terminal reaches the user's clipboard; tmux and screen may lie in between.
    """
    for variable, command in () if os.environ.get("SSH_TTY") else _TOOLS:
        available = variable is None or os.environ.get(variable)
        if available and shutil.which(command[0]) and _run(command, text):
            return f"by {command[0]}"
    if os.environ.get("TMUX") and _run(_TMUX, text):
        return "through tmux, if the terminal allows that"
    # OSC 52; nothing tells whether the terminal allows it.
    data = base64.b64encode(text.encode("utf-8", "replace")).decode()
    sequence = f"\x1b]52;c;{data}\x07"
    if not os.environ.get("STY"):
        renderer.write(sequence)
        return "through the terminal, if it allows that"
    for begin in range(0, len(sequence), _SCREEN_BYTES):
        renderer.write(f"\x1bP{sequence[begin : begin + _SCREEN_BYTES]}\x1b\\")
    return "through screen, if the terminal allows that"


def _run(command: list[str], text: str) -> bool:
    """Pipe ``text`` to a tool; returns True if it succeeded."""
    try:
        # No pipe for its output: these tools stay in the background, and would keep it open.
        done = subprocess.run(
            command,
            input=text.encode("utf-8", "replace"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
