"""A running server, for tests."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness.program import Program


@dataclass(frozen=True, slots=True)
class Server:
    """A server, its Unix socket, and the folder that its clients must have."""

    process: Program
    socket: Path
    port: int
    runtime: str

    @property
    def url(self) -> str:
        """Address of the port."""
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def running_server(home: Path, model: Path, *flags: str) -> Iterator[Server]:
    """Run a server of ``model`` on any port until the end of the block."""
    # The path of a Unix socket may have 107 bytes.
    runtime = tempfile.mkdtemp(prefix="llama-chat-")
    arguments = ("serve", "-m", str(model), "--port", "0", *flags)
    try:
        with Program(*arguments, home=home, XDG_RUNTIME_DIR=runtime) as process:
            line = process.stderr.readline().decode()
            assert "answers on" in line, line
            port = int(line.rsplit(":", 1)[1])
            yield Server(process, Path(runtime) / "llama-chat/server.sock", port, runtime)
    finally:
        shutil.rmtree(runtime, ignore_errors=True)
