"""Folders of conversations with links, pipes or damaged files in them, or without permissions."""

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llama_chat.chat import store
from llama_chat.chat.conversation import Message
from llama_chat.chat.conversation_file import ConversationFile
from llama_chat.errors import SaveError, UsageError
from tests.conftest import ROOT
from tests.conversations import (
    PROGRAM,
    TAG,
    conversation_of,
    facts,
    followed,
    is_open,
    names_in,
    one_line,
    saved,
)
from tests.permissions import without_powers

pytestmark = pytest.mark.usefixtures("home")


def test_a_folder_deleted_while_it_is_open_is_made_again(home: Path) -> None:
    file, conversation, _ = followed(2)
    file.rename("mine")
    shutil.rmtree(home.parent)
    conversation.add(Message("user", "more"))
    file.save(conversation, TAG)
    assert file.path == home / "mine.jsonl"
    assert facts(store.read(file.path).conversation) == facts(conversation)


def put_file(path: Path) -> None:
    path.write_bytes(b"other")


def put_link(path: Path) -> None:
    path.symlink_to(path.parent / "elsewhere")


REPLACEMENTS = [put_file, put_link, Path.mkdir, os.mkfifo]


@pytest.mark.parametrize("put", REPLACEMENTS)
def test_a_file_that_replaced_an_open_one_is_left_alone(
    put: Callable[[Path], object], home: Path
) -> None:
    file, conversation, path = followed()
    path.unlink()
    put(path)
    before = names_in(home)
    with pytest.raises(SaveError, match="no longer there") as caught:
        file.rename("mine")
    one_line(caught, 6)
    conversation.add(Message("user", "more"))
    file.save(conversation, TAG)
    assert file.path not in (None, path)
    assert file.path is not None
    assert names_in(home) == sorted([*before, file.path.name])
    assert facts(store.read(file.path).conversation) == facts(conversation)
    assert not path.is_file() or path.read_bytes() == b"other"


@pytest.mark.parametrize("put", [Path.mkdir, os.mkfifo])
def test_folders_and_pipes_are_refused_at_once(put: Callable[[Path], object], home: Path) -> None:
    home.mkdir(parents=True)
    put(home / "odd.jsonl")
    assert (store.entries(), store.names()) == ([], [])
    file = ConversationFile()
    for use in (store.read, file.open):
        with pytest.raises(UsageError, match=r"not a file|is a directory") as caught:
            use(home / "odd.jsonl")
        one_line(caught, 2)
    with pytest.raises(UsageError, match="none is saved by that name"):
        store.find("odd")
    assert not is_open(home / "odd.jsonl")


def test_a_link_is_read_but_never_written_through(home: Path, tmp_path: Path) -> None:
    outside = saved(conversation_of(1)).rename(tmp_path / "outside")
    whole = outside.read_bytes()
    (home / "link.jsonl").symlink_to(outside)
    (home / "nowhere.jsonl").symlink_to(tmp_path / "nowhere")
    assert [entry.name for entry in store.entries()] == ["link"]
    file, _, before = followed()
    with pytest.raises(SaveError, match="symbolic links") as caught:
        file.open(store.find("link"))
    one_line(caught, 6)
    # The file that was open before still is.
    assert (file.path, is_open(before)) == (before, True)
    store.remove(home / "link.jsonl")
    assert (outside.read_bytes(), (tmp_path / "nowhere").exists()) == (whole, False)


def test_a_damaged_file_among_others_is_listed_with_the_reason(home: Path) -> None:
    for age, name in enumerate(["good", "better"]):
        os.utime(saved(conversation_of(1), name), (age, age))
    bad = {"bad": b"Dear diary\n", "x" * 101: b"", "\x1b[31m": b"", ".hidden": b"", "empty": b""}
    for age, (name, data) in enumerate(bad.items(), 5):
        (home / f"{name}.jsonl").write_bytes(data)
        os.utime(home / f"{name}.jsonl", (age, age))
    (home / "readme.txt").touch()
    assert [(entry.name, entry.problem) for entry in store.entries()] == [
        ("empty", "it is empty"),
        ("\x1b[31m", "not a possible name"),
        ("x" * 101, "not a possible name"),
        ("bad", "line 1: it is not JSON"),
        ("better", ""),
        ("good", ""),
    ]
    assert store.names() == ["empty", "bad", "better", "good"]


FORBIDDEN = """
from llama_chat.errors import LlamaChatError
home = store.folder()
conversation = conversation_of(1)
file.save(conversation, TAG)
file.rename("mine")
uses = {
    "save": lambda: ConversationFile().save(conversation, TAG),
    "rename": lambda: file.rename("yours"),
    "remove": lambda: store.remove(home / "other.jsonl"),
    "open": lambda: file.open(home / "readable.jsonl"),
    "read": lambda: store.read(home / "secret.jsonl"),
    "latest": store.latest,
    "entries": store.entries,
    "find": lambda: store.find("mine"),
}
home.chmod(int(sys.argv[1], 8))
for name, use in uses.items():
    try:
        use()
        print(name, "done")
    except LlamaChatError as error:
        print(name, error.status, error.why)
home.chmod(0o700)
print(file.name, [(entry.name, entry.problem) for entry in store.entries()])
"""


@pytest.mark.parametrize("mode", ["500", "000"])
def test_missing_permissions_are_reported_and_harm_nothing(mode: str, home: Path) -> None:
    for name in ("other", "readable", "secret"):
        saved(conversation_of(1), name)
    (home / "readable.jsonl").chmod(0o400)
    (home / "secret.jsonl").chmod(0)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM + FORBIDDEN, mode],
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=without_powers,
        check=True,
    )
    changing = dict.fromkeys(["save", "rename", "remove", "open"], "6 permission denied")
    looking = dict.fromkeys(["latest", "entries", "find"], "2 permission denied")
    if mode == "500":
        looking = dict.fromkeys(looking, "done")
    else:
        changing |= {"rename": "6 it is no longer there", "open": "2 permission denied"}
    told = changing | {"read": "2 permission denied"} | looking
    *lines, last = done.stdout.splitlines()
    assert dict(line.split(maxsplit=1) for line in lines) == told
    left = sorted([("mine", ""), ("other", ""), ("readable", ""), ("secret", "permission denied")])
    name, listed = last.split(maxsplit=1)
    assert (name, sorted(ast.literal_eval(listed))) == ("mine", left)
