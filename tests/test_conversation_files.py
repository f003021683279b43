"""Files of conversations in one process: when they are rewritten, and each refusal in full."""

import errno
import itertools
import json
import os
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from llama_chat.chat import conversation_file, record_lines, store
from llama_chat.chat.conversation import Conversation, Message
from llama_chat.chat.conversation_file import ConversationFile
from llama_chat.chat.locked_file import LockedFile
from llama_chat.errors import SaveError, UsageError
from tests.conversations import (
    TAG,
    conversation_of,
    facts,
    followed,
    is_open,
    names_in,
    refused,
    saved,
    without_checksums,
)
from tests.permissions import mode_of
from tests.system_calls import failing

pytestmark = pytest.mark.usefixtures("home")


def inode(path: Path) -> int:
    return path.stat().st_ino


def test_a_name_is_the_time_and_the_first_words(home: Path) -> None:
    conversation = Conversation()
    conversation.add(Message("user", "One: TWO, three-4 five; six seven"))
    began = datetime.now().replace(microsecond=0)
    name = saved(conversation).stem
    stamp, words = name[:17], name[17:]
    assert words == "-one-two-three-4-five"
    assert began <= datetime.strptime(stamp, "%Y-%m-%d-%H%M%S") <= datetime.now()
    assert len(saved(conversation_of(1, "x" * 100)).stem) == 80


def test_without_a_message_there_is_no_file(home: Path) -> None:
    file = ConversationFile()
    file.save(Conversation("Be brief."), TAG)
    assert (file.path, file.name, home.exists()) == (None, "", False)


def test_conversations_of_one_name_are_numbered(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "strftime", lambda form: "now")
    assert [saved(conversation_of(1)).name for _ in range(3)] == [
        f"now-question-0-word{suffix}.jsonl" for suffix in ("", "-2", "-3")
    ]


def test_a_file_that_is_gone_is_made_again_under_its_name_if_that_is_free(home: Path) -> None:
    file, conversation, _ = followed()
    file.rename("mine")
    (home / "mine.jsonl").unlink()
    file.save(conversation, TAG)
    assert (file.name, names_in(home)) == ("mine", ["mine.jsonl"])
    first = json.loads((home / "mine.jsonl").read_bytes().splitlines()[0])
    assert list(first) == ["format", "version", "created", "crc32"]
    (home / "mine.jsonl").unlink()
    (home / "mine.jsonl").write_bytes(b"other")
    file.save(conversation, TAG)
    assert file.name.endswith("-question-0-word")
    assert (home / "mine.jsonl").read_bytes() == b"other"
    assert not is_open(home / "mine.jsonl")
    file.close()


def test_what_a_new_file_is_made_of_is_flushed_locked_and_private(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    flush, link = os.fsync, os.link

    def flushed(descriptor: int) -> None:
        made.append("flush")
        flush(descriptor)

    def linked(old: Path, new: Path, **options: Any) -> None:
        made.append("link")
        assert (old.parent, mode_of(old), is_open(old)) == (home, 0o600, True)
        link(old, new, **options)

    home.mkdir(parents=True)
    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "link", linked)
    file, _, path = followed()
    assert made == ["flush", "link", "flush"]
    assert (is_open(path), names_in(home)) == (True, [path.name])
    file.close()


def test_a_save_waits_for_the_disk_unless_it_is_not_to(monkeypatch: pytest.MonkeyPatch) -> None:
    file, conversation, _ = followed()
    flushes: list[int] = []
    monkeypatch.setattr(os, "fsync", flushes.append)
    for options, n_flushes in (({"durable": False}, 0), ({"durable": False}, 1), ({}, 3)):
        conversation.head = None
        conversation.add(Message("user", "more"))
        file.save(conversation, TAG, **options)
        assert len(flushes) == n_flushes
    file.close()


def test_another_first_message_is_another_conversation(home: Path) -> None:
    file, _, path = followed()
    before = path.read_bytes()
    other = conversation_of(2, "other")
    file.save(other, TAG)
    assert (path.read_bytes(), is_open(path)) == (before, False)
    assert file.path is not None
    assert facts(store.read(file.path).conversation) == facts(other)
    file.close()


