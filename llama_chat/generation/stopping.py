"""Stop strings, found in text that arrives in pieces."""

from collections.abc import Sequence


class StopStrings:
    """Passes text on, but holds back an end that may yet become a stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        """Look for any of ``stops``; empty strings are ignored."""
        self._stops = [stop for stop in stops if stop]
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """Take more text.

        Returns:
            The text that is certain now, and the stop string if one is complete: then the text
            ends right before it, and whatever follows it is dropped.
        """
        self._held += text
        found = [(at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            # The earliest wins; at the same place the longest, so that nothing of it is left.
            at, stop = min(found, key=lambda hit: (hit[0], -len(hit[1])))
            certain, self._held = self._held[:at], ""
            return certain, stop
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        split = len(self._held) - keep
        certain, self._held = self._held[:split], self._held[split:]
        return certain, None

    def flush(self) -> str:
        """Give up what is held: no more text will come."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that begins ``stop`` without completing it."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if stop.startswith(text[-n:])), 0)
