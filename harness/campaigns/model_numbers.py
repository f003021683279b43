"""Attack by every number that a model file states, each replaced by extreme ones.

    python -m harness.campaigns.model_numbers

Each model is given to ``inspect``, ``complete``, ``convert`` and ``tokenize``, and each must refuse
it: exit status 3 and one line, within 2 s, and within 64 MB and twice the size of the file over the
memory of a run that does nothing. With a value that a model may have a command may also succeed,
within the same time and memory.
"""

import math
import shutil
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from harness.campaigns.numbered_files import Number, Value, numbers
from harness.program import FORBIDDEN, Program

VALUES = (0, 1, 2**31 - 1, 2**31, 2**32, 2**63, 2**64 - 1, -1, -(2**31), -(2**63), math.nan)

COMMANDS = {
    "inspect": ("inspect", "{model}"),
    "complete": ("complete", "-", "--model", "{model}", "--max-tokens", "1", "--quiet"),
    "convert": ("convert", "{model}", "{out}", "--quiet"),
    "tokenize": ("tokenize", "--model", "{model}"),
}

MAX_SECONDS = 2.0
MAX_BYTES = 64 * 2**20

REFUSED = 3
SUCCEEDED = (0, 4)
"""Statuses with a possible value; 4 where the prompt is longer than the context."""


@dataclass(frozen=True)
class Run:
    """A run of the program."""

    status: int
    out: str
    err: str
    seconds: float
    peak_rss: int


def run(home: Path, *arguments: str) -> Run:
    """Run the program, with a word on stdin."""
    began = time.monotonic()
    with Program(*arguments, home=home) as program:
        out, err = program.communicate(b"the", 30)
        seconds = time.monotonic() - began
        return Run(program.wait(0), out.decode(), err.decode(), seconds, program.peak_rss)


def bare_run(home: Path) -> Run:
    """Run the program without a task."""
    return run(home, "--version")


def run_command(home: Path, command: str, model: Path) -> Run:
    """Run one of ``COMMANDS`` on a model; twice if it was slow, since the machine may be busy."""
    out = home / "out"
    arguments = [part.format(model=model, out=out) for part in COMMANDS[command]]
    for _ in range(2):
        result = run(home, *arguments)
        shutil.rmtree(out, ignore_errors=True)
        if result.seconds <= MAX_SECONDS:
            break
    return result


def changed_numbers(folder: Path) -> Iterator[tuple[Number, Value]]:
    """Write models, and yield each number with each value that is in its file at that time."""
    for number in numbers(folder):
        whole = number.file.read_bytes()
        for value in VALUES:
            with suppress(struct.error):  # a value that the format cannot state
                number.file.write_bytes(number.replaced(value))
                yield number, value
        number.file.write_bytes(whole)


def finding(result: Run, bare: Run, n_bytes: int, *, possible: bool) -> str:
    """Return what is wrong with a run on a file of ``n_bytes``; empty if nothing is."""
    errors = [line for line in result.err.splitlines() if ": error: " in line]
    over = result.peak_rss - bare.peak_rss
    if result.status != REFUSED and not (possible and result.status in SUCCEEDED):
        return f"status {result.status}: {result.err or result.out}"
    if result.status == REFUSED and (len(errors) != 1 or result.out):
        return f"not one line: {result.err}"
    if any(word in result.err for word in FORBIDDEN):
        return f"words of Python: {result.err}"
    if result.seconds > MAX_SECONDS:
        return f"{result.seconds:.1f} s"
    return f"{over >> 20} MB" if over > MAX_BYTES + 2 * n_bytes else ""


def main() -> int:
    """Run the campaign, and print its findings and figures."""
    statuses: Counter[str] = Counter()
    n_findings, slowest, largest = 0, 0.0, 0
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        bare = bare_run(home)
        for number, value in changed_numbers(home / "models"):
            possible = number.may_be(value)
            for command in COMMANDS:
                result = run_command(home, command, number.model)
                statuses[f"{command} {result.status}"] += 1
                slowest = max(slowest, result.seconds)
                largest = max(largest, result.peak_rss - bare.peak_rss)
                n_bytes = number.file.stat().st_size
                if wrong := finding(result, bare, n_bytes, possible=possible):
                    n_findings += 1
                    print(f"{command}, {number.file.name}, {number.name} = {value}: {wrong}")
    print(f"{statuses.total()} runs, {n_findings} findings: {dict(sorted(statuses.items()))}")
    print(f"at most {slowest:.2f} s, and {largest / 2**20:.0f} MB over {bare.peak_rss >> 20} MB")
    return 1 if n_findings else 0


if __name__ == "__main__":
    sys.exit(main())
