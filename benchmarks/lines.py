"""Time of many questions with a few-shot head: at once, one after the other, one process each.

    python -m benchmarks.lines [--model NAME] [--answers labels|sentences] [--lines 500]
                               [--processes 20] [--rounds 1]

Each question follows the same head of about 400 tokens, and gets a word or a sentence. It prints
the seconds for each question, with loading; processes are timed on fewer lines.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

FLAGS = ("--temperature", "0", "--max-tokens", "32", "-q", "--no-server")


def label(number: int) -> str:
    """Return an answer of one word."""
    return "even" if number % 2 == 0 else "odd"


def sentence(number: int) -> str:
    """Return an answer of a sentence."""
    return f"The number {number} comes after {number - 1} and before {number + 1}: {label(number)}."


ANSWERS = {"labels": (label, range(11, 31)), "sentences": (sentence, range(11, 21))}
"""For each kind the answer to a number, and the examples that make a head of about 400 tokens."""


def prompt_file(folder: Path, kind: str) -> Path:
    """Write a few-shot prompt file, whose head has about 400 tokens."""
    path = folder / "head.toml"
    answer, numbers = ANSWERS[kind]
    examples = "".join(
        f'[[examples]]\nuser = "The number {n} is"\nassistant = "{answer(n)}"\n' for n in numbers
    )
    path.write_text(f'system = "Say whether the number is even or odd."\n{examples}')
    return path


def run(*arguments: str, stdin: str = "") -> float:
    """Run the program; returns the seconds it takes."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "llama_chat", "ask", *arguments, *FLAGS]
    subprocess.run(command, input=stdin.encode(), stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def main() -> None:
    """Measure, and print a line for each way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--answers", choices=list(ANSWERS), default="labels")
    parser.add_argument("--lines", type=int, default=500)
    parser.add_argument("--processes", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    questions = [f"The number {1000 + 7 * i} is" for i in range(options.lines)]
    text = "".join(f"{question}\n" for question in questions)
    ways: dict[str, list[float]] = {"at once": [], "one after the other": [], "processes": []}
    with tempfile.TemporaryDirectory() as folder:
        flags = ("-m", options.model, "--prompt", str(prompt_file(Path(folder), options.answers)))
        for _ in range(options.rounds):
            ways["at once"].append(run("--lines", *flags, stdin=text) / len(questions))
            alone = run("--lines", "--parallel", "1", *flags, stdin=text)
            ways["one after the other"].append(alone / len(questions))
            some = questions[: options.processes]
            ways["processes"].append(sum(run(each, *flags) for each in some) / len(some))
    report(ways)


def report(ways: Mapping[str, Sequence[float]]) -> None:
    """Print medians, and their ratios to answers at once."""
    best = statistics.median(ways["at once"])
    for name, seconds in ways.items():
        median = statistics.median(seconds)
        print(f"{name:<20} {median * 1000:8.1f} ms a question  {median / best:6.2f} x")


if __name__ == "__main__":
    main()
