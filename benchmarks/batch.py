"""Speed of decoding many sequences at once, beside llama.cpp on the same file.

    python -m benchmarks.batch MODEL [--llama-cpp PYTHON] [--sequences 1 2 4 8 16 32]
        [--prompt 100] [--new 32] [--rounds 5] [--threads 2]

Every sequence has a prompt of its own of random tokens. In each round, for each number of
sequences, each program in turn decodes ``--new`` tokens of all: ours with its scheduler, sampling
greedily; llama.cpp in one batch of its low-level interface, sampling nothing. It prints medians of
tokens per second over all sequences, and the medians of the ratios within a round: to the first
number of sequences, and to llama.cpp.
"""

import argparse
import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.compare import ratios
from benchmarks.programs import OURS, Program, add_options, interpreters, start

Speeds = dict[str, list[float]]
"""Tokens per second of each program, round by round."""


def decode(program: Program, n: int, n_before: int, n_new: int) -> float:
    """Decode ``n`` sequences after prompts of ``n_before`` tokens; returns tokens per second."""
    asked = {"n_sequences": n, "n_before": n_before, "n": n_new}
    return float(n * n_new / program.ask("together", **asked)["seconds"])


def race(
    programs: Sequence[Program], numbers: Sequence[int], n_before: int, n_new: int, rounds: int
) -> list[Speeds]:
    """Measure all ``numbers`` of sequences in each round, after a warm-up round."""
    speeds: list[Speeds] = [{program.name: [] for program in programs} for _ in numbers]
    for number in range(rounds + 1):
        for n, found in zip(numbers, speeds, strict=True):
            for program in programs:
                speed = decode(program, n, n_before, n_new)
                if number:
                    found[program.name].append(speed)
    return speeds


def main() -> None:
    """Measure all numbers of sequences, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", type=Path)
    add_options(parser)
    parser.add_argument("--sequences", type=int, nargs="*", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--prompt", type=int, default=100, help="tokens of each prompt")
    parser.add_argument("--new", type=int, default=32, help="tokens to decode of each")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    context = 2 * (options.prompt + options.new)
    with ExitStack() as stack:
        programs = [
            stack.enter_context(
                start(name, python, options.model, context=context, threads=options.threads)
            )
            for name, python in interpreters(options).items()
        ]
        print(f"{options.model.name}, {options.threads} threads, {options.rounds} rounds")
        measured = race(programs, options.sequences, options.prompt, options.new, options.rounds)
        for n, speeds in zip(options.sequences, measured, strict=True):
            cells = [
                f"{name} {statistics.median(found):8.2f} tok/s" for name, found in speeds.items()
            ]
            pairs = zip(speeds[OURS], measured[0][OURS], strict=True)
            first = options.sequences[0]
            cells.append(f"{statistics.median(many / one for many, one in pairs):.2f} x {first}")
            cells += [f"{statistics.median(r):.2f} x {name}" for name, r in ratios(speeds).items()]
            print(f"{n:3d} sequences  " + "  ".join(cells), flush=True)


if __name__ == "__main__":
    main()
