"""A progress bar on stderr, for what takes long."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from llama_chat.terminal.streams import is_terminal

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

Report = Callable[[int, int], None]
"""Told how much of how much is done."""

PATIENCE_S = 0.3
"""A job that is done by then shows nothing."""

PREFILL_PATIENCE_S = 1.0
"""The same for reading a prompt, which nearly every reply begins with."""


@contextmanager
def progress(
    description: str, patience_s: float = PATIENCE_S, *, hidden: bool = False
) -> Iterator[Report]:
    """Show how far a job is, with percentage and time left, and remove that at its end.

    Nothing is written where stderr is no terminal, or if it is to be ``hidden``.
    """
    bar: Progress | None = None
    task: TaskID | None = None
    began = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal bar, task
        if bar is None:
            if done >= total or time.monotonic() - began < patience_s:
                return
            bar = _open_bar()
            task = bar.add_task(description, total=total)
        if task is not None:
            bar.update(task, completed=done, total=total)

    if hidden or not is_terminal(sys.stderr):
        yield lambda done, total: None
        return
    try:
        yield report
    finally:
        if bar is not None:
            bar.stop()


def _open_bar() -> "Progress":
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        SpinnerColumn,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        # Rich would send what is written to stdout meanwhile to stderr.
        redirect_stdout=False,
        # Without cursor movement only the empty line at its end would be left of it.
        disable=console.is_dumb_terminal,
    )
    bar.start()
    return bar
