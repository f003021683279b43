"""Attack parsers by mutated files.

    python -m tests.fuzz [--count 20000 | --minutes 10] [--seed 0] [TARGET …]

Prints each finding, with the command that makes its input again, and a line for each parser; after
Ctrl-C, too.
"""

import argparse
import os
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

from tests.fuzz.running import Report, make_input, run
from tests.fuzz.targets import MAIN, TARGETS


def main() -> int:
    """Run a campaign."""
    given = _arguments()
    if given.save is not None:
        return _save(given.targets[0], given.seed, given.save)
    began, found = time.monotonic(), defaultdict[str, Report](Report)
    with suppress(KeyboardInterrupt):  # what was done until then is reported
        _attack(given, began, found)
    for name, report in found.items():
        converted = ", ".join(f"{kind} {n}" for kind, n in report.converted.most_common(5))
        print(
            f"{name}: {report.n_inputs} inputs, {report.n_read} read, {report.cpu_s:.0f} s of CPU, "
            f"{len(report.findings)} findings; at most {report.seconds:.2f} s and "
            f"{report.n_bytes >> 20} MB over twice the file; by the gate: {converted or 'none'}"
        )
    n_findings = sum(len(report.findings) for report in found.values())
    n_inputs = sum(report.n_inputs for report in found.values())
    seconds = time.monotonic() - began
    print(f"{n_inputs} inputs of seed {given.seed} in {seconds:.0f} s, {n_findings} findings")
    return 1 if n_findings else 0


def _attack(given: argparse.Namespace, began: float, found: dict[str, Report]) -> None:
    """Run inputs until there are enough, and add to what was ``found``; prints each finding."""
    first = given.first
    while True:
        numbers = range(first, first + given.count)
        for name, report in run(given.targets, given.seed, numbers, workers=given.workers):
            found[name].add(report)
            for finding in report.findings:
                print(f"seed {given.seed}, {finding}", flush=True)
            if given.minutes and time.monotonic() - began > given.minutes * 60:
                return
        first += given.count
        if not given.minutes:
            return


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Attack parsers.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--count", type=int, default=20_000, help="inputs of each parser")
    parser.add_argument("--minutes", type=float, default=0, help="go on with more, for so long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--main", action="store_true", help="not those of small files")
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--save", type=int, help="write the input of this number to stdout")
    given = parser.parse_args()
    if unknown := set(given.targets) - set(TARGETS):
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    given.targets = given.targets or list(MAIN if given.main else TARGETS)
    return given


def _save(name: str, seed: int, number: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        target = TARGETS[name](Path(folder))
        sys.stdout.buffer.write(make_input(target, name, seed, number))
    return 0


if __name__ == "__main__":
    sys.exit(main())
