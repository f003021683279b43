"""Copying to the clipboard, because a person asked for it."""

import base64
import os
import shutil
import subprocess

from llama_chat.terminal.renderer import Renderer

_TOOLS = (
    ("WAYLAND_DISPLAY", ["wl-copy"]),
    ("DISPLAY", ["xclip", "-selection", "clipboard"]),
    ("DISPLAY", ["xsel", "--clipboard", "--input"]),
    (None, ["pbcopy"]),
)
"""The environment variable without which a tool has no clipboard, and its command."""

_PATIENCE_S = 5.0


def copy(text: str, renderer: Renderer) -> str:
    """Copy ``text``, and return how: by a tool of this machine, else through the terminal.

    Over SSH the terminal is the only way to the clipboard that the person sees.
    """
    for variable, command in () if os.environ.get("SSH_TTY") else _TOOLS:
        there = variable is None or os.environ.get(variable)
        if there and shutil.which(command[0]) and _run(command, text):
            return f"by {command[0]}"
    # OSC 52; nothing tells whether the terminal allows it.
    data = base64.b64encode(text.encode("utf-8", "replace")).decode()
    renderer.write(f"\x1b]52;c;{data}\x07")
    return "through the terminal, if it allows that"


def _run(command: list[str], text: str) -> bool:
    """Give ``text`` to a tool; whether that went well."""
    try:
        # Its output is not awaited: such tools stay in the background to serve the clipboard.
        done = subprocess.run(
            command,
            input=text.encode("utf-8", "replace"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_PATIENCE_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
