"""Measure the time to the first token in a long chat, and with the same prompts read cold.

    python -m benchmarks.turns [--model NAME] [--turns 20] [--json FILE]

For each turn it prints the tokens before it, how many of them were cached, the time to the first
token, and the time to read the same prompt into an empty cache; at the end the slope of both
against the length of the history.
"""

import argparse
import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from llama_chat.generation.events import Finish
from llama_chat.library import find_model
from llama_chat.loading.plan import load
from llama_chat.settings.sampling import Sampling

TOPICS = ["cats", "rivers", "bread", "clocks", "bridges", "tea", "snow", "maps", "owls", "paper"]


@dataclass(frozen=True, slots=True)
class Turn:
    """Figures of one turn."""

    before: int
    """Tokens of the conversation before it."""
    cached: int
    new: int
    """Tokens that had to be read: the message and the template around it."""
    ttft_s: float
    cold_s: float
    """Time to read the same prompt into an empty cache."""


def run(model: str, n_turns: int, n_reply: int) -> list[Turn]:
    """Run ``n_turns`` turns with replies of ``n_reply`` tokens."""
    llama = load(find_model(model))
    session = llama.chat(sampling=Sampling(temperature=0), max_tokens=n_reply)
    session.engine.end_ids = session.template.end_ids = frozenset()  # replies of one length
    turns = []
    for number in range(n_turns):
        before = session.count()
        topic = TOPICS[number % len(TOPICS)]
        *_, finish = session.send(f"Tell me one more surprising fact about {topic}.")
        if not isinstance(finish, Finish):
            raise TypeError(finish)
        prompt = session.ids[: finish.usage.prompt_tokens]
        cold = llama.engine()
        began = time.perf_counter()
        cold.prefill(prompt)
        cold_s = time.perf_counter() - began
        usage = finish.usage
        turns.append(
            Turn(
                before,
                usage.cached_tokens,
                usage.prompt_tokens - usage.cached_tokens,
                finish.timings.ttft_s,
                cold_s,
            )
        )
    return turns


def slope_ms(turns: list[Turn], name: str) -> float:
    """Milliseconds by which a time grows per 1,000 tokens of history, by least squares."""
    lengths = [turn.before / 1000 for turn in turns]
    times = [1000 * getattr(turn, name) for turn in turns]
    return statistics.linear_regression(lengths, times).slope


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="")
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--reply", type=int, default=100, help="tokens of each reply")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    turns = run(options.model, options.turns, options.reply)
    print("turn  before  cached  new  ttft_ms  cold_ms")
    for number, turn in enumerate(turns, 1):
        print(
            f"{number:4}  {turn.before:6}  {turn.cached:6}  {turn.new:3}"
            f"  {1000 * turn.ttft_s:7.1f}  {1000 * turn.cold_s:7.1f}"
        )
    warm = turns[1:]  # the first turn also warms torch up
    print(f"cached is the whole length before: {all(t.cached == t.before for t in turns)}")
    print(f"ttft grows by {slope_ms(warm, 'ttft_s'):.1f} ms per 1,000 tokens of history")
    print(f"cold prefill by {slope_ms(warm, 'cold_s'):.1f} ms")
    if options.json:
        options.json.write_text(json.dumps([asdict(turn) for turn in turns], indent=1))


if __name__ == "__main__":
    main()
