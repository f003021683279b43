"""Running the program as a person's shell does."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

COMMAND = [sys.executable, "-m", "llama_chat"]

FORBIDDEN = ("Traceback", "Exception ignored", "Aborted", "Error(", "Error:")
CONTROLS = {chr(code) for code in range(0x20)} - {"\n", "\t"} | {"\x7f"}


@dataclass(frozen=True)
class Result:
    """What a run of the program left."""

    status: int
    out: str
    err: str


def environment(home: Path, **changes: str) -> dict[str, str]:
    """A clean environment whose folders are all below ``home``."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("LLAMA_CHAT_", "XDG_"))}
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        kept.pop(name, None)
    return kept | {"HOME": str(home), "TERM": "xterm-256color"} | changes


def run(*arguments: str | Path, home: Path, stdin: bytes | None = b"", **env: str) -> Result:
    """Run the program to its end; stdin is what is piped to it."""
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        env=environment(home, **env),
        timeout=120,
        check=False,
    )
    return Result(done.returncode, done.stdout.decode(), done.stderr.decode())


def assert_clean_error(result: Result, status: int, *parts: str) -> None:
    """One line that says what is wrong, the right status, and nothing else anywhere."""
    assert (result.status, result.out) == (status, ""), result
    errors = [line for line in result.err.splitlines() if "error:" in line]
    assert len(errors) == 1, result.err
    line = errors[0]
    assert line.startswith("llama-chat: error: ")
    assert line.count(": ") >= 3, line
    for part in parts:
        assert part in line, line
    for word in FORBIDDEN:
        assert word not in result.err
    assert not CONTROLS & set(result.err)
