"""Request loop of all runners: requests on stdin, answers on stdout, a JSON object per line."""

import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, cast


class Runner(Protocol):
    """Loaded model with a KV cache."""

    vocab_size: int

    def read(self, ids: Sequence[int]) -> None:
        """Evaluate ``ids`` after the cached tokens, in one call, with the logits of the last."""

    def logits(self, ids: Sequence[int]) -> bytes:
        """Evaluate ``ids``, and return the logits of each: float32 ``(len(ids), vocab_size)``."""

    def truncate(self, length: int) -> None:
        """Trim the cache to ``length`` tokens."""


class Batching(Protocol):
    """Loaded model that can compute several sequences at once."""

    def decode_together(self, prompts: Sequence[Sequence[int]], n: int) -> float:
        """Prefill the prompts, and return the seconds that ``n`` further tokens of all take."""


class _Tasks:
    """Tasks that may be requested of a runner."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.length = 0
        chance = random.Random(0)  # noqa: S311 - the same tokens for every program
        self.ids = [chance.randrange(300, runner.vocab_size) for _ in range(2**15)]

    def hold(self, length: int) -> None:
        """Make the cache hold the first ``length`` tokens."""
        if self.length > length:
            self.runner.truncate(length)
        elif self.length < length:
            self.runner.read(self.ids[self.length : length])
        self.length = length

    def prefill(self, n: int) -> dict[str, float]:
        """Time the prefill of ``n`` tokens into an empty cache."""
        self.hold(0)
        began = time.perf_counter()
        self.hold(n)
        return {"seconds": time.perf_counter() - began}

    def decode(self, n: int, n_before: int) -> dict[str, float]:
        """Time reading ``n`` tokens one by one, after ``n_before`` others."""
        self.hold(n_before)
        began = time.perf_counter()
        for _ in range(n):
            self.hold(self.length + 1)
        return {"seconds": time.perf_counter() - began}

    def together(self, n_sequences: int, n_before: int, n: int) -> dict[str, float]:
        """Time decoding ``n`` tokens of each of several sequences at once, after ``n_before``."""
        prompts = [self.ids[i * n_before : (i + 1) * n_before] for i in range(n_sequences)]
        return {"seconds": cast("Batching", self.runner).decode_together(prompts, n)}

    def logits(self, ids: Sequence[int], step: int, to: str) -> dict[str, int]:
        """Read ``ids`` into an empty cache, ``step`` at a time; appends their logits to a file."""
        self.hold(0)
        with Path(to).open("ab") as file:
            for start in range(0, len(ids), step):
                file.write(self.runner.logits(ids[start : start + step]))
        self.runner.truncate(0)
        return {"rows": len(ids)}


def serve(make: Callable[..., Runner]) -> None:
    """Load a model and answer requests until stdin ends.

    The command line holds the model, the context in tokens, the threads, and a JSON object of
    further options for ``make``. A request is ``{"do": TASK, …}`` with the arguments of a method of
    ``_Tasks``.
    """
    path, context, threads, options = sys.argv[1:]
    tasks = _Tasks(make(path, int(context), int(threads), **json.loads(options)))
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        answer = getattr(tasks, request.pop("do"))(**request)
        print(json.dumps(answer), flush=True)
