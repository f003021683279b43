"""Files of the program are closed to others, under any umask, and where they were open before."""

import errno
import os
import pwd
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from llama_chat import files
from llama_chat.chat import store
from llama_chat.chat.conversation import Message
from llama_chat.chat.conversation_file import ConversationFile
from llama_chat.documents import write_results
from llama_chat.errors import UsageError
from llama_chat.server.sockets import SocketFile
from tests.conversations import TAG, conversation_of
from tests.permissions import mode_of

KINDS = {"CONFIG": "c", "DATA": "d", "CACHE": "e", "STATE": "s", "RUNTIME": "r"}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for kind, folder in KINDS.items():
        variable = "XDG_RUNTIME_DIR" if kind == "RUNTIME" else f"XDG_{kind}_HOME"
        monkeypatch.setenv(variable, str(tmp_path / folder))
    return tmp_path


def keep_all() -> None:
    """Write each kind of file."""
    file, conversation = ConversationFile(), conversation_of(1)
    file.save(conversation, TAG)
    conversation.add(Message("user", "more"))
    file.save(conversation, TAG)
    file.rename("mine")
    file.close()
    with store.path_of("mine").open("ab") as damaged:
        damaged.write(b"{")
    file.open(store.path_of("mine"))
    file.close()
    files.create_private_file(files.state_home() / "history")
    files.write_new(files.config_home() / "config.toml", b"")
    write_results("trials.json", {"a": 1})


def modes(home: Path) -> dict[str, int]:
    paths = [path for path in home.rglob("*") if "llama-chat" in path.parts]
    return {str(path.relative_to(home)): mode_of(path) for path in paths}


@pytest.mark.parametrize("umask", [0, 0o022, 0o077, 0o277, 0o777])
def test_under_any_umask_files_are_0600_and_folders_0700(umask: int, home: Path) -> None:
    before = os.umask(umask)
    try:
        keep_all()
    finally:
        os.umask(before)
    found = modes(home)
    assert len(found) == 10
    for name, mode in found.items():
        assert mode == (0o700 if (home / name).is_dir() else 0o600), name


def test_what_was_open_before_is_closed(home: Path) -> None:
    keep_all()
    for name in modes(home):
        (home / name).chmod(0o777 if (home / name).is_dir() else 0o666)
    (home / "c/llama-chat/config.toml").unlink()
    copies = [name for name in modes(home) if "damaged" in name]
    os.truncate(home / "s/llama-chat/history", 0)
    store.path_of("mine").rename(store.path_of("old"))
    keep_all()
    ConversationFile().open(store.path_of("old"))
    for name, mode in modes(home).items():
        if name not in copies:  # which are opened no more
            assert mode == (0o700 if (home / name).is_dir() else 0o600), name


def link(path: Path) -> Path:
    elsewhere = path.parents[2] / "elsewhere"
    elsewhere.mkdir()
    path.parent.mkdir(parents=True)
    path.symlink_to(elsewhere)
    return elsewhere


def other(path: Path) -> Path:
    return path.parents[1]


@pytest.mark.parametrize("shared", [link, other])
def test_what_is_shared_outside_of_our_folders_stays_so(
    shared: Callable[[Path], Path], home: Path
) -> None:
    folder = shared(files.data_home() / "models")
    folder.mkdir(exist_ok=True)
    folder.chmod(0o755)
    files.private_folder(files.data_home() / "models" / "a")
    assert mode_of(folder) == 0o755


def test_what_a_kill_left_is_removed_after_a_day(home: Path) -> None:
    folder = files.private_folder(store.folder())
    names = [".0123456789abcdef", ".fedcba9876543210", ".mine", "x.damaged-1"]
    for name in names:
        (folder / name).write_bytes(b"half")
        os.utime(folder / name, (10**9, 10**9))
    (folder / names[1]).touch()  # another program writes it now
    ConversationFile().save(conversation_of(1), TAG)
    assert {path.name for path in folder.iterdir() if path.suffix != ".jsonl"} == {*names[1:]}


def test_a_user_without_a_name_needs_no_other_home(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    for variable in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    ConversationFile().save(conversation_of(1), TAG)
    assert len(store.names()) == 1


def test_a_file_system_without_modes_is_no_obstacle(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **options: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "fchmod", refuse)
    monkeypatch.setattr(Path, "chmod", refuse)
    keep_all()
    assert store.names() == ["mine"]


@pytest.mark.parametrize("put", [Path.mkdir, Path.touch, os.mkfifo])
def test_a_server_replaces_no_file_but_its_socket(
    put: Callable[[Path], object], home: Path
) -> None:
    put(home / "notes")
    with (
        pytest.raises(UsageError, match="a file that is no socket is there: choose another"),
        SocketFile(home / "notes") as taken,
        taken.listening(),
    ):
        pass
    assert (home / "notes").exists()


def test_a_socket_that_cannot_be_removed_is_one_line(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, **_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(home / "sock"))
    monkeypatch.setattr(Path, "unlink", refuse)
    with (
        SocketFile(home / "sock") as taken,
        pytest.raises(UsageError, match="input/output error: choose"),
        taken.listening(),
    ):
        pass
