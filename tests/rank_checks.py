"""Comparison of several ranks with one process, run by each rank.

    python -m tests.rank_checks KERNEL CASE…

A case is a JSON object with the path of a model, a weight format, and the number of conversations
to hold with it.
"""

import itertools
import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from llama_chat.cli.ranks import other_ranks, run_rank
from llama_chat.generation.events import Event, Hooks
from llama_chat.kernels import native
from llama_chat.llama import Llama
from llama_chat.loading.plan import load
from llama_chat.loading.ranks import plan_for_all
from llama_chat.parallel.world import find_world
from llama_chat.settings.sampling import Sampling

PROMPTS = [[(7 * i * i + 11 * n) % 250 + 3 for i in range(5 + 6 * n)] for n in range(8)]

SEEDS = (None, 5)
"""Seeds of conversations; None for the most likely tokens."""


def compare(case: dict[str, Any]) -> dict[str, Any]:
    """Load a model on all ranks and in this process, and compare them."""
    options = {"quantize": case["quantize"], "dtype": case.get("dtype", "auto"), "device": "cpu"}
    ranks = other_ranks()
    assert ranks is not None
    planned = plan_for_all(ranks, case["path"], **options)
    together, alone = planned.load(), load(case["path"], **options)
    report: dict[str, Any] = {"local_heads": planned.local_config.n_heads}
    found, expected = together.logits(PROMPTS[7]), alone.logits(PROMPTS[7])
    report["difference"] = float((found - expected).abs().max() / (expected.max() - expected.min()))
    if case["talks"]:
        seeds = SEEDS[: case["talks"]]
        report["sessions"] = [[talk(llama, seed) for seed in seeds] for llama in (together, alone)]
        report["batches"] = [batch(together), batch(alone)]
    return report


def talk(llama: Llama, seed: int | None) -> list[Any]:
    """Hold a conversation with undo, retry, interrupts and a branch that comes back."""
    sampling = Sampling(temperature=0 if seed is None else 0.8, seed=seed)
    session = llama.chat("Be brief.", sampling, template="plain", max_tokens=6)
    conversation, said = session.conversation, []

    def hear(events: Iterator[Event]) -> None:
        *_, last = events
        said.append([last.usage.cached_tokens, *session.ids])  # type: ignore[union-attr]

    hear(session.send("One two three"))
    hear(session.send("Four " * 30))
    interrupted = session.send("Five")
    list(itertools.islice(interrupted, 3))
    interrupted.close()  # type: ignore[attr-defined] # a generator
    conversation.undo(1)
    hear(session.retry())
    before = conversation.head
    conversation.undo(2)
    hear(session.send("Another branch"))
    conversation.head = before
    session.engine.prefill_cached(session.ids, Hooks())
    hear(session.send("Back again"))
    if seed is None:
        polls = itertools.count()  # interrupt a pass, of which only ranks and kernels poll as often
        list(session.send("Six " * 40, Hooks(lambda: next(polls) >= 3)))
        conversation.undo(1)
        list(session.send("After all"))
        said.append([*session.ids])
    return said


def batch(llama: Llama) -> list[list[int]]:
    """Continue eight prompts at once, of which some begin alike."""
    scheduler = llama.scheduler(8)
    head = PROMPTS[7] * 3
    sequences = []
    for n, prompt in enumerate(PROMPTS):
        ids = prompt if n % 2 else head + prompt
        sampling = Sampling(temperature=0 if n < 4 else 0.8, seed=n)
        sequences.append(scheduler.add(llama.request(ids, sampling, max_tokens=4)))
    while scheduler.n_waiting or scheduler.n_running:
        scheduler.step()
    return [sequence.text.ids[sequence.text.n_prompt :] for sequence in sequences]


def main(cases: Sequence[str]) -> int:
    """Compare all cases, and write a line of JSON for each."""
    for case in cases:
        print(json.dumps(compare(json.loads(case))), flush=True)
    return 0


if __name__ == "__main__":
    os.environ[native.VARIABLE] = sys.argv[1]
    world = find_world()
    assert world is not None
    sys.exit(run_rank(world, lambda: main(sys.argv[2:])))
