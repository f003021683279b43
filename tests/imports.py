"""Imports of torch by commands, checked in one new interpreter for all of them."""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.program import environment
from tests.conftest import ROOT

PROGRAM = """
import json, sys
from llama_chat.cli.app import run
for arguments in json.loads(sys.argv[1]):
    status = run(arguments)
    print("status", status, "torch" in sys.modules, file=sys.stderr)
"""


def statuses_and_torch(commands: Sequence[Sequence[str]], home: Path) -> list[str]:
    """Run command lines one after the other.

    Returns:
        for each its exit status, and whether torch has been imported: ``"0 False"``.
    """
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(commands)],
        input=b"",
        cwd=ROOT,
        capture_output=True,
        env=environment(home),
        timeout=60,
        check=False,
    )
    return re.findall(r"(?m)^status (.*)$", done.stderr.decode())
