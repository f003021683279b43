"""A current folder that was deleted."""

import subprocess
import sys
from pathlib import Path

import pytest

from harness.process import ROOT
from harness.program import Result, assert_clean_error, environment

GONE = 'cd "$0" && rmdir "$0" && exec "$@"'


@pytest.mark.parametrize(
    "command", ["ask hi", "complete -", "tokenize -", "bench", "inspect", "serve"]
)
def test_a_deleted_folder_is_one_line_before_torch_is_imported(
    command: str, gguf_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    program = [sys.executable, "-X", "importtime", "-m", "llama_chat", *command.split()]
    program += [str(gguf_model)] if command == "inspect" else ["-m", str(gguf_model)]
    done = subprocess.run(
        ["sh", "-c", GONE, str(folder), *program],
        env=environment(tmp_path, PYTHONPATH=str(ROOT)),
        input="hello",
        capture_output=True,
        text=True,
        check=False,
    )
    imported = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    assert not any(line.endswith("| torch") for line in imported)
    errors = "\n".join(line for line in done.stderr.splitlines() if line not in imported)
    result = Result(done.returncode, done.stdout, errors)
    assert_clean_error(result, 2, "current folder: no such file or directory: change to one")
