"""A terminal of its own for a program that another one keeps apart from the user's.

``torchrun`` starts each rank in a session without a terminal: Ctrl-C would reach ``torchrun``
alone, which ends everything. So keys go through a terminal that belongs to the program, whose
Ctrl-C is a signal to it, as without ``torchrun``. What the program writes goes to the user's
terminal directly.
"""

import fcntl
import os
import select
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

_POLL_S = 0.2
"""Time in which a change of the window's size is noticed, which is told to torchrun alone."""

_restore: list[Callable[[], object]] = []
"""Functions that ``restore_terminal`` calls, if the mode has changed."""


def restore_terminal() -> None:
    """Restore the mode of the user's terminal, if it has changed."""
    while _restore:
        with suppress(termios.error):  # the terminal has gone
            _restore.pop()()


def lacks_terminal() -> bool:
    """True if this process leads a session without a terminal."""
    if os.getsid(0) != os.getpid():
        return False
    try:
        os.close(os.open(os.ctermid(), os.O_RDWR))
    except OSError:
        return True
    return False


@contextmanager
def own_terminal() -> Iterator[None]:
    """Put a terminal of this process in place of the user's at stdin, if it ``lacks_terminal``."""
    if not lacks_terminal():
        yield
        return
    users = os.dup(0)
    before = termios.tcgetattr(users)
    ours, theirs = os.openpty()
    termios.tcsetattr(theirs, termios.TCSANOW, before)
    termios.tcsetwinsize(theirs, termios.tcgetwinsize(users))
    fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)
    os.dup2(theirs, 0)
    os.close(theirs)
    raw = termios.tcgetattr(users)
    raw[0] &= ~(termios.ICRNL | termios.IXON)
    raw[3] &= ~(termios.ECHO | termios.ICANON | termios.ISIG | termios.IEXTEN)
    termios.tcsetattr(users, termios.TCSANOW, raw)
    ended, end = os.pipe()
    _restore.append(lambda: termios.tcsetattr(users, termios.TCSADRAIN, before))
    relay = threading.Thread(target=_relay, args=(users, ours, ended), name="keys", daemon=True)
    relay.start()
    try:
        yield
    finally:
        sys.stdout.flush()
        os.close(end)
        relay.join()
        restore_terminal()
        os.dup2(users, 0)


def _relay(users: int, ours: int, ended: int) -> None:
    """Relay keys to the program, and what its terminal echoes, until the user's terminal closes."""
    size = termios.tcgetwinsize(users)
    with suppress(OSError, termios.error):
        while True:
            ready, _, _ = select.select([users, ours, ended], [], [], _POLL_S)
            if ended in ready:
                return
            if users in ready:
                keys = os.read(users, 4096)
                if not keys:
                    break
                while keys:
                    keys = keys[os.write(ours, keys) :]
            if ours in ready:
                os.write(1, os.read(ours, 4096))
            if (now := termios.tcgetwinsize(users)) != size:
                size = now
                termios.tcsetwinsize(ours, size)
    os.close(ours)  # a hangup for the program, too
