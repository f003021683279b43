"""Trials of a campaign: how many, from which seed, and what was found."""

import random
from collections import Counter
from collections.abc import Sequence


def count_and_seed(arguments: Sequence[str], count: int) -> tuple[int, int]:
    """Return the number of trials, by default ``count``, and their seed.

    The seed is the second argument, or a new one; it is printed, so that they can be repeated.
    """
    n_trials = int(arguments[0]) if arguments else count
    seed = int(arguments[1]) if len(arguments) > 1 else random.randrange(2**31)
    print(f"{n_trials} trials, seed {seed}", flush=True)
    return n_trials, seed


class Findings:
    """Findings of trials, printed as they come."""

    def __init__(self) -> None:
        self.n_of: Counter[str] = Counter()
        """Number of trials of each kind."""
        self.n_bad = 0
        """Number of trials in which something was found."""

    def add(self, kind: str, trial: object, bad: Sequence[str]) -> None:
        """Count a trial, and print what was found in it.

        Args:
            kind: its kind.
            trial: identifies it among those of its kind.
            bad: what was found.
        """
        self.n_of[kind] += 1
        self.n_bad += bool(bad)
        if bad:
            print(f"{kind} {trial}:", *bad, sep="\n  ", flush=True)

    def end(self) -> int:
        """Print the counts; returns the exit status, 1 if anything was found."""
        counts = ", ".join(f"{n} of {kind}" for kind, n in self.n_of.items())
        print(f"{counts}: {self.n_bad} bad", flush=True)
        return min(self.n_bad, 1)
