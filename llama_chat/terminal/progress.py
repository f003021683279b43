"""Progress bar on stderr for long jobs."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from llama_chat.terminal.sanitizer import sanitize
from llama_chat.terminal.streams import is_terminal, one_line

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn, TaskID

Report = Callable[[int, int], None]
"""Called with the amount done and the total, which is 0 while it is unknown."""

DELAY_S = 0.3
"""Seconds until a job shows a bar."""

_WITHOUT_TOTAL = 3
"""Columns to show while the total is unknown: the spinner, the description and the bar."""

PREFILL_DELAY_S = 1.0
"""The same for prefill, with which nearly every reply begins."""


@contextmanager
def progress(
    description: str,
    delay_s: float = DELAY_S,
    *,
    in_bytes: bool = False,
    in_items: bool = False,
    hidden: bool = False,
) -> Iterator[Report]:
    """Show a progress bar with percentage and time left, and remove it at the end.

    With ``in_bytes`` or ``in_items`` it shows their number and rate too. Nothing is written if
    stderr is no terminal, or with ``hidden``.
    """
    description = sanitize(one_line(description))
    bar: Progress | None = None
    task: TaskID | None = None
    columns: tuple[str | ProgressColumn, ...] = ()
    began = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal bar, task, columns
        if bar is None:
            if done >= total > 0 or time.monotonic() - began < delay_s:
                return
            bar = _new_bar(in_bytes=in_bytes, in_items=in_items)
            task = bar.add_task(description, total=None, rate="")
            columns = bar.columns
        if task is not None:
            bar.columns = columns if total else columns[:_WITHOUT_TOTAL]
            text = description if total else f"{description} …"
            rate = f"{done / (time.monotonic() - began):.1f}/s" if in_items and done else ""
            bar.update(task, completed=done, total=total or None, description=text, rate=rate)
            bar.start()  # only now: it draws the text at once

    if hidden or not is_terminal(sys.stderr):
        yield lambda done, total: None
        return
    try:
        yield report
    finally:
        if bar is not None:
            try:
                bar.stop()
            finally:  # also if a signal cuts that off
                bar.console.show_cursor()


def _new_bar(*, in_bytes: bool, in_items: bool) -> "Progress":
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = Console(stderr=True, no_color=True)
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        *((DownloadColumn(), TransferSpeedColumn()) if in_bytes else ()),
        *((MofNCompleteColumn(), TextColumn("{task.fields[rate]}")) if in_items else ()),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        # Otherwise Rich redirects stdout to stderr while the bar is shown.
        redirect_stdout=False,
        # A dumb terminal cannot redraw the bar: only its empty last line would be left.
        disable=console.is_dumb_terminal,
    )
