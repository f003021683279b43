"""Run a program text like ``python -c``, but as a module, which the fork server can run.

python -m tests.execute TEXT
"""

import sys

EXECUTE = [sys.executable, "-m", "tests.execute"]
"""Command that runs a text, which follows it."""

if __name__ == "__main__":
    exec(sys.argv[1])
