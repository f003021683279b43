"""Press Ctrl-C at random instants of a chat, and measure until it listens again or has ended.

    python -m harness.campaigns.interrupts [COUNT [SEED]]

Instants: while the program is imported, the model loads, a long message is read, a reply is
generated, and turns are saved. A finding is a terminal that is not as it was, or a chat that does
not react within 1 s in 99 of 100 cases.
"""

import random
import re
import sys
import tempfile
import termios
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from harness.campaigns.trials import Findings, count_and_seed
from harness.terminal import CTRL_C, CTRL_D, READY, Terminal, new_modes
from tests.model_files import SMALL, write_gguf

TIMEOUT_S = 30.0
LIMIT_S = 1.0
MODES = ((b"[?2004h", b"[?2004l"), (b"[?25l", b"[?25h"), (b"[?7l", b"[?7h"))
UNWANTED = re.compile("Traceback|Exception|Error|Warning|never awaited|unexpected")


def start(terminal: Terminal, chance: random.Random) -> None:
    """Wait until some time in the import, or the load."""
    terminal.watch_for(chance.uniform(0, 1.5))


def prefill(terminal: Terminal, chance: random.Random) -> None:
    """Let it read a long message."""
    terminal.wait_for(READY)
    terminal.line("words of a long message " * 50)
    terminal.watch_for(chance.uniform(0, 0.3))


def decode(terminal: Terminal, chance: random.Random) -> None:
    """Let it generate a long reply."""
    terminal.wait_for(READY)
    terminal.line("/max-tokens 2000")
    terminal.wait_for("max-tokens is 2000")
    terminal.line("tell me")
    terminal.watch_for(chance.uniform(0, 1))


def save(terminal: Terminal, chance: random.Random) -> None:
    """Let it save short turns."""
    terminal.wait_for(READY)
    for turn in range(4):
        terminal.line(f"turn {turn}")
    terminal.watch_for(chance.uniform(0, 0.5))


PHASES: tuple[Callable[[Terminal, random.Random], None], ...] = (start, prefill, decode, save)


def is_open(terminal: Terminal) -> bool:
    """True if the input is open, which has a toolbar, or the program has ended."""
    return "top-p 0.9" in terminal.shown or terminal.child.poll() is not None


def press(
    phase: Callable[[Terminal, random.Random], None], model: Path, home: Path, chance: random.Random
) -> tuple[float, list[str]]:
    """Press Ctrl-C in a phase; returns the seconds until it listens, and what is wrong."""
    bad: list[str] = []
    flags = ("-m", model, "--max-tokens", "3", "--temperature", "0")
    with Terminal(*flags, home=home) as terminal:
        phase(terminal, chance)
        terminal.type(CTRL_C)
        began = time.monotonic()
        while not is_open(terminal) and time.monotonic() - began < TIMEOUT_S:
            terminal.watch_for(0.01)
        seconds = time.monotonic() - began
        end = time.monotonic() + TIMEOUT_S
        while terminal.child.poll() is None and time.monotonic() < end:
            terminal.watch_for(0.3)
            terminal.type(CTRL_C + CTRL_D)  # lines that were typed ahead are cleared
        if terminal.child.poll() is None:
            return seconds, ["it does not end"]
        status = terminal.wait_for_end()
        if status not in (0, 130):
            bad.append(f"status {status}")
        if termios.tcgetattr(terminal.descriptor) != new_modes():
            bad.append("termios")
        bad += [
            on.decode() for on, off in MODES if terminal.raw.rfind(on) > terminal.raw.rfind(off)
        ]
        bad += UNWANTED.findall(terminal.text)
    return seconds, bad


def main(arguments: list[str]) -> int:
    """Press it at each instant; returns 1 if anything was found."""
    count, seed = count_and_seed(arguments, 200)
    chance, times, findings = random.Random(seed), list[float](), Findings()
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "random.gguf"
        write_gguf(model, replace(SMALL, context_length=4096))
        for number in range(count):
            phase = PHASES[number % len(PHASES)]
            with tempfile.TemporaryDirectory() as home:
                seconds, bad = press(phase, model, Path(home), chance)
            times.append(seconds)
            findings.add(phase.__name__, number, bad)
            if seconds > LIMIT_S:
                print(f"{phase.__name__} {number}: {seconds:.2f} s", flush=True)
    slow = sum(seconds > LIMIT_S for seconds in times)
    times.sort()
    shown = [f"{1000 * times[count * part // 100]:.0f} ms" for part in (50, 99)]
    print(
        f"{count} instants: {slow} over {LIMIT_S} s; half within {shown[0]}, "
        f"99 of 100 within {shown[1]}"
    )
    return findings.end() or int(slow * 100 > count)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
