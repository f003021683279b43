"""Measure the time from the start of a process to its first output, beside ``import torch``.

    python -m benchmarks.start [--model NAME] [--rounds 9] [--threads 2]

Each round measures in turn: Python that imports torch and ends; ``llama-chat complete`` of a short
prompt, to its first character and to its end; ``llama-chat --version``, which needs no torch. It
prints medians, and the median of the differences within a round.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

from llama_chat.library import find_model

PROMPT = b"The capital of France is"

BARE = "import torch"
FIRST = "complete, first character"
WHOLE = "complete, until its end"
VERSION = "--version"

LLAMA_CHAT = (sys.executable, "-m", "llama_chat")


def seconds(command: Sequence[str], text: bytes = b"") -> tuple[float, float]:
    """Seconds until the first byte on stdout, or until stdout is closed, and until the end."""
    began = time.perf_counter()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("no pipes")
        process.stdin.write(text)
        process.stdin.close()
        process.stdout.read(1)
        first = time.perf_counter() - began
        process.stdout.read()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: status {process.returncode}")
    return first, time.perf_counter() - began


def one_round(model: str, threads: int) -> dict[str, float]:
    """Measure each command once, in seconds."""
    options = ["--threads", str(threads), "--max-tokens", "1", "--temperature", "0", "--quiet"]
    _, bare = seconds([sys.executable, "-c", BARE])
    first, whole = seconds([*LLAMA_CHAT, "complete", "-", "--model", model, *options], PROMPT)
    _, version = seconds([*LLAMA_CHAT, "--version"])
    return {BARE: bare, FIRST: first, WHOLE: whole, VERSION: version}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    model = str(find_model(options.model))
    one_round(model, options.threads)  # reads the files into memory
    rounds = [one_round(model, options.threads) for _ in range(options.rounds)]
    for name in rounds[0]:
        print(f"{name:<27}{statistics.median(found[name] for found in rounds):7.3f} s")
    beyond = statistics.median(found[FIRST] - found[BARE] for found in rounds)
    print(f"{'first character beyond it':<27}{beyond:7.3f} s")


if __name__ == "__main__":
    main()
