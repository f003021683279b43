"""A kill, or a call for a file that fails, loses nothing: a short form of the campaigns."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from harness.campaigns.kills import kill_batch, kill_chat, kill_server
from harness.process import ROOT


@pytest.mark.parametrize(("kill", "seed"), [(kill_chat, 2), (kill_batch, 3), (kill_server, 1)])
def test_a_kill_loses_nothing(
    kill: Callable[[Path, Path, Random], list[str]], seed: int, gguf_model: Path, tmp_path: Path
) -> None:
    assert not kill(gguf_model, tmp_path, Random(seed))


def test_a_failing_call_is_one_line_and_loses_nothing() -> None:
    command = [sys.executable, "-m", "harness.campaigns.io_faults", "--only", "sessions repair"]
    done = subprocess.run(
        [*command, "--every", "16", "--errors", "EIO"], cwd=ROOT, capture_output=True, text=True
    )
    if done.stdout.startswith("skipped"):
        pytest.skip(done.stdout)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["5 runs, 0 findings"])
