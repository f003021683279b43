"""Other programs that have the terminal for a while, such as an editor."""

import signal
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import IO

from llama_chat.terminal import streams

_POLL_S = 0.1

_KILL_S = 0.5
"""Seconds that a program has to end when it is asked to."""


def run_foreground(
    command: Sequence[str],
    should_stop: Callable[[], bool] = lambda: False,
    *,
    stdin: IO[bytes] | None = None,
    env: Mapping[str, str] | None = None,
) -> int:
    """Run another program in the terminal to its end, and return its status.

    Args:
        command: the program and its arguments.
        should_stop: asked often; the program is ended once it is True.
        stdin: a file that is its stdin, instead of the terminal.
        env: its environment, if not ours.

    Raises:
        OSError: if it cannot be started; also a ValueError.
    """
    with _yielded_terminal(), subprocess.Popen(command, stdin=stdin, env=env) as program:
        try:
            return _wait(program, should_stop)
        except BaseException:  # a signal
            program.kill()
            raise


def _wait(program: "subprocess.Popen[bytes]", should_stop: Callable[[], bool]) -> int:
    while not should_stop():
        with suppress(subprocess.TimeoutExpired):
            return program.wait(_POLL_S)
    program.terminate()
    try:
        return program.wait(_KILL_S)
    except subprocess.TimeoutExpired:
        program.kill()
        return program.wait()


@contextmanager
def _yielded_terminal() -> Iterator[None]:
    """Leave Ctrl-C to another program in the terminal, and restore the terminal's mode after it."""
    terminal = sys.stdin if streams.is_terminal(sys.stdin) else None
    mode = termios.tcgetattr(terminal) if terminal else None
    handler = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if terminal and mode:
            with suppress(termios.error):  # it is closed
                termios.tcsetattr(terminal, termios.TCSADRAIN, mode)
