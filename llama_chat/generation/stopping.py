"""Detection of stop strings in streamed text."""

import re
from collections.abc import Mapping, Sequence

_FIRST_MARK = 0xD800
_N_MARKS = 1024
"""Code points that no text contains: each stands for a control token of a stop string."""
_OTHER = chr(_FIRST_MARK + _N_MARKS)
"""Mark of a control token that is in no stop string."""


def stop_strings(stops: Sequence[str]) -> tuple[str, ...]:
    """Return the stop strings that a caller gives.

    Raises:
        ValueError: if they are one text, whose characters would be taken for them.
    """
    if isinstance(stops, str):
        raise ValueError(f"stop is {stops!r}, not a list of texts")
    return tuple(stops)


class StopStrings:
    """Filter of streamed text that holds back an end which may become a stop string.

    Stop strings are found in the text. One that has control tokens in it is also found where the
    tokens themselves are; one that is a control token is not, since the token ends a generation.
    """

    def __init__(self, stops: Sequence[str], control_ids: Mapping[str, int] | None = None) -> None:
        """Look for any of ``stops``; empty strings are ignored.

        Args:
            stops: the stop strings.
            control_ids: control tokens that they may contain.
        """
        control_ids = control_ids or {}
        self._stops = [stop for stop in stops if stop]
        names = [name for name in control_ids if any(name in stop for stop in self._stops)]
        marks = {name: chr(_FIRST_MARK + i) for i, name in enumerate(names[:_N_MARKS])}
        longest = sorted(marks, key=len, reverse=True)  # of two that match, the longer
        control = re.compile("|".join(map(re.escape, longest)) or "(?!)")
        marked = {control.sub(lambda found: marks[found[0]], stop): stop for stop in self._stops}
        self._marked = {
            text: stop for text, stop in marked.items() if text != stop and stop not in marks
        }
        """Stop strings with marks for control tokens, and without."""
        self._marks = {control_ids[name]: mark for name, mark in marks.items()}
        self._unmarked = str.maketrans("", "", "".join(marks.values()) + _OTHER)
        self._held = ""

    def push(self, text: str, hidden: int | None = None) -> tuple[str, str | None]:
        """Add text, and the control token after it if that has no text.

        Returns:
            The text that can be passed on, and the stop string if one is complete: then the text
            ends right before it, and the text after it is dropped.
        """
        held = self._held + text + ("" if hidden is None else self._marks.get(hidden, _OTHER))
        shown = held.translate(self._unmarked)
        found = [(at, stop) for stop in self._stops if (at := shown.find(stop)) >= 0]
        found += [
            (len(held[:at].translate(self._unmarked)), stop)
            for marked, stop in self._marked.items()
            if (at := held.find(marked)) >= 0
        ]
        if found:
            # The earliest wins; at the same position the longest.
            at, stop = min(found, key=lambda hit: (hit[0], -len(hit[1])))
            self._held = ""
            return shown[:at], stop
        keep = max((_overlap(shown, stop) for stop in self._stops), default=0)
        places = [i for i, character in enumerate(held) if ord(character) not in self._unmarked]
        split = places[-keep] if keep else len(held)
        split = min([split, *(len(held) - _overlap(held, marked) for marked in self._marked)])
        self._held = held[split:]
        return held[:split].translate(self._unmarked), None

    def flush(self) -> str:
        """Return the text held back, at the end of the stream."""
        held, self._held = self._held, ""
        return held.translate(self._unmarked)


def _overlap(text: str, stop: str) -> int:
    """Compute the length of the longest suffix of ``text`` that is a proper prefix of ``stop``."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if stop.startswith(text[-n:])), 0)
