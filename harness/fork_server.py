"""A process that has imported the program and its libraries, and forks for each run of it.

    python -m harness.fork_server SOCKET

Most of the time of a short run is spent importing torch. Here that is paid once: a fork of this
process goes on as a new interpreter would that was started by ``python -m MODULE``, with its
arguments, environment, folder, umask, streams, terminal, signals and its way to end. Two things
differ: modules are imported already, and all forks hash strings alike.

Where more could differ, a new interpreter is started: see ``can_fork``.
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
    gc.freeze()  # so that no fork copies the pages of these objects by looking through them
    return {name: value for name, value in os.environ.items() if variables.get(name) != value}


_libraries: list[str] = []
"""The modules that ``preload`` has imported and that are neither Python's nor ours."""


def is_library(module: str) -> bool:
    """Tell whether a module is neither Python's nor ours."""
    return module.partition(".")[0] not in sys.stdlib_module_names | {"llama_chat", "harness"}


def leave_libraries() -> None:
    """Keep libraries out of the end of Python, which would take them apart piece by piece.

    That, like ``end_with_python``, spares a fork from copying most of the pages that it shares.
    """
    libraries = [sys.modules.pop(name) for name in _libraries]
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(libraries))


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
            enter(request, streams)
            return partial(run_module if warm else execute, request)
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


def enter(request: Request, streams: list[int]) -> None:
    """Take the streams, the folder and the umask, and have nothing else open."""
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
    """Become another program, as a shell starts one."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # ignored by Python
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.execvpe(request.command[0], request.command, request.environment)  # noqa: S606


def run_module(request: Request) -> None:
    """Go on as ``python -m`` does in an interpreter that has just started."""
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
    """Seed the generators of libraries anew, as at import; Python does so with its own."""
    if torch := sys.modules.get("torch"):
        torch.default_generator.seed()
    if numpy_random := sys.modules.get("numpy.random"):
        numpy_random.seed()


def end_with_python() -> None:
    """Let the process end once Python has, with the same status.

    To run the C++ destructors of torch's static objects takes longer than most runs.
    """
    c = ctypes.CDLL(None)
    if hasattr(c, "on_exit"):  # of glibc: calls a function with the status
        c.on_exit(ctypes.cast(c._exit, ctypes.c_void_p), None)


def open_stream(descriptor: int, like: io.TextIOWrapper) -> TextIO | None:
    """Open a standard stream as Python does when it starts; None if it is closed.

    Args:
        descriptor: its descriptor.
        like: the same stream of this process, which has the encoding of the same locale.
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
    """Serve; in a child, do what was asked for."""
    atexit.register(leave_libraries)  # first, and so after what libraries do at exit
    run = ForkServer(socket.socket(fileno=int(sys.argv[1]))).serve()
    run()


if __name__ == "__main__":
    main()
