"""Attack settings files and prompt files: mutate good ones, and read them.

    python -m harness.campaigns.text [--count 20000] [--seed 0] [--first 0] [--program-every 100]

Each file is read in this process; one of so many goes through the program too. A finding is an
exception that is no usage error, an error that is not one printable line of three parts, a wrong
status, over two seconds, or over 300 MB of memory.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from harness.process import ROOT
from harness.program import run
from llama_chat.chat.prompt_files import SETTING_KEYS, list_prompts, load_prompt
from llama_chat.errors import UsageError
from llama_chat.settings.definitions import SETTINGS
from llama_chat.settings.sources import load_settings
from tests.fuzz.texts import mutate

_MAX_S = 2.0
_MAX_BYTES = 300 * 10**6


@dataclass(frozen=True)
class Kind:
    """Kind of files to attack."""

    name: str
    suffixes: tuple[str, ...]
    good: list[bytes]
    """Files to mutate."""
    keys: list[str]
    read: Callable[[Path], object]
    """Reads a file in this process."""
    command: tuple[str, ...]
    """Command that reads a file in the program; its path follows."""


@dataclass
class Report:
    """Result of an attack."""

    findings: list[str] = field(default_factory=list)
    n_accepted: int = 0
    """Files that were valid in spite of their mutations."""
    seconds: float = 0.0
    """Longest time for one file."""
    n_bytes: int = 0
    """Most memory for one file."""


def kinds() -> list[Kind]:
    """Return the kinds of files to attack."""
    settings = (ROOT / "config.toml").read_bytes()
    prompts = [path.read_bytes() for path in sorted((ROOT / "prompts").glob("**/*.t*"))]
    return [
        Kind(
            "settings",
            (".toml",),
            # The second sets all that is unset by default.
            [settings, settings.replace(b"\n# ", b"\n"), b"", b"top_p = 0.5\nstop = ['a', 'b']\n"],
            list(SETTINGS),
            lambda path: load_settings({}, path, {}),
            ("config", "show", "--config"),
        ),
        Kind(
            "prompts",
            (".toml", ".toml", ".txt"),
            [*prompts, b""],
            [*SETTING_KEYS, "examples", "user", "assistant", "system", "pattern", "stop"],
            _read_prompt,
            ("complete", "-m", "nowhere"),
        ),
    ]


def _read_prompt(path: Path) -> None:
    assert any(entry.path == path for entry in list_prompts())
    prompt = load_prompt(str(path))
    assert all(isinstance(text, str) for text in prompt.renders())
    assert set(prompt.values) <= set(SETTINGS)


def attack(kind: Kind, numbers: range, seed: int, program_every: int = 0) -> Report:
    """Read mutated files.

    Args:
        kind: the files to mutate.
        numbers: numbers of the mutations.
        seed: seed of all of them.
        program_every: send one file of so many through the program; 0 for none.
    """
    report = Report()
    with tempfile.TemporaryDirectory() as folder, _home(Path(folder)) as home:
        prompts = home / ".config/llama-chat/prompts"
        prompts.mkdir(parents=True)
        for number in numbers:
            chosen = random.Random(f"{seed} {kind.name} {number}")
            path = prompts / f"mutated{chosen.choice(kind.suffixes)}"
            path.write_bytes(mutate(chosen.choice(kind.good), kind.good, kind.keys, chosen))
            problems = [*_read(kind, path, report)]
            if program_every and number % program_every == 0:
                problems += _run(kind, path, home)
            report.findings += [f"{kind.name} {number}: {problem}" for problem in problems]
            path.unlink()
    return report


@contextmanager
def _home(folder: Path) -> Iterator[Path]:
    """Make ``folder`` the home."""
    before = dict(os.environ)
    os.environ["HOME"] = str(folder)
    os.environ.pop("XDG_CONFIG_HOME", None)
    try:
        yield folder
    finally:
        os.environ.clear()
        os.environ.update(before)


def _read(kind: Kind, path: Path, report: Report) -> Iterator[str]:
    """Read a file, and yield what is wrong with that."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what is in use now
    before, began = memory_figure("VmRSS"), time.perf_counter()
    try:
        with _alarm():
            kind.read(path)
        report.n_accepted += 1
    except UsageError as error:
        yield from _problems(f"llama-chat: error: {error}\n", path)
    except Exception as error:
        yield f"{type(error).__name__}: {str(error)[:100]}"
    seconds, n_bytes = time.perf_counter() - began, memory_figure("VmHWM") - before
    report.seconds, report.n_bytes = max(report.seconds, seconds), max(report.n_bytes, n_bytes)
    if seconds > _MAX_S:
        yield f"{seconds:.1f} s"
    if n_bytes > _MAX_BYTES:
        yield f"{n_bytes / 1e6:.0f} MB"


def memory_figure(name: str) -> int:
    """Return a figure of the memory of this process in bytes."""
    text = Path("/proc/self/status").read_text()
    return int(text.partition(f"{name}:")[2].split(maxsplit=1)[0]) * 1024


@contextmanager
def _alarm() -> Iterator[None]:
    """Raise ``TimeoutError`` in what takes far too long."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 10 * _MAX_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _run(kind: Kind, path: Path, home: Path) -> Iterator[str]:
    """Read a file in the program, and yield what is wrong with that."""
    done = run(*kind.command, path, home=home, stdin=None)
    errors = [line for line in done.err.splitlines(keepends=True) if ": warning: " not in line]
    if done.status == 0 and not errors:
        return
    if done.status != 2 and not (done.status == 3 and "'nowhere'" in done.err):
        yield f"status {done.status}: {done.err[:200]!r}"
    yield from _problems("".join(errors), path)


def _problems(err: str, path: Path) -> Iterator[str]:
    """Yield what is wrong with an error line."""
    line = err.replace(str(path), "PATH").removesuffix("\n")
    if not line.startswith("llama-chat: error: ") or line.count(": ") < 3:
        yield f"not of three parts: {line[:200]!r}"
    if not line.isprintable():
        yield f"not one printable line: {line[:200]!r}"
    if len(line) > 500:
        yield f"a line of {len(line)} characters"


def main() -> None:
    """Attack all kinds, and print the findings and the figures."""
    parser = argparse.ArgumentParser(description="Attack settings files and prompt files.")
    parser.add_argument("--count", type=int, default=20_000, help="files of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first file")
    parser.add_argument("--program-every", type=int, default=100, help="0 for never")
    given = parser.parse_args()
    n_findings = 0
    for kind in kinds():
        began = time.perf_counter()
        numbers = range(given.first, given.first + given.count)
        report = attack(kind, numbers, given.seed, given.program_every)
        for finding in report.findings:
            print(finding)
        n_findings += len(report.findings)
        print(
            f"{kind.name}: {given.count} files in {time.perf_counter() - began:.0f} s, "
            f"{report.n_accepted} of them valid, {len(report.findings)} findings; "
            f"at most {report.seconds:.2f} s and {report.n_bytes / 1e6:.0f} MB for one",
            flush=True,
        )
    sys.exit(n_findings > 0)


if __name__ == "__main__":
    main()
