"""The oracle for one input, and runs of many in processes of their own.

An input must give a result, or a ``LlamaChatError`` of one printable line, in 2 s of processor time
and in 64 MB and twice its size over the memory before.
"""

import faulthandler
import mmap
import os
import pickle
import resource
import shutil
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from random import Random

from llama_chat.errors import LlamaChatError
from tests.fuzz.binaries import grown
from tests.fuzz.targets import TARGETS, Target

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
CORPUS = Path(__file__).parent / "corpus"

MAX_SECONDS = 2.0
HANGS_AFTER = 30.0
SPARE_BYTES = 64 * 2**20
MAX_INPUT = 4 * 2**20
_GROWN_EVERY = 200
"""Every n-th input is made large."""
_MAX_LINE = 1000
_MAX_ALLOCATED = 4 * 2**30
"""Limit on memory that a process may take beside what it has at first, so that no input harms the
machine."""


class Hang(BaseException):
    """A parser takes far too long; gates let this exception pass."""


@dataclass
class Report:
    """Outcome of many inputs."""

    n_inputs: int = 0
    n_read: int = 0
    cpu_s: float = 0.0
    """Processor time of all, with their making."""
    seconds: float = 0.0
    """Longest processor time for one."""
    n_bytes: int = 0
    """Most memory for one, beyond twice its size."""
    converted: Counter[str] = field(default_factory=Counter)
    """Refusals that a gate made of exceptions of other types, by these."""
    findings: list[str] = field(default_factory=list)
    """Labels of inputs, each with what is wrong."""

    def add(self, other: "Report") -> None:
        """Add the outcome of other inputs."""
        self.n_inputs += other.n_inputs
        self.n_read += other.n_read
        self.cpu_s += other.cpu_s
        self.seconds = max(self.seconds, other.seconds)
        self.n_bytes = max(self.n_bytes, other.n_bytes)
        self.converted += other.converted
        self.findings += other.findings


def corpus(name: str) -> list[Path]:
    """List the files that are kept for a target: those that failed once, and small odd ones."""
    return sorted((CORPUS / name).glob("*"))


def label(name: str, number: int) -> str:
    """Return the label of an input."""
    return str(corpus(name)[number].relative_to(CORPUS)) if number < 0 else f"{name} {number}"


def make_input(target: Target, name: str, seed: int, number: int) -> bytes:
    """Make an input, the same each time; negative numbers are those of files of the corpus."""
    if number < 0:
        return corpus(name)[number].read_bytes()
    random = Random(f"{seed} {name} {number}")
    data = target.mutate(random.choice(target.seeds), random)
    return grown(data, random, MAX_INPUT) if number % _GROWN_EVERY == 7 else data[:MAX_INPUT]


def judge(target: Target, data: bytes, report: Report) -> str:
    """Let the target read an input; returns what is wrong, empty if nothing is."""
    target.file.write_bytes(data)
    wrong = ""
    before, began = _clear_peak(), time.process_time()
    try:
        with _interrupted():
            target.read()
        report.n_read += 1
    except LlamaChatError as error:
        wrong = _wrong_line(error, str(target.file.parent))
        if error.__cause__ is not None:
            report.converted[type(error.__cause__).__name__] += 1
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        where = traceback.extract_tb(error.__traceback__)[-1]
        shown = f"{type(error).__name__}: {str(error)[:200]!r}"
        wrong = f"{shown} at {Path(where.filename).name}:{where.lineno}"
    seconds, over = time.process_time() - began, _peak() - before - 2 * len(data)
    report.seconds, report.n_bytes = max(report.seconds, seconds), max(report.n_bytes, over)
    if seconds > MAX_SECONDS:
        wrong = wrong or f"{seconds:.1f} s"
    if over > SPARE_BYTES:
        wrong = wrong or f"{over >> 20} MB over twice its {len(data):,} bytes"
    return wrong


def _wrong_line(error: LlamaChatError, folder: str) -> str:
    line = str(error).replace(folder, "")
    if "not enough memory" in error.why:
        return "it takes gigabytes"
    if not line.isprintable():
        return f"not one printable line: {line[:200]!r}"
    if line.count(": ") < 2:
        return f"not of three parts: {line[:200]!r}"
    return f"a line of {len(line)} characters" if len(line) > _MAX_LINE else ""


