"""The part that all runners share: requests on stdin, seconds on stdout, a JSON object a line."""

import json
import random
import sys
import time
from collections.abc import Sequence
from typing import Any, Protocol


class Runner(Protocol):
    """A loaded model with a cache."""

    vocab_size: int

    def read(self, ids: Sequence[int]) -> None:
        """Read ``ids`` behind what the cache holds, in one go, for the logits behind the last."""

    def truncate(self, length: int) -> None:
        """Forget what the cache holds beyond ``length`` tokens."""


class _Timed:
    """A runner, and how many tokens it holds."""

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

    def prefill(self, n: int) -> float:
        """Seconds for reading ``n`` tokens into an empty cache."""
        self.hold(0)
        began = time.perf_counter()
        self.hold(n)
        return time.perf_counter() - began

    def decode(self, n: int, behind: int) -> float:
        """Seconds for reading ``n`` tokens one by one, behind others."""
        self.hold(behind)
        began = time.perf_counter()
        for _ in range(n):
            self.hold(self.length + 1)
        return time.perf_counter() - began


def serve(runner: Runner) -> None:
    """Answer requests until stdin ends: ``{"do": "prefill" | "decode", …}`` with its arguments."""
    timed = _Timed(runner)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        seconds = getattr(timed, request.pop("do"))(**request)
        print(json.dumps({"seconds": seconds}), flush=True)
