"""Compare speed with other programs: the same file, machine and threads, in turn.

    python -m benchmarks.compare MODEL --llama-cpp PYTHON [--transformers PYTHON]
        [--prompt 512] [--new 64] [--context 0] [--rounds 5] [--threads 2] [--json FILE]

``PYTHON`` is explained in ``benchmarks.programs``. Every program loads the model once. In each
round each program in turn prefills a prompt of random tokens into an empty cache, and then decodes
after each number of tokens in ``--context``, while the others sleep. Nothing is sampled. It prints
medians, and the median of the ratios within a round, since the speed of a shared machine varies.
``benchmarks.plot`` draws what ``--json`` writes.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from benchmarks.programs import OURS, Program, add_options, interpreters, start
from llama_chat.generation.measuring import read_bandwidth

Speeds = dict[str, dict[str, list[float]]]
"""Tokens per second by task and program, round by round."""

DECODE = "decode after "
"""Start of the name of a decode task; the number of tokens before it follows."""


def race(programs: Sequence[Program], n_prompt: int, n_new: int, lengths: Sequence[int]) -> Speeds:
    """Measure one round, in tokens per second."""
    speeds: Speeds = {}

    def take(task: str, program: Program, do: str, n: int, **arguments: int) -> None:
        seconds = program.ask(do, n=n, **arguments)["seconds"]
        speeds.setdefault(task, {})[program.name] = [n / seconds]

    for program in programs:
        if n_prompt:
            take("prefill", program, "prefill", n_prompt)
        for length in lengths:
            take(f"{DECODE}{length}", program, "decode", n_new, n_before=length)
    return speeds


def joined(rounds: Sequence[Speeds]) -> Speeds:
    """Merge the speeds of all rounds."""
    return {
        task: {name: [speed for found in rounds for speed in found[task][name]] for name in by_name}
        for task, by_name in rounds[0].items()
    }


def ratios(speeds: dict[str, list[float]]) -> dict[str, list[float]]:
    """Divide our speed by that of each other program, round by round."""
    return {
        name: [a / b for a, b in zip(speeds[OURS], theirs, strict=True)]
        for name, theirs in speeds.items()
        if name != OURS
    }


def print_table(speeds: Speeds) -> None:
    """Print a line for each task."""
    for task, by_name in speeds.items():
        cells = [f"{name} {statistics.median(s):8.2f} tok/s" for name, s in by_name.items()]
        cells += [f"{statistics.median(r):.2f} x {name}" for name, r in ratios(by_name).items()]
        print(f"{task:<20} " + "  ".join(cells))


def main() -> None:
    """Run all programs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", type=Path)
    add_options(parser)
    parser.add_argument("--prompt", type=int, default=512, help="tokens to prefill; 0 for none")
    parser.add_argument("--new", type=int, default=64, help="tokens to decode")
    parser.add_argument("--context", type=int, nargs="*", default=[0], help="tokens before them")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    context = max([options.prompt, *(length + options.new for length in options.context)]) + 8
    rounds, bandwidths = [], []
    with ExitStack() as stack:
        programs = [
            stack.enter_context(
                start(name, python, options.model, context=context, threads=options.threads)
            )
            for name, python in interpreters(options).items()
        ]
        for _ in range(options.rounds + 1):  # the first warms up
            rounds.append(race(programs, options.prompt, options.new, options.context))
            bandwidths.append(read_bandwidth())
    speeds, bandwidths = joined(rounds[1:]), bandwidths[1:]
    print(f"{options.model.name}, {options.threads} threads, {options.rounds} rounds")
    print(f"read bandwidth {statistics.median(bandwidths) / 1e9:.1f} GB/s")
    print_table(speeds)
    if options.json:
        report: dict[str, Any] = {
            "model": options.model.name,
            "threads": options.threads,
            "bandwidth_gb_s": [round(rate / 1e9, 2) for rate in bandwidths],
            "tasks": {
                task: {"tok_s": by_name, "ratios": ratios(by_name)}
                for task, by_name in speeds.items()
            },
        }
        options.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
