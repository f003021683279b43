"""Run the program as a user's shell does."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from harness.process import Process, inherited
from harness.request import COMMAND

__all__ = [
    "COMMAND",
    "CONTROLS",
    "FORBIDDEN",
    "Program",
    "Result",
    "assert_clean_error",
    "environment",
    "run",
]

FORBIDDEN = ("Traceback", "Exception ignored", "Aborted", "Error(", "Error:")
CONTROLS = {chr(code) for code in range(0x20)} - {"\n", "\t"} | {"\x7f"}

TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Result:
    """Exit status and output of a run of the program."""

    status: int
    out: str
    err: str


def environment(home: Path, **changes: str) -> dict[str, str]:
    """Return a clean environment whose folders are all below ``home``."""
    kept = dict(inherited())
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES"):
        kept.pop(name, None)
    return kept | {"HOME": str(home), "TERM": "xterm-256color"} | changes


class Program(Process):
    """The program, or another one, on pipes in the background; killed at the end of a ``with``."""

    def __init__(
        self,
        *arguments: str | Path,
        home: Path,
        command: Sequence[str] = COMMAND,
        folder: str = "",
        stdin: str = "",
        **env: str,
    ) -> None:
        """Start it, with an ``environment`` of ``home`` and ``env``.

        Args:
            arguments: its command line.
            home: its home folder.
            command: another program.
            folder: its working directory, if not that of this process.
            stdin: a file or a terminal that is its stdin; a pipe from here if empty.
            env: more variables of its environment.
        """
        theirs_in, ours_in = os.pipe()
        ours_out, theirs_out = os.pipe()
        ours_err, theirs_err = os.pipe()
        theirs = [theirs_in, theirs_out, theirs_err]
        self.stdin = os.fdopen(ours_in, "wb")
        self.stdout = os.fdopen(ours_out, "rb")
        self.stderr = os.fdopen(ours_err, "rb")
        if stdin:
            os.close(theirs_in)
            theirs[0] = os.open(stdin, os.O_RDONLY | os.O_NOCTTY)
        try:
            super().__init__(
                [*command, *map(str, arguments)],
                environment(home, **env),
                dict(enumerate(theirs)),
                folder=folder,
            )
        finally:
            for descriptor in theirs:
                os.close(descriptor)

    def __enter__(self) -> "Program":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()
        with suppress(BrokenPipeError):
            self.stdin.close()
        self.stdout.close()
        self.stderr.close()

    def communicate(self, stdin: bytes = b"", seconds: float = TIMEOUT_S) -> tuple[bytes, bytes]:
        """Pipe ``stdin`` to it, and return what it writes to stdout and stderr until its end.

        Raises:
            TimeoutError: if it still runs after ``seconds``; it is killed then.
        """
        with ThreadPoolExecutor(3) as pool:
            pool.submit(self._feed, stdin)
            out, err = pool.submit(self.stdout.read), pool.submit(self.stderr.read)
            try:
                self.wait(seconds)
            finally:
                self.kill()  # else its pipes stay open, and the reads never return
            return out.result(), err.result()

    def _feed(self, data: bytes) -> None:
        with suppress(BrokenPipeError), self.stdin:
            self.stdin.write(data)


def run(
    *arguments: str | Path,
    home: Path,
    stdin: bytes | None = b"",
    folder: str = "",
    **env: str,
) -> Result:
    """Run the program to its end; ``stdin`` is piped to it, None gives it ``/dev/null``."""
    file = os.devnull if stdin is None else ""
    with Program(*arguments, home=home, folder=folder, stdin=file, **env) as program:
        out, err = program.communicate(stdin or b"")
        return Result(program.wait(0), out.decode(), err.decode())


def assert_clean_error(result: Result, status: int, *parts: str) -> None:
    """Check that a run wrote only one error line, with ``parts`` in it, and its ``status``."""
    assert (result.status, result.out) == (status, ""), result
    errors = [line for line in result.err.splitlines() if "error:" in line]
    assert len(errors) == 1, result.err
    line = errors[0]
    assert line.startswith("llama-chat: error: ")
    assert line.count(": ") >= 3, line
    for part in parts:
        assert part in line, line
    for word in FORBIDDEN:
        assert word not in result.err
    assert not CONTROLS & set(result.err)
