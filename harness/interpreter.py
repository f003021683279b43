"""Make a fork of the server behave like a new interpreter started by a shell.

Its arguments, environment, working directory, umask, streams, terminal, signals and exit status are
the same. Three things differ: modules are already imported; all forks have the same seed of string
hashes; and objects that only modules hold are not freed at the end.
"""

import atexit
import gc
import io
import os
import runpy
import signal
import sys
import threading
from collections.abc import Mapping
from typing import Any, NoReturn, TextIO

from harness.request import Request


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


def run_module(request: Request, variables: Mapping[str, str]) -> NoReturn:
    """Run a module as ``python -m`` does in a new interpreter, and exit.

    Args:
        request: the arguments, environment and working directory.
        variables: environment variables that importing has set.
    """
    module, *arguments = request.command[2:]
    os.environ.clear()
    os.environ.update({**variables, **request.environment})
    sys.argv = [module, *arguments]
    sys.path[0] = request.folder
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        stream = open_stream(descriptor, getattr(sys, name))
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    reseed()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    status = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        if not isinstance(stop.code, int | None):
            raise
        status = stop.code or 0
    end(status)


def end(status: int) -> NoReturn:
    """Exit as Python does, but without freeing every object.

    Freeing takes longer than most runs, and copies most of the pages that a fork shares. If a
    stream cannot be written, Python exits in full, and reports that.

    Raises:
        SystemExit: in that case.
    """
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    gc.collect()
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None and not stream.closed:
                stream.flush()
    except (OSError, ValueError):
        sys.exit(status)
    os._exit(status)


def reseed() -> None:
    """Reseed the random generators of libraries; Python reseeds its own after a fork."""
    if torch := sys.modules.get("torch"):
        torch.default_generator.seed()
    if numpy_random := sys.modules.get("numpy.random"):
        numpy_random.seed()


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
