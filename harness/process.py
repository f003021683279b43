"""A process started by the fork server, as ``subprocess`` shows those of its own."""

import atexit
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from threading import Lock

from harness.request import NUMBER, Request, send

KILLED_S = 10.0
"""Time that a process takes to end once it is killed, at most."""

ROOT = Path(__file__).resolve().parent.parent


@cache
def inherited() -> dict[str, str]:
    """The environment of the shell, less what is about the program; asked for before it changes.

    Importing torch and transformers in this process adds to its own.
    """
    ours = ("LLAMA_CHAT_", "XDG_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


class _Server:
    """The fork server of this process, which ends with it."""

    def __init__(self) -> None:
        """Start it; it imports nothing large before it has to."""
        self._requests, theirs = socket.socketpair()
        command = [sys.executable, "-m", "harness.fork_server", str(theirs.fileno())]
        with theirs:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=inherited(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        self._lock = Lock()

    def ask(self, request: Request, descriptors: Sequence[int]) -> None:
        """Ask for a process."""
        with self._lock:
            send(self._requests, request, descriptors)

    def stop(self) -> None:
        """End it, with all that it started."""
        self._requests.close()
        self._process.wait()


@cache
def fork_server() -> _Server:
    """Start the server, unless it runs."""
    server = _Server()
    atexit.register(server.stop)
    return server


_cold = False


@contextmanager
def cold() -> Iterator[None]:
    """Start a new interpreter for each run of the program meanwhile, as a shell does."""
    global _cold
    before, _cold = _cold, True
    try:
        yield
    finally:
        _cold = before


class Process:
    """A process in the background."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        streams: Mapping[int, int],
        *,
        terminal: bool = False,
        folder: str = "",
    ) -> None:
        """Start it.

        Args:
            command: the program and its arguments.
            environment: all of its environment.
            streams: the descriptors here that are 0, 1 and 2 there; one that is missing is closed.
            terminal: whether 0 is a terminal, which is to be all three and to control the process.
            folder: its working directory, if not that of this process.
        """
        umask = os.umask(0o077)
        os.umask(umask)
        request = Request(
            list(command),
            dict(environment),
            str(Path(folder).resolve()),
            umask,
            list(streams),
            terminal,
            _cold,
        )
        pipe, theirs = os.pipe()
        self._pipe = os.fdopen(pipe, "rb", buffering=0)
        try:
            fork_server().ask(request, [theirs, *streams.values()])
        finally:
            os.close(theirs)
        self.pid = self._receive()
        self.returncode: int | None = None
        """Its exit status once it is known to have ended: -N after signal N."""

    def poll(self) -> int | None:
        """Look whether it has ended, and return its status if so."""
        if self.returncode is None and self._has_answer(0):
            with self._pipe:
                self.returncode = self._receive()
        return self.returncode

    def wait(self, seconds: float) -> int:
        """Wait for its end, and return its status.

        Raises:
            TimeoutError: if it has not ended after so long.
        """
        if self.returncode is None:
            self._has_answer(seconds)
        status = self.poll()
        if status is None:
            raise TimeoutError(f"process {self.pid} still runs after {seconds} s")
        return status

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def end(self) -> None:
        """Kill it, unless it has ended, and wait until it has."""
        self.kill()
        self.wait(KILLED_S)

    def _has_answer(self, seconds: float) -> bool:
        return bool(select.select([self._pipe], [], [], seconds)[0])

    def _receive(self) -> int:
        data = self._pipe.read(NUMBER.size)
        if not data:
            raise RuntimeError("the fork server has ended")
        (number,) = NUMBER.unpack(data)
        return int(number)
