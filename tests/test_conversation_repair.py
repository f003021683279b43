"""Damaged files of conversations in one process: what is kept, and each refusal in full."""

import errno
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llama_chat.chat import record_lines, store
from llama_chat.chat.conversation import Message
from llama_chat.chat.conversation_file import ConversationFile, repair
from llama_chat.chat.locked_file import LockedFile
from llama_chat.errors import SaveError, UsageError
from tests.conversations import (
    TAG,
    conversation_of,
    facts,
    is_open,
    names_in,
    refused,
    saved,
    without_checksums,
)
from tests.permissions import mode_of
from tests.system_calls import failing, n_open

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def path(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A conversation that was begun long ago."""
    with monkeypatch.context() as patch:
        patch.setattr(time, "strftime", lambda form: "in 2023")
        return saved(conversation_of(2), "mine")


def failing_at(path: Path, replace: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``replace``, which fails if it is to replace ``path``."""

    def fail(old: Path, new: Path) -> Any:
        if new == path:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return replace(old, new)

    return fail


def without_a_line(path: Path, number: int) -> bytes:
    """Damage a line of a file; returns it as it then is."""
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[: number - 1], b"Dear diary\n", *lines[number:]]))
    return path.read_bytes()


def copies_in(home: Path) -> list[Path]:
    return sorted(home.glob("*.damaged-*"))


def inode(path: Path) -> int:
    return path.stat().st_ino


@pytest.mark.parametrize("damage", ["cut", "line"])
def test_damage_is_mended_once_it_is_copied(
    damage: str, path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-5])
        damaged = path.read_bytes()
    else:
        damaged = without_a_line(path, 4)
    file = ConversationFile()
    with monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", failing(errno.EIO))
        patch.setattr(Path, "replace", failing_at(path, Path.replace))
        line = f"{str(path)!r}: input/output error: check the file"
        refused(SaveError, line, file.open, path)
    assert [copy.read_bytes() for copy in copies_in(home)] == [damaged]
    assert (path.read_bytes(), file.path, is_open(path)) == (damaged, None, False)
    for copy in copies_in(home):
        copy.unlink()
    loaded = file.open(path)
    (copy,) = copies_in(home)
    assert (copy.read_bytes(), mode_of(copy)) == (damaged, 0o600)
    assert re.fullmatch(r"mine\.damaged-\d{19}", copy.name)
    assert (is_open(path), mode_of(path), store.read(path).problem) == (True, 0o600, "")
    assert store.read(path).created == "in 2023"
    loaded.conversation.head = None
    loaded.conversation.add(Message("user", "more"))
    before = path.read_bytes()
    file.save(loaded.conversation, TAG)
    assert path.read_bytes().startswith(before)  # it is not rewritten once more
    file.close()
    assert names_in(home) == sorted([copy.name, path.name])


def test_what_is_whole_is_not_repaired(path: Path) -> None:
    whole, first = path.read_bytes(), inode(path)
    before = n_open()
    loaded, copy = repair(path)
    assert (loaded.problem, copy, path.read_bytes(), inode(path)) == ("", None, whole, first)
    assert (n_open(), is_open(path)) == (before, False)


@pytest.mark.parametrize("number", [0, 3])
def test_repairing_seals_every_line_and_keeps_what_was_damaged(
    number: int, path: Path, home: Path
) -> None:
    path.write_bytes(without_checksums(path))
    damaged = without_a_line(path, number) if number else path.read_bytes()
    before = n_open()
    loaded, copy = repair(path)
    assert n_open() == before
    assert loaded.problem == ("line 3: it is not JSON" if number else "")
    assert copies_in(home) == ([copy] if number else [])
    assert copy is None or copy.read_bytes() == damaged
    mended = store.read(path)
    assert (mended.problem, mended.n_sealed, mended.created) == ("", mended.n_lines, "in 2023")
    assert facts(mended.conversation) == facts(loaded.conversation)
    assert not is_open(path)


def test_a_repair_that_cannot_be_says_why(
    path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_bytes(without_checksums(path))
    old = path.read_bytes()
    held = LockedFile(path)
    in_use = "conversation 'mine': a program has it open: leave that first"
    refused(UsageError, in_use, repair, path)
    held.close()
    missing = home / "missing.jsonl"
    line = f"{str(missing)!r}: no such file or directory: check the file"
    refused(SaveError, line, repair, missing)
    path.write_bytes(b"[]\n")
    line = f"conversation 'mine': nothing of it can be read: repair or remove {str(path)!r}"
    refused(UsageError, line, repair, path)
    path.write_bytes(old)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", failing(errno.EIO))
        line = f"{str(path)!r}: input/output error: check the file"
        refused(SaveError, line, repair, path)
    monkeypatch.setattr(record_lines, "MAX_LINE_BYTES", 2**10)
    lines = old.splitlines(keepends=True)
    room = 2**10 - len(lines[1])
    lines[1] = lines[1].replace(b"question", b"question" + b"x" * room)
    path.write_bytes(b"".join(lines))
    assert store.read(path).problem == ""  # with a checksum it would be too long
    line = f"{str(path)!r}: a message is larger than 0 MiB: it stays as it is"
    refused(SaveError, line, repair, path)
    assert (path.read_bytes(), names_in(home), is_open(path)) == (
        b"".join(lines), ["mine.jsonl"], False
    )  # fmt: skip
