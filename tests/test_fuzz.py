"""A few inputs of every target of ``make fuzz``, all that ever failed, and the oracle itself."""

import mmap
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from harness.process import ROOT
from llama_chat.errors import ModelError, UsageError
from tests.fuzz import running
from tests.fuzz.running import Report, make_input, run
from tests.fuzz.targets import TARGETS, Target

N_INPUTS = 20


def test_mutated_files_and_those_that_failed_once_are_read_or_refused_in_one_line() -> None:
    # In a process of its own: this one may have threads of torch, which no fork survives.
    command = [sys.executable, "-m", "tests.fuzz", "--count", str(N_INPUTS), "--workers", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in TARGETS:
        line = next(line for line in done.stdout.splitlines() if line.startswith(f"{name}: "))
        assert f": {N_INPUTS + len(running.corpus(name))} inputs, " in line
        assert ", 0 read," not in line  # the files are good before they are mutated


def outcome(numbers: range, **options: int) -> Report:
    """Judge inputs of the target that is planted."""
    found = Report()
    for _, report in run(["planted"], 0, numbers, **options):
        found.add(report)
    return found


def test_the_corpus_is_small_and_of_known_targets() -> None:
    files = [file for file in running.CORPUS.rglob("*") if file.is_file()]
    assert {file.parent.name for file in files} <= set(TARGETS)
    assert sum(file.stat().st_size for file in files) < 300_000


def test_a_number_is_the_same_input_again(tmp_path: Path) -> None:
    target = TARGETS["llama2c"](tmp_path)
    one, other = (make_input(target, "llama2c", 3, 7) for _ in range(2))
    assert one == other
    assert len(one) <= running.MAX_INPUT
    assert one != make_input(target, "llama2c", 3, 8)
    assert one != make_input(target, "llama2c", 4, 7)


# ---- the oracle


def planted(monkeypatch: pytest.MonkeyPatch, read: Callable[[Path], object]) -> None:
    """Make one target of a parser that gets files of their numbers."""

    def make(folder: Path) -> Target:
        file = folder / "file"
        return Target(file, [], lambda data, random: data, lambda: read(file))

    def numbered(target: Target, name: str, seed: int, number: int) -> bytes:
        return str(number).encode()

    monkeypatch.setitem(TARGETS, "planted", make)
    monkeypatch.setattr(running, "make_input", numbered)


def hold(n_bytes: int) -> None:
    # New pages: the allocator may have that much left, which would not count.
    with mmap.mmap(-1, n_bytes) as memory:
        for at in range(0, n_bytes, mmap.PAGESIZE):
            memory[at] = 1


def compute(seconds: float) -> None:
    began = time.process_time()
    while time.process_time() - began < seconds:
        pass


def refuse(why: str) -> None:
    raise ModelError("file", why, "download it again")


BAD: dict[str, tuple[Callable[[], object], str]] = {
    "exception": (lambda: TARGETS["x"], "KeyError: \"'x'\" at test_fuzz.py:"),
    "line feed": (lambda: refuse("one\ntwo"), "not one printable line"),
    "escape": (lambda: refuse("a \x1b[2J"), "not one printable line"),
    "long": (lambda: refuse("a" * 2000), "a line of 2025 characters"),
    "parts": (lambda: refuse(""), "not of three parts"),
    "memory": (lambda: hold(100 * 2**20), "MB over twice its 1 bytes"),
    "gigabytes": (lambda: refuse("not enough memory to read it"), "it takes gigabytes"),
    "slow": (lambda: compute(0.2), "0.2 s"),
    "hang": (lambda: time.sleep(5), "Hang: 'still running after 0.3 s'"),
    "exit": (lambda: os._exit(7), "the process ended with status 7"),
    "crash": (lambda: os.kill(os.getpid(), 11), "the process ended with status -11"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_parser_that_misbehaves_is_found(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    misbehave, what = BAD[kind]

    def read(file: Path) -> None:
        number = int(file.read_bytes())
        if number == 2:
            misbehave()
        if number == 1:
            raise UsageError("file", "odd", "mend it")

    planted(monkeypatch, read)
    monkeypatch.setattr(running, "MAX_SECONDS", 0.1 if kind == "slow" else 2.0)
    monkeypatch.setattr(running, "HANGS_AFTER", 0.3 if kind == "hang" else 30.0)
    if kind == "parts":
        monkeypatch.setattr(ModelError, "__str__", lambda error: "no parts")
    report = outcome(range(5))
    assert report.n_inputs == 5
    assert len(report.findings) == 1
    assert report.findings[0].startswith("planted 2: ")
    assert what in report.findings[0]


def test_what_a_gate_converts_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(file: Path) -> None:
        if file.read_bytes() == b"3":
            raise ModelError("file", "odd", "mend it") from KeyError("x")

    planted(monkeypatch, read)
    report = outcome(range(7), workers=2, chunk=3)
    assert (report.n_inputs, report.n_read, report.findings) == (7, 6, [])
    assert report.converted == {"KeyError": 1}


def test_mutations_change_what_they_are_given(tmp_path: Path) -> None:
    target = TARGETS["llama2c"](tmp_path)
    seed = target.seeds[0]
    changed = [target.mutate(seed, Random(number)) for number in range(50)]
    assert len({*changed, seed}) > 40
