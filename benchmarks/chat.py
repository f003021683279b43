"""Measure what the terminal costs: decode speed against ``bench``, and the delay of Ctrl-C.

    python -m benchmarks.chat [--rounds 5] [--interrupts 50] [--json FILE]

The real program runs in a pseudo-terminal. Each round measures one long Markdown reply in the chat,
and ``llama-chat bench`` with a prompt of the same length.
"""

import argparse
import json
import random
import re
import signal
import statistics
import tempfile
import time
from pathlib import Path

from harness.process import cold
from harness.program import run
from harness.terminal import CTRL_D, READY, Terminal
from llama_chat.library import find_model

N_TOKENS = 256
QUESTION = "Write a long tutorial about sorting in Python, with headings, lists and code."


def bench_tok_s(model: Path, home: Path, n_prompt: int) -> float:
    """Measure decode speed with ``llama-chat bench``, in tokens per second."""
    counts = ("--prompt-tokens", str(n_prompt), "--new-tokens", str(N_TOKENS), "--rounds", "1")
    result = run("bench", "-m", model, *counts, "--json", home=home)
    return float(json.loads(result.out)["decode_tok_s"])


def chat_tok_s(model: Path, home: Path) -> tuple[float, int, int]:
    """Measure decode speed in the chat, in tokens/s; returns prompt and reply tokens, too."""
    flags = ("-m", model, "--temperature", "0", "--max-tokens", str(N_TOKENS), "--no-save")
    # ``bench`` decodes without lookup.
    with Terminal(*flags, "--no-lookup", home=home) as terminal:
        terminal.wait_for(READY)
        for _ in range(2):  # ``bench`` warms up, too
            terminal.ask("/clear", "a new conversation")
            terminal.send(QUESTION)
            terminal.skim()
        stats = terminal.ask("/stats", r"tokens evaluated in total +\d+")
        terminal.type(CTRL_D)
        terminal.wait_for_end()
    numbers = dict(re.findall(r"(?m)^(\w+) +([\d.]+)$", stats))
    return (
        float(numbers["decode_tok_s"]),
        int(numbers["prompt_tokens"]),
        int(numbers["completion_tokens"]),
    )


def interrupt_seconds(model: Path, home: Path, n: int) -> list[float]:
    """Measure the seconds from Ctrl-C to the prompt, at random instants of prefill and decode."""
    chance = random.Random(0)  # noqa: S311 - the same instants each time
    found = []
    with Terminal("-m", model, "--max-tokens", "4000", "--no-save", home=home) as terminal:
        terminal.wait_for(READY)
        for number in range(n):
            n_words = chance.randrange(50, 300) if number % 2 else 5
            terminal.ask("/clear", "a new conversation")
            terminal.send(f"Say {number} " + "river " * n_words + "and tell a long story.")
            terminal.watch_for(chance.uniform(0, 0.3) if number % 2 else chance.uniform(0.2, 1.0))
            began = time.perf_counter()
            terminal.child.kill(signal.SIGINT)
            terminal.wait_for(rf"› Say {number} (?:(?!\n›)[\s\S])*\n\n›")
            found.append(time.perf_counter() - began)
    return found


def main() -> None:
    """Run both and print their figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--interrupts", type=int, default=50)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    model = find_model(options.model)
    with cold(), tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        rounds = []
        for _ in range(options.rounds):
            chat, n_prompt, n_reply = chat_tok_s(model, home)
            rounds.append((chat, bench_tok_s(model, home, n_prompt)))
            print(f"chat {chat:.1f} tok/s ({n_reply} tokens), bench {rounds[-1][1]:.1f} tok/s")
        ratio = statistics.median(chat / bench for chat, bench in rounds)
        print(f"chat / bench, median of {len(rounds)} rounds: {ratio:.3f}")
        seconds = sorted(interrupt_seconds(model, home, options.interrupts))
        print(
            f"Ctrl-C to prompt, {len(seconds)} instants: "
            f"median {statistics.median(seconds):.3f} s, longest {seconds[-1]:.3f} s"
        )
    if options.json:
        result = {"rounds": rounds, "ratio": ratio, "interrupt_s": seconds}
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
