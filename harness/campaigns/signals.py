"""Send signals to a chat at many exact moments, and compare the terminal before and after.

    python -m harness.campaigns.signals [STEP]

Every STEP-th event of the profiler is one moment, see ``harness.signalled``: while the first input
opens and the model loads, in both kinds of input, and while a command and a message are handled and
the next inputs open. Prints the changes that were left in the terminal, and the counts.
"""

import re
import signal
import sys
import tempfile
import termios
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.terminal import CTRL_D, Terminal
from llama_chat.library import starter

MODES = ((b"[?2004h", b"[?2004l"), (b"[?25l", b"[?25h"), (b"[?7l", b"[?7h"))
"""Sequences that set a mode of the terminal, and restore it: paste, hidden cursor, line wrap."""

UNWANTED = re.compile("Traceback|Exception|Error|Warning|never awaited|unexpected|Press ENTER")

OPEN = re.compile(r"template \w+\n\n?[›>]")

TIMEOUT_S = 3.0
"""Longest time without output after which a moment counts as not reached."""

NOT_REACHED = "not reached"


@dataclass(frozen=True)
class Phase:
    """A part of a chat."""

    name: str
    function: str
    """Function whose first call is the first event."""
    events: int
    flags: tuple[str, ...] = ()
    typed: str = ""
    """Keys pressed once the input is open."""


PHASES = (
    Phase("first input", "open_chat", 140_000),
    Phase("first plain input", "open_chat", 120_000, ("--plain",)),
    Phase("next inputs", "_handle", 120_000, typed="/top-k 7\rhello\r"),
    Phase("next plain inputs", "_handle", 60_000, ("--plain",), typed="/top-k 7\rhello\r"),
)


def strike(phase: Phase, at: int, number: int, home: Path) -> list[str]:
    """Run a chat with a signal at an event; returns the deviations."""
    command = (sys.executable, "-m", "harness.signalled", str(number), str(at), phase.function)
    model = starter.installed_path(starter.DEFAULT)
    flags = (*phase.flags, "--max-tokens", "4")
    with Terminal("-m", model, *flags, home=home, command=command) as terminal:
        before = termios.tcgetattr(terminal.descriptor)
        typed, quiet_s = phase.typed, 0.0
        while terminal.child.poll() is None and quiet_s < TIMEOUT_S:
            quiet_s = 0.0 if terminal.watch_for(0.05) else quiet_s + 0.05
            if typed and OPEN.search(terminal.text):
                terminal.type(typed)
                typed = ""
        if terminal.child.poll() is None:
            terminal.type(CTRL_D)
            terminal.watch_for(TIMEOUT_S)
            if terminal.child.poll() is None:
                return ["hangs"]
        status = terminal.wait_for_end()
        if status == 0:
            return [NOT_REACHED]
        return [
            *([f"status {status}"] if status != 128 + number else []),
            *(["termios"] if termios.tcgetattr(terminal.descriptor) != before else []),
            *(on.decode() for on, off in MODES if terminal.raw.rfind(on) > terminal.raw.rfind(off)),
            *UNWANTED.findall(terminal.text),
        ]


def main(arguments: Sequence[str]) -> int:
    """Run all phases; returns 1 if anything was found."""
    step = int(arguments[0]) if arguments else 500
    found = 0
    for phase in PHASES:
        counts: Counter[str] = Counter()
        with tempfile.TemporaryDirectory() as home:
            for at in range(1, phase.events, step):
                number = signal.SIGHUP if at // step % 2 else signal.SIGTERM
                bad = strike(phase, at, number, Path(home))
                counts["moments"] += 1
                counts[NOT_REACHED] += bad == [NOT_REACHED]
                if bad and bad != [NOT_REACHED]:
                    counts["bad"] += 1
                    print(f"{phase.name}, event {at}, signal {number}: {bad}", flush=True)
        found += counts["bad"]
        shown = ", ".join(f"{counts[name]} {name}" for name in ("moments", NOT_REACHED, "bad"))
        print(f"{phase.name}: {shown}", flush=True)
    return min(found, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
