"""Files that one program at a time appends to: locks, order of flushes, and failures in between."""

import errno
import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llama_chat.chat import locked_file
from llama_chat.chat.locked_file import LockedFile
from tests.permissions import mode_of
from tests.system_calls import failing, n_open


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file"


def refused(path: Path, error: type[OSError], code: int, **options: Any) -> None:
    """Check that a file cannot be opened, and leaves no descriptor."""
    before = n_open()
    with pytest.raises(error) as caught:
        LockedFile(path, **options)
    assert (caught.value.errno, n_open()) == (code, before)


class Clock:
    """A clock that only sleeping moves on."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.seconds = 0.0
        self.sleeps: list[float] = []
        patch.setattr(time, "monotonic", lambda: self.seconds)
        patch.setattr(time, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.seconds += seconds


def test_one_program_at_a_time_has_it_open(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    file = LockedFile(path, create=True)
    refused(path, BlockingIOError, errno.EAGAIN)
    assert clock.sleeps == []
    monkeypatch.setattr(locked_file, "_POLL_S", 0.25)
    refused(path, BlockingIOError, errno.EAGAIN, timeout_s=1)
    assert clock.sleeps == [0.25] * 4
    file.close()
    file.close()
    LockedFile(path).close()


def test_a_patient_program_gets_it_once_it_is_unlocked(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = LockedFile(path, create=True)
    monkeypatch.setattr(time, "sleep", lambda _: file.close())
    patient = LockedFile(path, timeout_s=1)
    refused(path, BlockingIOError, errno.EAGAIN)
    patient.close()


def test_a_new_file_is_private_and_takes_no_name(path: Path, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        file = LockedFile(path, create=True)
    finally:
        os.umask(before)
    assert (mode_of(path), path.read_bytes()) == (0o600, b"")
    file.close()
    refused(path, FileExistsError, errno.EEXIST, create=True)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    refused(tmp_path / "link", FileExistsError, errno.EEXIST, create=True)
    refused(tmp_path / "nowhere", FileNotFoundError, errno.ENOENT)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "link"]


def test_a_file_that_was_open_to_others_is_closed_to_them(path: Path) -> None:
    path.touch(0o666)
    path.chmod(0o666)
    LockedFile(path).close()
    assert mode_of(path) == 0o600


def test_links_pipes_and_devices_are_files_only_on_request(path: Path, tmp_path: Path) -> None:
    path.touch()
    (tmp_path / "link").symlink_to(path)
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "link", OSError, errno.ELOOP)
    refused(tmp_path / "pipe", OSError, errno.EINVAL)
    with pytest.raises(OSError, match=r"^\[Errno 22\] not a file$"):
        LockedFile(tmp_path / "pipe")
    refused(tmp_path, IsADirectoryError, errno.EISDIR, is_any=True)
    linked = LockedFile(tmp_path / "link", is_any=True)
    linked.append(b"x", durable=True)
    assert (path.read_bytes(), linked.is_at(path)) == (b"x", True)
    linked.close()
    LockedFile(tmp_path / "pipe", is_any=True).close()
    before = n_open()
    full = LockedFile(Path("/dev/full"), is_any=True)
    for code in (errno.ENOSPC, errno.EBADF):  # it cannot be truncated, and so is closed
        with pytest.raises(OSError, match=r"No space left|Bad file") as caught:
            full.append(b"x", durable=False)
        assert caught.value.errno == code
    assert n_open() == before


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK])
def test_a_file_system_without_locks_is_no_obstacle(
    code: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", failing(code))
    file = LockedFile(path, create=True)
    file.append(b"x", durable=True)
    assert path.read_bytes() == b"x"
    file.close()


def test_an_interrupted_wait_leaves_nothing_open(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: int) -> None:
        raise KeyboardInterrupt

    path.touch()
    monkeypatch.setattr(fcntl, "flock", interrupt)
    before = n_open()
    with pytest.raises(KeyboardInterrupt):
        LockedFile(path)
    assert n_open() == before


def test_a_file_that_is_replaced_while_it_is_opened_is_opened_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_bytes(b"old")
    lock = fcntl.flock
    locked: list[int] = []

    def replace_and_lock(descriptor: int, operation: int) -> None:
        if not locked:
            path.rename(path.with_name("old"))
            path.write_bytes(b"new")
        locked.append(descriptor)
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", replace_and_lock)
    before = n_open()
    file = LockedFile(path)
    assert (len(locked), n_open()) == (2, before + 1)
    file.append(b"er", durable=True)
    assert (path.read_bytes(), path.with_name("old").read_bytes()) == (b"newer", b"old")
    file.close()


def test_a_file_is_at_its_path_until_that_is_another_or_it_is_closed(path: Path) -> None:
    file = LockedFile(path, create=True)
    assert file.is_at(path) is True
    path.rename(path.with_name("moved"))
    assert (file.is_at(path), file.is_at(path.with_name("moved"))) == (False, True)
    path.touch()
    assert file.is_at(path) is False
    file.close()
    assert file.is_at(path.with_name("moved")) is False


def test_a_reader_begins_at_the_beginning_and_closes_nothing(path: Path) -> None:
    file = LockedFile(path, create=True)
    for total in (b"one", b"onetwo"):
        file.append(total[-3:], durable=False)
        with file.reader() as reader:
            assert reader.read() == total
    refused(path, BlockingIOError, errno.EAGAIN)
    file.truncate(2)
    assert path.read_bytes() == b"on"
    file.close()


def test_a_program_without_stdin_gets_the_first_descriptor(path: Path) -> None:
    stdin = os.dup(0)
    os.close(0)
    try:
        file = LockedFile(path, create=True)
        file.append(b"x", durable=True)
        assert os.path.samestat(os.fstat(0), path.stat())
        file.close()
        LockedFile(path).close()
    finally:
        os.dup2(stdin, 0)
        os.close(stdin)


def test_programs_started_meanwhile_do_not_hold_the_lock(path: Path) -> None:
    file = LockedFile(path, create=True)
    with file.reader() as reader:
        assert not os.get_inheritable(reader.fileno())
        flags = fcntl.fcntl(reader, fcntl.F_GETFL)
        assert flags & os.O_APPEND  # others without locks may append, too
    file.close()


class Calls:
    """Writes and flushes, of which any may fail; a write takes three bytes at most."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.made: list[str] = []
        self.failing: dict[str, BaseException] = {}
        write, flush, truncate = os.write, os.fsync, os.ftruncate
        patch.setattr(os, "write", self.follow("write", lambda file, data: write(file, data[:3])))
        patch.setattr(os, "fsync", self.follow("flush", flush))
        patch.setattr(os, "ftruncate", self.follow("truncate", truncate))

    def follow(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def followed(*arguments: Any) -> Any:
            self.made.append(name)
            if name in self.failing and (name != "write" or self.made.count(name) > 1):
                raise self.failing[name]
            return call(*arguments)

        return followed

    def of(self, file: LockedFile, data: bytes, *, durable: bool) -> str:
        """Append and return what was called."""
        self.made.clear()
        file.append(data, durable=durable)
        return " ".join(self.made)


def test_what_was_appended_before_is_flushed_first(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, calls = LockedFile(path, create=True), Calls(monkeypatch)
    assert calls.of(file, b"a", durable=False) == "write"
    assert calls.of(file, b"b", durable=False) == "flush write"
    assert calls.of(file, b"cdefghi", durable=True) == "flush write write write flush"
    assert calls.of(file, b"j", durable=True) == "write flush"
    assert calls.of(file, b"k", durable=False) == "write"
    assert path.read_bytes() == b"abcdefghijk"
    file.close()


@pytest.mark.parametrize("name", ["write", "flush"])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "input"), KeyboardInterrupt()])
def test_what_fails_is_appended_not_at_all(
    name: str, error: BaseException, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, calls = LockedFile(path, create=True), Calls(monkeypatch)
    file.append(b"whole", durable=True)
    calls.failing = {name: error}
    with pytest.raises(type(error)):
        calls.of(file, b"failed", durable=True)
    assert (path.read_bytes(), file.is_at(path)) == (b"whole", True)
    calls.failing = {}
    file.append(b" again", durable=False)
    calls.failing = {"flush": error}
    with pytest.raises(type(error)):  # nothing is written before it is there for certain
        calls.of(file, b"failed", durable=False)
    assert calls.made == ["flush", "truncate"]
    calls.failing = {}
    assert calls.of(file, b".", durable=False) == "flush write"
    assert path.read_bytes() == b"whole again."
    file.close()


def test_nothing_follows_half_of_what_failed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, calls = LockedFile(path, create=True), Calls(monkeypatch)
    calls.failing = {"write": OSError(errno.ENOSPC, "full"), "truncate": OSError(errno.EIO, "bad")}
    before = n_open()
    with pytest.raises(OSError, match="full"):
        file.append(b"failed", durable=True)
    assert (path.read_bytes(), file.is_at(path), n_open()) == (b"fai", False, before - 1)
    with pytest.raises(OSError, match="Bad file descriptor"):
        file.append(b"more", durable=True)
    LockedFile(path).close()  # it is unlocked
