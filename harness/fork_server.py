"""Server that imports the program and its libraries once, and forks for each run.

    python -m harness.fork_server SOCKET

A short run spends most of its time importing torch; the server does so once. A fork behaves like a
new interpreter started by ``python -m MODULE``, in its arguments, environment, working directory,
umask, streams, terminal, signals and exit status. Two things differ: modules are imported already,
and all forks have the same seed of string hashes.

Where more could differ, a new interpreter is started instead: see ``can_fork``.
"""

import atexit
import ctypes
import gc
import io
import os
import pkgutil
import re
import runpy
import select
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from importlib import import_module
from typing import Any, NoReturn, TextIO

from harness.request import NUMBER, Request, receive

IMPORTED_LATE = ("httpx2", "typer._adapters")
"""Libraries that our modules import when they run, not when they are imported."""

IMPORTED_BY_RUNS = ("huggingface_hub", "readline", "typer.rich_utils")
"""Libraries that read the environment or the terminal on import, so that a run imports them."""

READ_WHEN_USED = re.compile(
    r"HOME|PATH|TERM|COLUMNS|LINES|(NO|FORCE)_COLOR|DISPLAY|SSH_TTY|VISUAL|EDITOR|PS1"
    r"|(NO_PROXY|no_proxy)|TRANSFORMERS_OFFLINE|LLAMA_CHAT_(?!KERNEL$)\w+|_LLAMA_CHAT_COMPLETE"
    r"|(XDG|HF|PIP|COMP|_TYPER_COMPLETE|PYTEST)_\w+"
)
"""Variables that nothing reads before the program runs, so that a fork may have other values."""


@cache
def preload() -> dict[str, str]:
    """Import the modules that runs import, and return the variables that importing has set.

    No OpenMP region may run here: a fork does not inherit its threads, and would wait for them
    forever in its own first region. Importing starts none.
    """
    variables, modules = dict(os.environ), set(sys.modules)
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
    _libraries.extend(name for name in sys.modules.keys() - modules if is_library(name))
    gc.collect()
    gc.freeze()  # else the collector of a fork would write to these objects, and copy their pages
    return {name: value for name, value in os.environ.items() if variables.get(name) != value}


_libraries: list[str] = []
"""Third-party modules that ``preload`` has imported."""


def is_library(module: str) -> bool:
    """Return True if a module is third-party: neither Python's nor ours."""
    return module.partition(".")[0] not in sys.stdlib_module_names | {"llama_chat", "harness"}


def leave_libraries() -> None:
    """Keep third-party modules alive at exit, where Python would destroy their objects.

    Like ``end_with_python``, this saves a fork from copying most of the pages that it shares.
    """
    libraries = [sys.modules.pop(name) for name in _libraries]
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(libraries))


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
    """Server that starts a process for each request, and reports its pid and exit status."""

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
            enter(request, streams)
            return partial(run_module if warm else execute, request)
        for descriptor in streams:
            os.close(descriptor)
        self._running[pid] = status
        self._answer(status, pid)
        return None

    def _report(self) -> None:
        """Report the exit status of every process that has ended."""
        while self._running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            pipe = self._running.pop(pid)
            self._answer(pipe, os.waitstatus_to_exitcode(status))
            os.close(pipe)

    @staticmethod
    def _answer(pipe: int, number: int) -> None:
        with suppress(BrokenPipeError):  # the client has closed its end
            os.write(pipe, NUMBER.pack(number))

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


def enter(request: Request, streams: list[int]) -> None:
    """Set up streams, working directory and umask, and close all other descriptors."""
    if request.terminal:
        (terminal,) = streams
        os.login_tty(terminal)
    else:
        for descriptor in range(3):
            os.close(descriptor)
        for descriptor, stream in zip(request.streams, streams, strict=True):
            os.dup2(stream, descriptor)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.chdir(request.folder)
    os.umask(request.umask)


def execute(request: Request) -> NoReturn:
    """Replace this process by another program, started as a shell would start it."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # ignored by Python
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.execvpe(request.command[0], request.command, request.environment)  # noqa: S606


def run_module(request: Request) -> None:
    """Run a module as ``python -m`` does in a new interpreter."""
    module, *arguments = request.command[2:]
    os.environ.clear()
    os.environ.update(preload() | request.environment)
    sys.argv = [module, *arguments]
    sys.path[0] = request.folder
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        stream = open_stream(descriptor, getattr(sys, name))
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    reseed()
    end_with_python()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def reseed() -> None:
    """Reseed the random generators of libraries; Python reseeds its own after a fork."""
    if torch := sys.modules.get("torch"):
        torch.default_generator.seed()
    if numpy_random := sys.modules.get("numpy.random"):
        numpy_random.seed()


def end_with_python() -> None:
    """Make the process exit as soon as Python has finished, with the same status.

    The C++ destructors of torch's static objects would take longer than most runs.
    """
    c = ctypes.CDLL(None)
    if hasattr(c, "on_exit"):  # of glibc: registers a function that gets the status
        c.on_exit(ctypes.cast(c._exit, ctypes.c_void_p), None)


def open_stream(descriptor: int, like: io.TextIOWrapper) -> TextIO | None:
    """Open a standard stream as Python does at startup; None if it is closed.

    Args:
        descriptor: 0, 1 or 2.
        like: the stream that the server has for it, whose encoding and buffering are used.
    """
    try:
        os.fstat(descriptor)
    except OSError:
        return None
    mode = "w" if descriptor else "r"
    unbuffered = like.write_through  # as all streams are under PYTHONUNBUFFERED
    binary: Any = os.fdopen(
        descriptor, mode + "b", 0 if unbuffered and descriptor else -1, closefd=False
    )
    getattr(binary, "raw", binary).name = like.name
    text: Any = io.TextIOWrapper(
        binary,
        encoding=like.encoding,
        errors=like.errors,
        newline="\n",
        line_buffering=not unbuffered and (binary.isatty() or descriptor == 2),
        write_through=unbuffered,
    )
    text.mode = mode
    stream: TextIO = text
    return stream


def main() -> None:
    """Serve; in a child, run what was requested."""
    atexit.register(leave_libraries)  # first, so that it runs after the exit handlers of libraries
    run = ForkServer(socket.socket(fileno=int(sys.argv[1]))).serve()
    run()


if __name__ == "__main__":
    main()
