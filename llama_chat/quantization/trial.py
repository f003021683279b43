"""Trials: the faster of two ways to compute the same, remembered for the next runs.

Only the portable kernels need them: those of an instruction set are faster than torch wherever they
are used.
"""

import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch

from llama_chat import __version__
from llama_chat.documents import read_results, write_results
from llama_chat.files import read_start
from llama_chat.kernels import native

FILE = "trials.json"
"""Name of the file in the cache folder."""

_SECONDS = 0.025
"""Time for each of the two ways."""


def is_faster(what: str, one: Callable[[], object], other: Callable[[], object]) -> bool:
    """True if ``one`` takes less time than ``other``: measured, or known from an earlier run.

    Args:
        what: name of the comparison, with all that its result depends on but this machine.
        one: a way to compute something.
        other: another way.
    """
    key = " · ".join((what, _processor(), __version__, torch.__version__, _build()))
    known = read_results(FILE, bool)
    if key not in known:
        known[key] = _best_seconds(one) < _best_seconds(other)
        write_results(FILE, known)
    return known[key]


@torch.inference_mode()
def _best_seconds(compute: Callable[[], object]) -> float:
    """Return the least time of a call, of two or as many as there is time for."""
    times: list[float] = []
    now = time.perf_counter()
    end = now + _SECONDS
    while len(times) < 2 or now < end:
        began = now
        compute()
        now = time.perf_counter()
        times.append(now - began)
    return min(times)


def _processor() -> str:
    """Name the processor and the threads in use."""
    lines = read_start(Path("/proc/cpuinfo"), 2**12).decode(errors="replace").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = [*names, platform.processor(), platform.machine()][0]
    return f"{name}, {torch.get_num_threads()} threads"


def _build() -> str:
    """Identify the library that was built."""
    try:
        return str(native.LIBRARY.stat().st_mtime_ns)
    except OSError:
        return ""
