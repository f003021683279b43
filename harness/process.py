"""Processes started by the fork server, with an interface like ``subprocess.Popen``."""

import atexit
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from threading import Lock

from harness.request import NUMBER, Request, send

KILLED_S = 10.0
"""Longest time that a killed process may take to end."""

ROOT = Path(__file__).resolve().parent.parent


@cache
def inherited() -> dict[str, str]:
    """Return the environment of the shell without the program's variables.

    Streams are buffered, as they are for users, so that what cannot be written at the end counts.
    The first call counts: importing torch and transformers in this process sets more variables.
    """
    dropped = ("LLAMA_CHAT_", "XDG_", "PYTHONUNBUFFERED")
    return {name: value for name, value in os.environ.items() if not name.startswith(dropped)}


class _Server:
    """Fork server of this process, which ends with it."""

    def __init__(self) -> None:
        """Start the server, which imports nothing large before the first request."""
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
        """Request a process."""
        with self._lock:
            send(self._requests, request, descriptors)

    def stop(self) -> None:
        """Stop the server, which kills all processes that it started."""
        self._requests.close()
        self._process.wait()


@cache
def fork_server() -> _Server:
    """Return the server, which the first call starts."""
    server = _Server()
    atexit.register(server.stop)
    return server


_cold = False


@contextmanager
def cold() -> Iterator[None]:
    """Start a new interpreter, as a shell does, for each run of the program in the block."""
    global _cold
    before, _cold = _cold, True
    try:
        yield
    finally:
        _cold = before


class Process:
    """Process in the background."""

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
            streams: descriptors of this process by their number there, 0 to 2; others are closed.
            terminal: True if 0 is a terminal, which becomes all three and controls the process.
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
        """Exit status, -N after signal N; None until ``poll`` or ``wait`` has learnt it."""
        self.peak_rss = 0
        """Peak resident memory in bytes, shared pages included; 0 until the status is known."""

    def poll(self) -> int | None:
        """Return the exit status, or None if the process still runs."""
        if self.returncode is None and self._has_answer(0):
            with self._pipe:
                self.returncode = self._receive()
                self.peak_rss = self._receive() * (1 if sys.platform == "darwin" else 1024)
        return self.returncode

    def wait(self, seconds: float) -> int:
        """Wait for the end of the process, and return its exit status.

        Raises:
            TimeoutError: if it still runs after ``seconds``.
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
            with suppress(ProcessLookupError):  # it has ended since
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
