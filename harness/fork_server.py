"""A process that has imported the program and its libraries, and forks for each run of it.

    python -m harness.fork_server SOCKET

Most of the time of a short run is spent importing torch. Here that is paid once: a fork of this
process goes on as a new interpreter would, see ``harness.interpreter``. Where it could not, a new
one is started, see ``can_fork``.
"""

import gc
import io
import os
import pkgutil
import re
import select
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from importlib import import_module
from typing import NoReturn

from harness import interpreter
from harness.request import NUMBER, Request, receive

IMPORTED_LATE = ("httpx2", "typer._adapters")
"""Libraries that our modules do not import when they are imported, but soon after."""

IMPORTED_BY_RUNS = ("huggingface_hub", "readline", "typer.rich_utils")
"""Libraries that look at the environment, or at the terminal, when they are imported."""

READ_WHEN_USED = re.compile(
    r"HOME|PATH|TERM|COLUMNS|LINES|(NO|FORCE)_COLOR|DISPLAY|SSH_TTY|VISUAL|EDITOR|PS1"
    r"|(NO_PROXY|no_proxy)|TRANSFORMERS_OFFLINE|LLAMA_CHAT_(?!KERNEL$)\w+|_LLAMA_CHAT_COMPLETE"
    r"|(XDG|HF|PIP|COMP|_TYPER_COMPLETE|PYTEST)_\w+"
)
"""Variables that nothing reads before the program runs, so that a fork may be given others."""


@cache
def preload() -> dict[str, str]:
    """Import what runs import, and return the variables that importing has set.

    No parallel region may run here: a fork of a process that has OpenMP threads waits for them in
    its own first one, for ever. Importing starts none.
    """
    before = dict(os.environ)
    import llama_chat

    for name in IMPORTED_BY_RUNS:
        sys.modules[name] = None  # type: ignore[assignment] # makes importing it an ImportError
    ours = (module.name for module in pkgutil.walk_packages(llama_chat.__path__, "llama_chat."))
    for name in (*ours, *IMPORTED_LATE):
        if name != "llama_chat.__main__":
            with suppress(ImportError):
                import_module(name)
    for name in IMPORTED_BY_RUNS:
        del sys.modules[name]
    gc.collect()
    gc.freeze()  # so that no fork copies the pages of these objects by looking through them
    return {name: value for name, value in os.environ.items() if before.get(name) != value}


def can_fork(request: Request) -> bool:
    """Tell whether a fork of this process can take the place of a new interpreter.

    It cannot if a variable differs that may have been read already, by Python, OpenMP or an import:
    none may differ but ``READ_WHEN_USED``.
    """
    if request.cold or request.command[:2] != [sys.executable, "-m"]:
        return False
    wanted = preload() | request.environment
    return all(
        wanted.get(name) == os.environ.get(name) or READ_WHEN_USED.fullmatch(name)
        for name in wanted.keys() | os.environ.keys()
    )


class ForkServer:
    """Starts processes, and tells how they end."""

    def __init__(self, requests: socket.socket) -> None:
        """Serve those who ask at the other end of ``requests``."""
        self._requests = requests
        self._running: dict[int, int] = {}
        """The pipe for the exit status of each process, by pid."""
        self._ended, self._wake_up = os.pipe()
        os.set_blocking(self._wake_up, False)

    def serve(self) -> Callable[[], object]:
        """Fork for each request.

        Returns:
            in each child, and only there, the function that it is to go on with.
        """
        # A child is not to miss a signal that comes before it has set its handlers.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - {signal.SIGCHLD})
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(self._wake_up)
        while True:
            ready, _, _ = select.select([self._requests.fileno(), self._ended], [], [])
            if self._ended in ready:
                os.read(self._ended, io.DEFAULT_BUFFER_SIZE)
                self._report()
            if self._requests.fileno() in ready:
                received = receive(self._requests)
                if received is None:
                    self._end()
                request, (status, *streams) = received
                if run := self._start(request, status, streams):
                    return run

    def _start(
        self, request: Request, status: int, streams: list[int]
    ) -> Callable[[], object] | None:
        """Fork, and return what the child is to do, in the child."""
        warm = can_fork(request)
        pid = os.fork()
        if pid == 0:
            self._leave_to_child()
            interpreter.enter(request, streams)
            if warm:
                return partial(interpreter.run_module, request, preload())
            return partial(interpreter.execute, request)
        for descriptor in streams:
            os.close(descriptor)
        self._running[pid] = status
        self._tell(status, pid)
        return None

    def _report(self) -> None:
        """Tell the exit status of every process that has ended."""
        while self._running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            pipe = self._running.pop(pid)
            self._tell(pipe, os.waitstatus_to_exitcode(status))
            os.close(pipe)

    @staticmethod
    def _tell(pipe: int, number: int) -> None:
        with suppress(BrokenPipeError):  # nobody wants to know any more
            os.write(pipe, NUMBER.pack(number))

    def _end(self) -> NoReturn:
        """End, with all that still runs."""
        for pid in self._running:
            os.kill(pid, signal.SIGKILL)
        sys.exit()

    def _leave_to_child(self) -> None:
        """Take the server out of a child: its handlers, and every descriptor that it opened."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._requests.close()
        for descriptor in (self._ended, self._wake_up, *self._running.values()):
            os.close(descriptor)


def main() -> None:
    """Serve; in a child, do what was asked for."""
    run = ForkServer(socket.socket(fileno=int(sys.argv[1]))).serve()
    run()


if __name__ == "__main__":
    main()
