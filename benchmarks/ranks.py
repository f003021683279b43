"""Memory and bytes read of each rank of a model, and of one process, with its speed.

    python -m benchmarks.ranks MODEL [RANKS] [FLAG…]

Each run is ``llama-chat bench``, under ``torchrun`` for the ranks, with the model not in memory at
its beginning. The flags go to it. Bytes are those that the disk was read for; ranks of one machine
share what one of them has read.
"""

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from harness.campaigns.ranks import ranks_of, torchrun

POLL_S = 0.05

BENCH = ("--prompt-tokens", "64", "--new-tokens", "16", "--rounds", "1", "--json")


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


def measure(model: Path, size: int, flags: list[str]) -> dict[int, tuple[int, int]]:
    """Run the program on ``size`` ranks, and return what each of them used."""
    forget(model)
    command = torchrun(size) if size > 1 else [sys.executable, "-m"]
    bench = [*command, "llama_chat", "bench", "-m", str(model), *BENCH, *flags]
    used: dict[int, tuple[int, int]] = {}
    with subprocess.Popen(bench, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as started:
        while started.poll() is None:
            pids = ranks_of(started.pid) if size > 1 else {0: started.pid}
            for rank, pid in pids.items():
                with suppress(OSError, StopIteration):
                    used[rank] = usage_of(pid)
            time.sleep(POLL_S)
        report = json.loads(started.stdout.read()) if started.stdout else {}
    print(json.dumps({"ranks": size, **report}))
    return used


def main(arguments: list[str]) -> None:
    """Measure one process and all ranks, and compare them."""
    model, size, *flags = [*arguments, "2"][: max(2, len(arguments))]
    alone = measure(Path(model), 1, flags)[0]
    for rank, (peak, read) in measure(Path(model), int(size), flags).items():
        print(
            f"rank {rank}: peak {peak / 1e9:.2f} GB, {peak / alone[0]:.0%} of one process; "
            f"read {read / 1e9:.2f} GB, {read / alone[1]:.0%}"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
