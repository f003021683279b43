"""The user's pager."""

import os
import shlex
import shutil
import tempfile
from collections.abc import Callable

from llama_chat.terminal.foreground import run_foreground


def page(text: str, should_stop: Callable[[], bool]) -> bool:
    """Show a text in ``$PAGER``, else in ``less``; False if that is not possible.

    Args:
        text: sanitized text with escape sequences for colours.
        should_stop: asked often; the pager is ended once it is True.
    """
    try:
        command = shlex.split(os.environ.get("PAGER", "less"))
        if not command or command == ["cat"] or shutil.which(command[0]) is None:
            return False
        with tempfile.TemporaryFile() as file:
            file.write(text.encode("utf-8", "replace"))
            file.seek(0)
            less = {"LESS": f"-R {os.environ.get('LESS', '')}", "LESSCHARSET": "utf-8"}
            status = run_foreground(command, should_stop, stdin=file, env=os.environ | less)
            return status == 0 or should_stop()
    except (OSError, ValueError):
        return False
