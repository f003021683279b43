"""The history of inputs, written by many programs at once."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

from prompt_toolkit.history import FileHistory

from tests.conftest import ROOT

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
