"""Detection of stop strings in streamed text."""

from collections.abc import Sequence


class StopStrings:
    """Filter of streamed text that holds back an end which may become a stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        """Look for any of ``stops``; empty strings are ignored."""
        self._stops = [stop for stop in stops if stop]
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """Add text.

        Returns:
            The text that can be passed on, and the stop string if one is complete: then the text
            ends right before it, and the text after it is dropped.
        """
        self._held += text
        found = [(at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            # The earliest wins; at the same position the longest.
            at, stop = min(found, key=lambda hit: (hit[0], -len(hit[1])))
            certain, self._held = self._held[:at], ""
            return certain, stop
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        split = len(self._held) - keep
        certain, self._held = self._held[:split], self._held[split:]
        return certain, None

    def flush(self) -> str:
        """Return the text held back, at the end of the stream."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Compute the length of the longest suffix of ``text`` that is a proper prefix of ``stop``."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if stop.startswith(text[-n:])), 0)
