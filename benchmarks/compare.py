"""Speed beside other programs: the same file, machine and threads, in turn.

    python -m benchmarks.compare MODEL --llama-cpp PYTHON [--transformers PYTHON]
        [--prompt 512] [--new 64] [--behind 0] [--rounds 5] [--threads 2] [--json FILE]

``PYTHON`` is the interpreter of an environment that has the program: llama-cpp-python for
llama.cpp. Every program loads the model once. Then in each round each of them in turn reads a
prompt of random tokens into an empty cache, and reads tokens one by one behind each number of
tokens in ``--behind``, while the others sleep. Nothing is sampled. Printed are medians, and the
median of the ratios within a round, since a shared machine is slower at times.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch

from llama_chat.generation.measuring import read_bandwidth

OURS = "llama-chat"


@dataclass
class Program:
    """A running program with a loaded model."""

    name: str
    requests: IO[str]
    replies: IO[str]
    speeds: dict[str, list[float]] = field(default_factory=dict)
    """Tokens per second of each task, by rounds."""

    def ask(self, task: str, n: int, **request: Any) -> None:
        """Let it do a task over ``n`` tokens, and note its speed."""
        self.requests.write(json.dumps({"n": n, **request}) + "\n")
        self.requests.flush()
        reply = self.replies.readline()
        if not reply:
            raise SystemExit(f"{self.name} ended early")
        self.speeds.setdefault(task, []).append(n / json.loads(reply)["seconds"])


@contextmanager
def start(name: str, python: str, arguments: list[str]) -> Iterator[Program]:
    """Run the runner of a program, and wait until it has loaded the model."""
    module = f"benchmarks.runners.{name.replace('-', '_').replace('llama_chat', 'ours')}"
    with subprocess.Popen(
        [python, "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent,
    ) as process:
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("no pipes")
        if not process.stdout.readline():
            raise SystemExit(f"{name} does not run in the environment of {python}")
        yield Program(name, process.stdin, process.stdout)
        process.stdin.close()


def ratios(ours: Program, peer: Program, task: str) -> list[float]:
    """How many times as fast we are, round by round."""
    return [a / b for a, b in zip(ours.speeds[task], peer.speeds[task], strict=True)]


def main() -> None:
    """Run all programs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", type=Path)
    parser.add_argument("--llama-cpp", metavar="PYTHON")
    parser.add_argument("--transformers", metavar="PYTHON")
    parser.add_argument("--prompt", type=int, default=512, help="tokens to prefill; 0 for none")
    parser.add_argument("--new", type=int, default=64, help="tokens to decode")
    parser.add_argument("--behind", type=int, nargs="*", default=[0], help="tokens before them")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    context = max([options.prompt, *(behind + options.new for behind in options.behind)]) + 8
    arguments = [str(options.model.resolve()), str(context), str(options.threads)]
    peers = {"llama-cpp": options.llama_cpp, "transformers": options.transformers}
    with ExitStack() as stack:
        programs = [
            stack.enter_context(start(name, python, arguments))
            for name, python in {OURS: sys.executable, **peers}.items()
            if python
        ]
        bandwidths = []
        for _ in range(options.rounds + 1):  # the first warms up
            for program in programs:
                if options.prompt:
                    program.ask("prefill", options.prompt, do="prefill")
                for behind in options.behind:
                    program.ask(f"decode behind {behind}", options.new, do="decode", behind=behind)
            bandwidths.append(read_bandwidth())
    report: dict[str, Any] = {
        "model": options.model.name,
        "threads": options.threads,
        "bandwidth_gb_s": [round(rate / 1e9, 2) for rate in bandwidths[1:]],
        "tasks": {},
    }
    print(f"{options.model.name}, {options.threads} threads, {options.rounds} rounds")
    print(f"read bandwidth {statistics.median(bandwidths[1:]) / 1e9:.1f} GB/s")
    for task in programs[0].speeds:
        cells = []
        for program in programs:
            program.speeds[task] = program.speeds[task][1:]
            cells.append(f"{program.name} {statistics.median(program.speeds[task]):8.2f} tok/s")
        found = {peer.name: ratios(programs[0], peer, task) for peer in programs[1:]}
        cells += [f"{statistics.median(r):.2f} x {name}" for name, r in found.items()]
        print(f"{task:<20} " + "  ".join(cells))
        report["tasks"][task] = {
            "tok_s": {program.name: program.speeds[task] for program in programs},
            "ratios": found,
        }
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
