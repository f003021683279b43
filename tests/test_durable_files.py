"""Files appear whole, flushed before they get their names, and closed to others."""

import errno
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from llama_chat.durable_files import (
    open_private,
    publish,
    remove_leftovers,
    sync_folder,
    temporary_file,
    temporary_name,
)
from tests.permissions import mode_of
from tests.system_calls import failing, n_open


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file"


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are linked, renamed, removed and flushed, in order."""
    made: list[str] = []

    def follow(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def followed(what: Any, *arguments: Any, **options: Any) -> Any:
            is_open = isinstance(what, int)
            path = Path(f"/proc/self/fd/{what}").readlink() if is_open else Path(what)
            made.append(f"{name} {path.name}")
            return call(what, *arguments, **options)

        return followed

    for name in ("link", "replace", "unlink", "fsync"):
        monkeypatch.setattr(os, name, follow(name, getattr(os, name)))
    return made


@pytest.mark.parametrize("mask", [0, 0o777])
def test_a_file_has_its_mode_under_any_umask(mask: int, path: Path) -> None:
    flags = os.O_RDWR | os.O_CREAT
    for mode, options in ((0o600, {}), (0o640, {"mode": 0o640}), (0o600, {})):
        with umask(mask):
            descriptor = open_private(path, flags, **options)
        assert (mode_of(path), os.get_inheritable(descriptor)) == (mode, False)
        os.write(descriptor, b"x")
        os.close(descriptor)


def test_a_file_has_its_mode_from_its_first_moment(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fchmod", failing(errno.EPERM))
    with umask(0):
        os.close(open_private(path, os.O_WRONLY | os.O_CREAT))
    assert mode_of(path) == 0o600


def test_what_is_no_file_or_of_someone_else_keeps_its_mode(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(path)
    path.chmod(0o666)
    os.close(open_private(path, os.O_RDWR))
    assert mode_of(path) == 0o666
    path.unlink()
    path.touch()
    path.chmod(0o644)
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    os.close(open_private(path, os.O_RDONLY))
    assert mode_of(path) == 0o644


def test_a_file_that_cannot_be_closed_to_others_is_not_opened(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.touch()
    monkeypatch.setattr(os, "fchmod", failing(errno.EIO))
    before = n_open()
    with pytest.raises(OSError, match="Input/output"):
        open_private(path, os.O_RDWR)
    with pytest.raises(FileNotFoundError):
        open_private(path.with_name("missing"), os.O_RDWR)
    assert n_open() == before


def test_names_are_made_durable_where_a_folder_can_be_flushed(
    path: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = n_open()
    sync_folder(path.parent)
    assert calls == [f"fsync {path.parent.name}"]
    path.touch()
    sync_folder(path)  # no folder
    sync_folder(path.with_name("missing"))
    assert calls == [f"fsync {path.parent.name}"]
    monkeypatch.setattr(os, "fsync", failing(errno.EINVAL))
    sync_folder(path.parent)
    assert n_open() == before


def test_a_folder_is_flushed_by_a_descriptor_that_others_do_not_inherit(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inherited: list[bool] = []
    monkeypatch.setattr(os, "fsync", lambda fd: inherited.append(os.get_inheritable(fd)))
    sync_folder(path.parent)
    assert inherited == [False]


def test_a_temporary_file_is_durable_and_goes_at_the_end(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[bytes] = []
    monkeypatch.setattr(
        os, "fsync", lambda fd: flushed.append(Path(f"/proc/self/fd/{fd}").read_bytes())
    )
    with umask(0), temporary_file(path, b"data", 0o640) as temporary:
        assert (temporary.read_bytes(), mode_of(temporary)) == (b"data", 0o640)
        assert (temporary.parent, flushed) == (path.parent, [b"data"])
    with temporary_file(path, b"kept", 0o600) as temporary:
        temporary.replace(path)
    with pytest.raises(KeyboardInterrupt), temporary_file(path, b"other", 0o600):
        raise KeyboardInterrupt
    assert (names_in(path.parent), path.read_bytes()) == (["file"], b"kept")


def test_a_temporary_file_that_cannot_be_written_leaves_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    before = n_open()
    with pytest.raises(OSError, match="Input/output"), temporary_file(path, b"data", 0o600):
        pass
    assert (names_in(path.parent), n_open()) == ([], before)


def test_a_temporary_name_is_new_hidden_and_of_one_length(path: Path) -> None:
    one, two = temporary_name(path), temporary_name(path)
    assert one != two
    assert one.parent == two.parent == path.parent
    assert all(re.fullmatch(r"\.[0-9a-f]{16}", each.name) for each in (one, two))


@pytest.fixture
def temporary(path: Path) -> Path:
    """A complete file."""
    whole = temporary_name(path)
    whole.write_bytes(b"whole")
    return whole


def test_a_file_gets_its_name_then_the_folder_is_flushed(
    path: Path, temporary: Path, calls: list[str]
) -> None:
    publish(temporary, path)
    hidden = temporary.name
    assert calls == [f"link {hidden}", f"unlink {hidden}", f"fsync {path.parent.name}"]
    assert (names_in(path.parent), path.read_bytes()) == (["file"], b"whole")


def test_a_name_that_is_taken_stays_so(path: Path, temporary: Path) -> None:
    for take in (lambda: path.write_bytes(b"other"), lambda: path.symlink_to("nowhere")):
        take()
        with pytest.raises(FileExistsError):
            publish(temporary, path)
        assert temporary.read_bytes() == b"whole"
        assert path.is_symlink() or path.read_bytes() == b"other"
        path.unlink()


def test_a_link_is_published_as_a_link(path: Path, temporary: Path) -> None:
    link = temporary_name(path)
    link.symlink_to(temporary)
    publish(link, path)
    assert (path.is_symlink(), path.read_bytes()) == (True, b"whole")
    assert temporary.exists()


def test_a_file_system_without_links_renames(
    path: Path, temporary: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", failing(errno.EPERM))
    publish(temporary, path)
    assert calls[0] == f"replace {temporary.name}"
    assert calls[-1] == f"fsync {path.parent.name}"
    assert (names_in(path.parent), path.read_bytes()) == (["file"], b"whole")
    with pytest.raises(PermissionError, match="not permitted"):
        publish(temporary, path.with_name("other"))  # it is gone
    for take in (lambda: path.write_bytes(b"other"), lambda: path.symlink_to("nowhere")):
        path.unlink()
        take()
        temporary.write_bytes(b"whole")
        with pytest.raises(PermissionError, match="not permitted"):
            publish(temporary, path)
        assert names_in(path.parent) == sorted([temporary.name, "file"])


def test_a_second_name_that_cannot_be_removed_is_no_failure(
    path: Path, temporary: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "unlink", failing(errno.EIO))
    publish(temporary, path)
    assert calls == [f"link {temporary.name}", f"fsync {path.parent.name}"]
    assert path.read_bytes() == b"whole"


DAY_S = 24 * 60 * 60


def test_temporary_files_older_than_a_day_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_800_000_000
    monkeypatch.setattr(time, "time", lambda: float(now))
    ages = {
        ".0123456789abcdef": DAY_S + 1,
        ".0123456789abcde1": DAY_S,
        ".0123456789abcdeg": DAY_S + 1,
        ".0123456789ABCDEF": DAY_S + 1,
        "0123456789abcdef0": DAY_S + 1,
        ".0123456789abcdef.txt": DAY_S + 1,
        ".fedcba9876543210": 0,
        "mine.jsonl": 9 * DAY_S,
    }
    for name, age in ages.items():
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (now, now - age))
    dangling = tmp_path / ".00000000000000ff"
    dangling.symlink_to("nowhere")
    os.utime(dangling, (now, now - DAY_S - 1), follow_symlinks=False)
    remove_leftovers(tmp_path)
    assert names_in(tmp_path) == sorted(set(ages) - {".0123456789abcdef"})
    remove_leftovers(tmp_path / "missing")
