"""Memory and bytes read of each rank of a model, and of one process.

    python -m benchmarks.ranks MODEL [RANKS] [FLAG…]

One process and the ranks continue a text, with the model not in memory at the beginning; the flags
go to ``llama-chat complete``. Bytes are those read from the disk. Ranks of one machine share the
page cache; so each of them also loads its part alone, as on its own machine.
"""

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from harness.campaigns.ranks import ranks_of, torchrun
from llama_chat.loading.plan import plan
from llama_chat.parallel.world import World

POLL_S = 0.05

FLAGS = ("-", "--temperature", "0", "--max-tokens", "16", "--no-server")

PROMPT = b"Once upon a time, " * 10


def forget(model: Path) -> None:
    """Drop the files of a model from memory."""
    for file in [model] if model.is_file() else [*model.iterdir()]:
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def usage_of(pid: int) -> tuple[int, int]:
    """Return the peak of the resident memory of a process, and the bytes it read from disk."""
    status = Path(f"/proc/{pid}/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    counters = Path(f"/proc/{pid}/io").read_text()
    read = next(line for line in counters.splitlines() if line.startswith("read_bytes"))
    return int(peak.split()[1]) * 1024, int(read.split()[1])


def measure(command: list[str]) -> dict[int, tuple[int, int]]:
    """Run a program that starts ranks or is one process, and return what each of them used."""
    used: dict[int, tuple[int, int]] = {}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **pipes) as started:  # type: ignore[call-overload]
        started.stdin.write(PROMPT)
        started.stdin.close()
        pids: dict[int, int] = {}
        while started.poll() is None:
            # Only while they run: after their end, what they read is attributed to torchrun.
            pids = {**ranks_of(started.pid), **pids}
            for rank, pid in (pids or {0: started.pid}).items():
                with suppress(OSError, StopIteration):
                    now = usage_of(pid)
                    used[rank] = tuple(map(max, now, used.get(rank, now)))  # type: ignore[assignment]
            time.sleep(POLL_S)
    return used


def load_part(model: str, rank: int, size: int) -> None:
    """Load the part of one rank."""
    planned = plan(model, "cpu", world=World(rank, size, 0, 1, ""))
    planned.load_model()
    time.sleep(2 * POLL_S)


def main(arguments: list[str]) -> None:
    """Measure one process and all ranks, and compare them."""
    model, size, *flags = [*arguments, "2"][: max(2, len(arguments))]
    if flags[:1] == ["--part"]:
        load_part(model, int(flags[1]), int(size))
        return
    path, complete = Path(model), ["llama_chat", "complete", "-m", model, *FLAGS, *flags]
    forget(path)
    alone = measure([sys.executable, "-m", *complete])[0]
    forget(path)
    together = measure([*torchrun(int(size)), *complete])
    print(f"one process: peak {alone[0] / 1e9:.2f} GB, read {alone[1] / 1e9:.2f} GB")
    for rank, (peak, read) in together.items():
        forget(path)
        part = [sys.executable, "-m", "benchmarks.ranks", model, size, "--part", str(rank)]
        read_alone = measure(part)[0][1]
        print(
            f"rank {rank} of {size}: peak {peak / 1e9:.2f} GB ({peak / alone[0]:.0%}); read "
            f"{read / 1e9:.2f} GB beside the others ({read / alone[1]:.0%}), "
            f"{read_alone / 1e9:.2f} GB alone ({read_alone / alone[1]:.0%})"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
