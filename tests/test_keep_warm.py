"""``--keep-warm``: a server that a question starts."""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from harness.program import Program, Result, run
from llama_chat.server.sockets import SocketFile

FLAGS = ("--temperature", "0", "--max-tokens", "6", "-v")

_PROGRAM = (sys.executable, "-P", "-m", "llama_chat")


class Warm:
    """Questions that start a server, which ``end`` ends."""

    def __init__(self, home: Path, model: Path) -> None:
        self.home = home
        self.runtime = tempfile.mkdtemp(prefix="llama-chat-")
        self.socket = Path(self.runtime) / "llama-chat/server.sock"
        self._arguments = ("ask", "the cat", "-m", str(model), *FLAGS, "--keep-warm", "1m")

    def ask(self, *flags: str, folder: str = "", **env: str) -> Result:
        """Ask a question."""
        env |= {"XDG_RUNTIME_DIR": self.runtime}
        arguments = (*self._arguments, *flags)
        with Program(*arguments, home=self.home, command=_PROGRAM, folder=folder, **env) as process:
            out, err = process.communicate()
            return Result(process.wait(0), out.decode(), err.decode())

    def end(self) -> None:
        """End the server, if there is one."""
        run("serve", "stop", home=self.home, XDG_RUNTIME_DIR=self.runtime)
        shutil.rmtree(self.runtime)


@pytest.fixture
def warm(gguf_model: Path, tmp_path: Path) -> Iterator[Warm]:
    warm = Warm(tmp_path, gguf_model)
    yield warm
    warm.end()


@pytest.mark.parametrize("before", ["none", "killed"])
def test_keep_warm_starts_a_server(warm: Warm, before: str) -> None:
    if before == "killed":
        warm.socket.parent.mkdir()
        with SocketFile(warm.socket) as taken, taken.listening():
            left = warm.socket.rename(Path(warm.runtime) / "left")
        left.rename(warm.socket)  # as a killed server leaves it
    assert "answered by the server" in warm.ask().err


def test_questions_at_the_same_time_start_one_server(warm: Warm) -> None:
    with ThreadPoolExecutor(3) as pool:
        done = [pool.submit(warm.ask) for _ in range(3)]
    assert all("answered by the server" in each.result().err for each in done)


def test_nothing_in_the_current_folder_runs_in_a_started_server(warm: Warm, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    for name in ("json.py", "socket.py", "llama_chat.py"):
        (folder / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    assert "answered by the server" in warm.ask(folder=str(folder)).err
    assert not (tmp_path / "ran").exists()


def test_a_started_server_has_the_settings_of_the_question(warm: Warm, tmp_path: Path) -> None:
    usual = warm.home / ".config/llama-chat/config.toml"
    usual.parent.mkdir(parents=True)
    usual.write_text('kv_dtype = "int8"\n')
    other = tmp_path / "other.toml"
    other.write_text("parallel = 4")
    flags = ("--config", str(other), "--context", "64")
    assert "answered by the server" in warm.ask(*flags, LLAMA_CHAT_DTYPE="float32").err
    assert "another model or other settings" in warm.ask(*flags).err


def test_a_server_without_its_socket_file_is_not_waited_for(warm: Warm) -> None:
    warm.socket.parent.mkdir()
    with SocketFile(warm.socket) as taken, taken.listening():
        warm.socket.unlink()
        done = warm.ask()
        assert (done.status, "answered by the server" in done.err) == (0, False)