def test_a_file_is_written_anew_once_replaced_lines_are_most_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(conversation_file, "_MOST_REPLACED", 4)
    with monkeypatch.context() as patch:
        patch.setattr(time, "strftime", lambda form: "in 2023")
        file, conversation, path = followed()
    # Its 4 lines, of 2 messages, may become 2 * 2 + 4 and the one that is being written.
    n_lines, inodes = [], [inode(path)]
    for number in range(12):
        conversation.all[1].text = f"version {number}"
        file.save(conversation, TAG)
        n_lines.append(store.read(path).n_lines)
        inodes.append(inode(path))
    assert n_lines == [5, 6, 7, 8, 9, 4] * 2
    is_new = [one != other for one, other in itertools.pairwise(inodes)]
    assert is_new == [n == 4 for n in n_lines]
    loaded = store.read(path)
    assert facts(loaded.conversation) == facts(conversation)
    assert (loaded.created, loaded.n_sealed, is_open(path)) == ("in 2023", 4, True)
    assert b"part" not in path.read_bytes()
    file.close()


def test_the_lines_of_a_save_are_marked_as_such() -> None:
    file, conversation, path = followed()
    before = path.read_bytes()
    assert b"part" not in before
    conversation.add(Message("user", "more"))
    conversation.add(Message("assistant", "of it"))
    file.save(conversation, TAG)
    records = [json.loads(line) for line in path.read_bytes()[len(before) :].splitlines()]
    assert [record["part"] for record in records] == [[1, 2], [2, 2]]
    file.close()


