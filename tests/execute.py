"""Runs a program text, as ``python -c`` does, but by a module, for which a process can be forked.

python -m tests.execute TEXT
"""

import sys

EXECUTE = [sys.executable, "-m", "tests.execute"]
"""The command, less the text."""

if __name__ == "__main__":
    exec(sys.argv[1])
