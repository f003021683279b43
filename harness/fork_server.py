"""Server that imports the program and its libraries once, and forks for each run.

    python -m harness.fork_server SOCKET

A short run spends most of its time importing torch; the server does so once. A fork behaves like a
new interpreter, see ``harness.interpreter``; if it cannot, a new one is started, see ``can_fork``.
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
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from importlib import import_module
from typing import NoReturn

from harness import interpreter
from harness.request import NUMBER, Request, receive

IMPORTED_LATE = ("httpx2", "typer._adapters")
"""Libraries that our modules import when they run, not when they are imported."""

IMPORTED_BY_RUNS = ("huggingface_hub", "readline", "typer.rich_utils")
"""Libraries that read the environment or the terminal on import, so that a run imports them."""

READ_WHEN_USED = re.compile(
    r"HOME|PATH|TERM|COLUMNS|LINES|(NO|FORCE)_COLOR|COLORFGBG|DISPLAY|SSH_TTY|PS1"
    r"|VISUAL|EDITOR|PAGER|LESS"
    r"|(NO_PROXY|no_proxy)|TRANSFORMERS_OFFLINE|LLAMA_CHAT_\w+|_LLAMA_CHAT_COMPLETE"
    r"|(XDG|HF|PIP|COMP|_TYPER_COMPLETE|PYTEST)_\w+|IO_FAULT"
    r"|(LOCAL_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)|TORCHELASTIC_\w+"
)
"""Variables that nothing reads before the program runs, so that a fork may have other values."""


@cache
def preload() -> dict[str, str]:
    """Import what runs import, and return the variables that importing has set.

    No OpenMP region may run here: a fork does not inherit its threads, and would wait for them
    forever in its own first region. Importing starts none.
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
    from llama_chat.terminal.markdown import highlighting

    highlighting.preload()
    for name in IMPORTED_BY_RUNS:
        del sys.modules[name]
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        finalizer.atexit = False  # at its end every fork would destroy an operator of torch
    gc.collect()
    gc.freeze()  # otherwise collections in a fork would write to these objects: copied pages
    return {name: value for name, value in os.environ.items() if before.get(name) != value}


def can_fork(request: Request) -> bool:
    """Return True if a fork of this process can replace a new interpreter.

    No variable may differ that Python, OpenMP or an import may have read already: only those of
    ``READ_WHEN_USED`` may.
    """
    if request.cold or request.command[:2] != [sys.executable, "-m"]:
        return False
    wanted = preload() | request.environment
    return all(
        wanted.get(name) == os.environ.get(name) or READ_WHEN_USED.fullmatch(name)
        for name in wanted.keys() | os.environ.keys()
    )


class ForkServer:
    """Server that starts processes, and reports their pids, exit statuses and peak memory."""

    def __init__(self, requests: socket.socket) -> None:
        """Serve the client at the other end of ``requests``."""
        self._requests = requests
        self._running: dict[int, int] = {}
        """Pipe for the exit status of each running process, by pid."""
        self._ended, self._wake_up = os.pipe()
        os.set_blocking(self._wake_up, False)

    def serve(self) -> Callable[[], object]:
        """Fork for each request, until the client has gone.

        Returns:
            in a child, and only there, the function to run.
        """
        # A signal to a child stays pending until the child has set its handlers.
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
        """Fork; returns the function to run in the child, and None in the server."""
        warm = can_fork(request)
        pid = os.fork()
        if pid == 0:
            self._clean_up_child()
            interpreter.enter(request, streams)
            if warm:
                return partial(interpreter.run_module, request, preload())
            return partial(interpreter.execute, request)
        for descriptor in streams:
            os.close(descriptor)
        self._running[pid] = status
        self._answer(status, pid)
        return None

    def _report(self) -> None:
        """Report the exit status of every process that has ended."""
        while self._running:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
            if pid == 0:
                return
            pipe = self._running.pop(pid)
            self._answer(pipe, os.waitstatus_to_exitcode(status), usage.ru_maxrss)
            os.close(pipe)

    @staticmethod
    def _answer(pipe: int, *numbers: int) -> None:
        with suppress(BrokenPipeError):  # the client has closed its end
            os.write(pipe, b"".join(map(NUMBER.pack, numbers)))

    def _end(self) -> NoReturn:
        """Kill the processes that still run, and exit."""
        for pid in self._running:
            os.kill(pid, signal.SIGKILL)
        sys.exit()

    def _clean_up_child(self) -> None:
        """Reset the server's signal handling in a child, and close the server's descriptors."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._requests.close()
        for descriptor in (self._ended, self._wake_up, *self._running.values()):
            os.close(descriptor)


def main() -> None:
    """Serve; in a child, run what was requested."""
    run = ForkServer(socket.socket(fileno=int(sys.argv[1]))).serve()
    run()


if __name__ == "__main__":
    main()