def _clear_peak() -> int:
    """Make the memory in use the peak; returns it in bytes."""
    with _CLEAR.open("wb", buffering=0) as file:
        file.write(b"5")
    return _peak()


def _peak() -> int:
    with _STATUS.open("rb", buffering=0) as file:
        return _figure(file.read(4096), b"VmHWM")


def _figure(status: bytes, name: bytes) -> int:
    return int(status.partition(name + b":")[2].split(maxsplit=1)[0]) * 1024


@contextmanager
def _interrupted() -> Iterator[None]:
    """Raise ``Hang`` in what takes far too long."""
    signal.setitimer(signal.ITIMER_REAL, HANGS_AFTER)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _hang(number: int, frame: object) -> None:
    raise Hang(f"still running after {HANGS_AFTER:g} s")


def run_here(
    name: str, folder: Path, seed: int, numbers: range, at: Callable[[int], None]
) -> Report:
    """Judge inputs in this process, and call ``at`` with the number of each before."""
    target, report = TARGETS[name](folder), Report()
    signal.signal(signal.SIGALRM, _hang)
    limit = _figure(_STATUS.read_bytes(), b"VmSize") + _MAX_ALLOCATED
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    began = time.process_time()
    for number in numbers:
        at(number)
        data = make_input(target, name, seed, number)
        wrong = judge(target, data, report)
        if wrong.startswith(Hang.__name__):  # unless the machine was busy, or asleep
            wrong = judge(target, data, report)
        report.n_inputs += 1
        if wrong:
            report.findings.append(f"{label(name, number)}: {wrong}")
    report.cpu_s = time.process_time() - began
    return report


@dataclass
class _Child:
    """A process that judges inputs."""

    name: str
    numbers: range
    folder: Path
    place: mmap.mmap
    """Memory that it shares with this one: the number of its input."""

    def at(self, number: int) -> None:
        """Record the number of the input that is judged."""
        self.place[:8] = number.to_bytes(8, "little", signed=True)


def run(
    names: list[str], seed: int, numbers: range, *, workers: int = 1, chunk: int = 2000
) -> Iterator[tuple[str, Report]]:
    """Judge inputs of some targets in child processes, and yield a report of each part.

    Those of the corpus come first, before input 0. A process that dies of an input is a finding,
    and another one goes on after that input.

    Args:
        names: the targets.
        seed: of all inputs.
        numbers: those of the inputs of each target.
        workers: processes at a time.
        chunk: inputs of a process.
    """
    import_module("transformers.models.llama.modeling_llama")  # once, before processes are forked
    kept = [(name, range(-len(corpus(name)), 0)) for name in names if numbers.start == 0]
    parts = [(name, part) for name, part in kept if part] + [
        (name, numbers[start : start + chunk])
        for start in range(0, len(numbers), chunk)
        for name in names
    ]
    active: dict[int, _Child] = {}
    try:
        while parts or active:
            while parts and len(active) < workers:
                child = _Child(*parts.pop(0), Path(tempfile.mkdtemp()), mmap.mmap(-1, 8))
                child.at(child.numbers.start)
                active[_fork(child, seed)] = child
            pid, status = os.wait()
            child = active.pop(pid)
            report, rest = _outcome(child, status)
            shutil.rmtree(child.folder, ignore_errors=True)
            if rest:
                parts.insert(0, (child.name, rest))
            yield child.name, report
    finally:
        for pid, child in active.items():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            shutil.rmtree(child.folder, ignore_errors=True)


def _fork(child: _Child, seed: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        faulthandler.enable()
        model = child.folder / "model"
        model.mkdir()
        report = run_here(child.name, model, seed, child.numbers, child.at)
        (child.folder / "report").write_bytes(pickle.dumps(report))
        status = 0
    except KeyboardInterrupt:
        pass
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _outcome(child: _Child, status: int) -> tuple[Report, range]:
    """Return the report of a process that has ended, and the numbers that it left."""
    file = child.folder / "report"
    if status == 0 and file.exists():
        found: Report = pickle.loads(file.read_bytes())
        return found, range(0)
    number = int.from_bytes(child.place[:8], "little", signed=True)
    died = f"the process ended with status {os.waitstatus_to_exitcode(status)}"
    rest = range(number + 1, child.numbers.stop)
    return Report(
        n_inputs=number - child.numbers.start + 1, findings=[f"{label(child.name, number)}: {died}"]
    ), rest
