"""A launcher that starts ranks as ``torchrun`` does, and in a tenth of the time.

    python -m harness.launch N MODULE ARGUMENT…

Each rank is a fork of this process in a session of its own, with the same streams. When one fails,
the others get SIGTERM; Ctrl-C and SIGTERM go to all, which have a while to end.
"""

import os
import runpy
import signal
import socket
import sys
import time
from contextlib import suppress
from datetime import timedelta
from types import FrameType

from torch import distributed

from harness.ranks import rank_environment

TIMEOUT_S = 30.0
"""Time that ranks have to end after a signal, as with ``torchrun``."""


class Stopped(Exception):
    """A signal ends all; its number is the argument."""


def free_port() -> int:
    """Return the number of a port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(rank: int, size: int, port: int, module: str) -> int:
    """Start a rank and return its process; in that process it does not return."""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        os.environ.update(rank_environment(rank, size, port, size))
        status = 1
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else 0
        finally:
            sys.stdout.flush()
            os._exit(status)
    return pid


def wait(pids: list[int]) -> int:
    """Wait for the end of all ranks; returns 1 if one failed, after which the others are ended."""
    status, left = 0, set(pids)
    try:
        while left:
            pid, code = os.wait()
            left.discard(pid)
            if code and not status:
                status = 1
                raise Stopped(signal.SIGTERM)
    except Stopped as stopped:
        end(left, stopped.args[0])
        status = 1
    return status


def end(left: set[int], number: int) -> None:
    """End processes by a signal, and kill those that do not."""
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
    began = time.monotonic()
    while left:
        pid, _ = os.waitpid(-1, os.WNOHANG)
        left.discard(pid)
        if time.monotonic() - began > TIMEOUT_S:
            end(left, signal.SIGKILL)
        time.sleep(0.01)


def main() -> None:
    """Run the ranks."""
    size, module = int(sys.argv[1]), sys.argv[2]
    sys.argv = sys.argv[2:]
    port = free_port()
    pids = [start(rank, size, port, module) for rank in range(size)]

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    store = distributed.TCPStore(  # type: ignore[attr-defined] # as is documented
        "127.0.0.1", port, is_master=True, wait_for_workers=False, timeout=timedelta(minutes=1)
    )
    status = wait(pids)
    del store
    sys.exit(status)


if __name__ == "__main__":
    main()
