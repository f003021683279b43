"""Descriptors of this process."""

from pathlib import Path


def n_open() -> int:
    """Return the number of open descriptors."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())
