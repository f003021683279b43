"""Close the window of a chat at random moments: no process may stay, and nothing said may be lost.

    python -m harness.campaigns.closings [COUNT] [SEED]

Moments: while the model loads, an editor is open, a long message is read, a reply is generated, and
a conversation is saved. Prints what was left or lost, and the counts.
"""

import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from harness.campaigns.trials import Findings, count_and_seed
from harness.program import run
from harness.terminal import CTRL_G, READY, Terminal
from llama_chat.library import starter

GONE_S = 2.0
"""Longest time that any process may take to end."""

EDITOR = "sleep 1000; :"
"""Editor that stays open."""


def open_prompt(terminal: Terminal) -> list[str]:
    """Wait for the input; nothing was said yet."""
    terminal.wait_for("›")
    return []


def load(terminal: Terminal) -> list[str]:
    """Close it while the model loads."""
    return open_prompt(terminal)


def edit_while_loading(terminal: Terminal) -> list[str]:
    """Close it while an editor is open, and perhaps the model loads still."""
    open_prompt(terminal)
    terminal.type("a draft" + CTRL_G)
    return []


def edit(terminal: Terminal) -> list[str]:
    """Close it while an editor is open and the model is loaded, after a turn."""
    said = talk(terminal)
    terminal.type("a draft" + CTRL_G)
    return said


def talk(terminal: Terminal) -> list[str]:
    """Say something that is answered; returns it."""
    terminal.wait_for(READY)
    terminal.line("remember the tomatoes")
    terminal.wait_for(r"cut off after 4 tokens|ended it at once")
    terminal.wait_for(r"›\s*\n.*context \d+/\d+")
    return ["remember the tomatoes"]


def prefill(terminal: Terminal) -> list[str]:
    """Close it while a long message is read."""
    said = talk(terminal)
    terminal.paste("many words " * 800)
    terminal.type("\r")
    return said


def decode(terminal: Terminal) -> list[str]:
    """Close it while a reply is generated: of the message that began it nothing may be lost."""
    said = talk(terminal)
    terminal.line("/max-tokens 500")
    terminal.wait_for("max-tokens is 500")
    terminal.line("write a long story")
    terminal.wait_for(r"› write a long story\n")
    return said


def save(terminal: Terminal) -> list[str]:
    """Close it while turns end one after another."""
    said = talk(terminal)
    terminal.line("/max-tokens 1")
    for i in range(5):
        terminal.line(f"turn {i}")
    return said


MOMENTS: Sequence[Callable[[Terminal], list[str]]] = (
    load,
    edit_while_loading,
    edit,
    prefill,
    decode,
    save,
)


def close(moment: Callable[[Terminal], list[str]], delay_s: float, home: Path) -> list[str]:
    """Run a chat whose window closes after a delay; returns the deviations."""
    model = starter.installed_path(starter.DEFAULT)
    mark = f"{home}/"
    flags = ("-m", model, "--max-tokens", "4", "--temperature", "0")
    editor = f"sh -c '{EDITOR}' {mark}"
    bad = []
    with Terminal(*flags, home=home, VISUAL=editor) as terminal:
        said = moment(terminal)
        terminal.watch_for(delay_s)
        try:
            terminal.vanish(GONE_S)
        except TimeoutError:
            bad.append("the chat stays")
    if not _has_gone(mark):
        bad.append("the editor stays")
    names = [entry["name"] for entry in json.loads(run("sessions", "--json", home=home).out)]
    kept = [run("sessions", "show", name, "--json", home=home) for name in names]
    bad += [f"cannot be read: {shown.err}" for shown in kept if shown.status]
    text = "".join(shown.out for shown in kept)
    return bad + [f"lost: {words}" for words in said if words not in text]


def _has_gone(mark: str) -> bool:
    """Wait until no process has ``mark`` on its command line; False if one stays."""
    end = time.monotonic() + GONE_S
    while time.monotonic() < end:
        if not any(mark in line for line in _command_lines()):
            return True
    return False


def _command_lines() -> list[str]:
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_text(errors="replace"))
        except OSError:  # it has ended
            continue
    return lines


def main(arguments: Sequence[str]) -> int:
    """Close windows; returns 1 if anything was left or lost."""
    count, seed = count_and_seed(arguments, 300)
    chance, findings = random.Random(seed), Findings()
    for i in range(count):
        moment = MOMENTS[i % len(MOMENTS)]
        delay_s = chance.expovariate(4)
        with tempfile.TemporaryDirectory() as home:
            bad = close(moment, delay_s, Path(home))
        findings.add(moment.__name__, f"{i}, after {delay_s:.3f} s", bad)
    return findings.end()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
