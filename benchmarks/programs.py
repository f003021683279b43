"""Compared programs: each runs in its own Python environment, with a model loaded.

``PYTHON`` in the options of a benchmark is the interpreter of an environment that has the program:
llama-cpp-python for llama.cpp.
"""

import json
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

OURS = "llama-chat"

RUNNERS = {OURS: "ours", "llama.cpp": "llama_cpp", "transformers": "transformers"}
"""The module of ``benchmarks.runners`` that drives a program."""


@dataclass(frozen=True, slots=True)
class Program:
    """A running program with a loaded model."""

    name: str
    requests: IO[str]
    replies: IO[str]

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Send a request, and wait for the answer; see ``benchmarks.runners.serving``."""
        self.requests.write(json.dumps({"do": do, **arguments}) + "\n")
        self.requests.flush()
        reply = self.replies.readline()
        if not reply:
            raise SystemExit(f"{self.name} ended early")
        answer: dict[str, Any] = json.loads(reply)
        return answer


@contextmanager
def start(
    name: str, python: str, model: Path, *, context: int, threads: int, **options: Any
) -> Iterator[Program]:
    """Start the runner of a program, and wait until it has loaded the model.

    Args:
        name: one of ``RUNNERS``.
        python: the interpreter of its environment.
        model: path of the model.
        context: context length in tokens.
        threads: CPU threads to compute in.
        options: more options of loading, by the program's own names.
    """
    arguments = [str(model.resolve()), str(context), str(threads), json.dumps(options)]
    with subprocess.Popen(
        [python, "-m", f"benchmarks.runners.{RUNNERS[name]}", *arguments],
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


def add_options(parser: ArgumentParser) -> None:
    """Add the options for the interpreters of the other programs, and for the threads of all."""
    parser.add_argument("--llama-cpp", metavar="PYTHON")
    parser.add_argument("--transformers", metavar="PYTHON")
    parser.add_argument("--threads", type=int, default=2)


def interpreters(options: Namespace) -> dict[str, str]:
    """Return the interpreter of each requested program, ours first."""
    peers = {"llama.cpp": options.llama_cpp, "transformers": options.transformers}
    return {OURS: sys.executable, **{name: python for name, python in peers.items() if python}}
