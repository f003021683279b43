"""Calls of the operating system that fail, and descriptors that they leave open."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def failing(code: int) -> Callable[..., Any]:
    """Return a function that fails as a call of the operating system does."""

    def fail(*_: object, **options: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


def n_open() -> int:
    """Return the number of open descriptors."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())
