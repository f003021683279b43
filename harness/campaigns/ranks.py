"""A rank of a chat is killed at random instants: all end, with one line, and the chat is kept.

    python -m harness.campaigns.ranks [INSTANTS] [SEED] [RANKS]

Each chat runs under ``torchrun`` in a terminal, with a small model: it loads, answers, or waits for
the next message. What ``torchrun`` itself writes about a failure does not count.
"""

import os
import random
import re
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from harness.campaigns.trials import Findings, count_and_seed
from harness.terminal import READY, Terminal

TIMEOUT_S = 10.0
"""Longest time from the death of a rank to the end of all."""

LINE = re.compile(r"llama-chat: error: ranks?[^:]*: .{,300}?with torchrun")

FIRST = "Once upon a time"


def torchrun(n: int) -> list[str]:
    """Return the command that starts the program as ``n`` ranks."""
    return [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(n), "-m"]


def ranks_of(parent: int) -> dict[int, int]:
    """Return the processes that ``torchrun`` has started, by their ranks: they lead sessions."""
    found = []
    for folder in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            pid = int(folder.name)
            stat = (folder / "stat").read_text().rpartition(")")[2].split()
            state, its_parent, session, start = stat[0], int(stat[1]), int(stat[3]), int(stat[19])
            if its_parent == parent and session == pid and state != "Z":
                found.append((start, pid))
    return dict(enumerate(pid for _, pid in sorted(found)))


def strike(model: Path, n: int, chosen: random.Random) -> list[str]:
    """Kill one rank of a chat of ``n`` at a random instant, and return what went wrong."""
    phase = chosen.choice(["loading", "idle", "answering", "answering", "prefilling"])
    rank, wait_s = chosen.randrange(n), chosen.random()
    bad = []
    flags = ("-m", model, "--template", "plain", "--temperature", "0", "--max-tokens", "400")
    with (
        tempfile.TemporaryDirectory() as home,
        Terminal(*flags, home=Path(home), command=[*torchrun(n), "llama_chat"]) as terminal,
    ):
        if phase == "loading":
            while len(ranks_of(terminal.child.pid)) < n:
                time.sleep(0.02)
            time.sleep(8 * wait_s)
        else:
            terminal.wait_for(READY)
            terminal.line(FIRST)
            terminal.wait_for("cut off after")
            if phase != "idle":
                terminal.line("Tell me more " * (1 if phase == "answering" else 400))
            time.sleep(wait_s)
        pids = ranks_of(terminal.child.pid)
        os.kill(pids[rank], signal.SIGKILL)
        began = time.monotonic()
        while any(map(is_alive, pids.values())) and time.monotonic() < began + 2 * TIMEOUT_S:
            terminal.watch_for(0.02)
        took_s = time.monotonic() - began
        if took_s > TIMEOUT_S:
            bad.append(f"ended after {took_s:.1f} s")
        terminal.wait_for_end()
        lines = LINE.findall(terminal.text.replace("\n", ""))
        # Before the program has begun, or without rank 0, only torchrun can report it.
        unsaid = phase == "loading" and (rank == 0 or "/help" not in terminal.text)
        if len(lines) != 1 and not (unsaid and not lines):
            bad.append(f"{len(lines)} lines: {terminal.text[-3000:]}")
        elif lines and phase != "loading" and f"rank {rank} of {n}" not in lines[0]:
            bad.append(f"not of rank {rank}: {lines[0]!r}")
        saved = [*Path(home).glob(".local/share/llama-chat/conversations/*.jsonl")]
        if phase != "loading" and not any(FIRST in file.read_text() for file in saved):
            bad.append("the conversation is not saved")
    return [f"{phase}, rank {rank}, after {wait_s:.2f} s: {each}" for each in bad]


def is_alive(pid: int) -> bool:
    """True if a process still runs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def main(arguments: list[str]) -> int:
    """Kill ranks; returns 1 if something went wrong."""
    instants, seed = count_and_seed(arguments, 100)
    n = int(arguments[2]) if len(arguments) > 2 else 2
    data = os.environ.get("LLAMA_CHAT_TEST_DATA", "../shared")
    model = Path(data).resolve() / "models" / "stories260K"
    chosen, findings = random.Random(seed), Findings()
    for number in range(instants):
        findings.add(f"{n} ranks", number, strike(model, n, chosen))
    return findings.end()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