def test_a_file_that_cannot_be_written_anew_is_appended_to(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(conversation_of(1))
    path.write_bytes(without_checksums(path))
    before = path.read_bytes()
    file = ConversationFile()
    conversation = file.open(path).conversation
    conversation.add(Message("user", "more"))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", failing(errno.ENOSPC))
        file.save(conversation, TAG)
    data = path.read_bytes()
    assert data.startswith(before)
    assert (data.count(b"\n"), data.count(b"crc32")) == (before.count(b"\n") + 1, 1)
    assert names_in(home) == [path.name]
    conversation.add(Message("assistant", "and more"))
    file.save(conversation, TAG)  # it is not tried again
    assert path.read_bytes().startswith(data)
    assert facts(store.read(path).conversation) == facts(conversation)
    file.close()


def test_a_file_of_a_line_that_is_too_long_with_a_checksum_is_appended_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = saved(conversation_of(1, "x" * 1000))
    before = without_checksums(path)
    path.write_bytes(before)
    longest = max(map(len, before.splitlines(keepends=True)))
    monkeypatch.setattr(record_lines, "MAX_LINE_BYTES", longest)
    file = ConversationFile()
    conversation = file.open(path).conversation
    conversation.add(Message("user", "more"))
    file.save(conversation, TAG)
    assert path.read_bytes().startswith(before)
    assert facts(store.read(path).conversation) == facts(conversation)
    file.close()


def test_a_save_that_fails_says_where_and_what_to_do(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversation = conversation_of(1)
    again = "the next turn tries again"
    home.parent.mkdir()
    home.touch()
    file = ConversationFile()
    where = f"{str(home)!r}: file exists: choose another place"
    refused(SaveError, where, file.save, conversation, TAG)
    home.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", failing(errno.EDQUOT))
        line = f"{str(home)!r}: disk quota exceeded: free space there; {again}"
        refused(SaveError, line, file.save, conversation, TAG)
    assert names_in(home) == []
    file.save(conversation, TAG)
    path = file.path
    conversation.add(Message("user", "more"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", failing(errno.EIO))
        line = f"{str(path)!r}: input/output error: allow writing there; {again}"
        refused(SaveError, line, file.save, conversation, TAG)
    monkeypatch.setattr(record_lines, "MAX_LINE_BYTES", 2**20)
    conversation.add(Message("assistant", "x" * 2**20))
    line = "conversation: a message is larger than 1 MiB: begin a new one"
    refused(SaveError, line, file.save, conversation, TAG)
    file.close()


def test_a_rename_that_is_refused_says_why(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = ConversationFile()
    nothing = "'mine': there is no message yet: type a message first"
    refused(SaveError, nothing, file.rename, "mine")
    saved(conversation_of(1), "other")
    file, _, path = followed()
    taken = "name 'other': there is a conversation of that name: choose another"
    refused(UsageError, taken, file.rename, "other")
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", failing(errno.EIO))
        patch.setattr(os.path, "lexists", lambda _: True)
        broken = f"{str(home / 'mine.jsonl')!r}: input/output error: choose another name"
        refused(SaveError, broken, file.rename, "mine")
    assert (file.path, names_in(home)) == (path, sorted([path.name, "other.jsonl"]))
    file.rename(path.stem)
    path.unlink()
    gone = f"{str(path)!r}: it is no longer there: the next turn saves it again"
    refused(SaveError, gone, file.rename, "mine")
    file.rename(path.stem)  # it has that name
    file.close()


def test_a_conversation_that_another_program_has_is_read(home: Path) -> None:
    path = saved(conversation_of(2), "held")
    file, _, before = followed()
    held = LockedFile(path)
    held.append(b'{"number": 5', durable=False)
    loaded = file.open(path)
    assert (loaded.cut, loaded.problem, len(loaded.conversation.all)) == (False, "", 4)
    assert (file.path, file.name, is_open(before)) == (None, "", False)
    assert (is_open(path), list(home.glob("*.damaged-*"))) == (True, [])
    held.close()


def test_what_cannot_be_opened_leaves_what_was_open(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, conversation, path = followed()
    link = home / "link.jsonl"
    link.symlink_to(saved(conversation_of(1, "other"), "other"))
    line = f"{str(link)!r}: too many levels of symbolic links: check the file"
    refused(SaveError, line, file.open, link)
    missing = home / "missing.jsonl"
    why = "no such file or directory: repair or remove"
    refused(UsageError, f"conversation 'missing': {why} {str(missing)!r}", file.open, missing)
    diary = home / "diary.jsonl"
    diary.write_bytes(b"Dear diary\n")
    why = "line 1: it is not JSON: repair or remove"
    refused(UsageError, f"conversation 'diary': {why} {str(diary)!r}", file.open, diary)
    assert (is_open(diary), is_open(path), file.path) == (False, True, path)
    # Neither does the file that is open itself.
    whole = path.read_bytes()
    path.write_bytes(b"Dear diary\n")
    why = f"line 1: it is not JSON: repair or remove {str(path)!r}"
    refused(UsageError, f"conversation {path.stem[:40]!r}: {why}", file.open, path)
    path.write_bytes(whole)
    assert is_open(path)
    conversation.add(Message("user", "more"))
    file.save(conversation, TAG)
    assert path.read_bytes().startswith(whole)
    file.close()


def test_a_conversation_without_messages_is_gone_on_with(home: Path) -> None:
    path = saved(conversation_of(1), "begun")
    header = path.read_bytes().splitlines(keepends=True)[0]
    path.write_bytes(header)
    file = ConversationFile()
    conversation = file.open(path).conversation
    assert conversation.all == []
    conversation.add(Message("user", "first"))
    file.save(conversation, TAG)
    assert (path.read_bytes().startswith(header), names_in(home)) == (True, ["begun.jsonl"])
    file.close()


def test_what_is_opened_again_is_gone_on_with(home: Path) -> None:
    path, other = saved(conversation_of(1), "mine"), saved(conversation_of(2), "other")
    file = ConversationFile()
    file.open(other)
    first = file.open(path)
    assert (file.name, is_open(other), first.problem) == ("mine", False, "")
    whole = path.read_bytes()
    first.conversation.add(Message("user", "more"))
    file.save(first.conversation, TAG)
    assert path.read_bytes().startswith(whole)
    again = file.open(path)
    assert file.path == path
    assert len(again.conversation.all) == 3
    file.save(again.conversation, TAG)
    assert (path.read_bytes().count(b"\n"), inode(path)) == (whole.count(b"\n") + 1, inode(path))
    file.close()
