"""Only the damaged part of a saved conversation is lost, and a copy of the file is kept."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.program import assert_clean_error, run
from llama_chat.chat import store
from llama_chat.chat.conversation import Conversation, Message
from llama_chat.chat.conversation_file import ConversationFile, repair
from llama_chat.chat.records import LOST
from llama_chat.errors import UsageError
from tests.conversations import (
    TAG,
    conversation_of,
    facts,
    names_in,
    saved,
    without_checksums,
)
from tests.permissions import mode_of


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / ".local/share"))
    return store.folder()


def branching() -> Conversation:
    """Make a conversation with versions of a reply, branches and an unanswered message."""
    conversation = conversation_of(3)
    conversation.head = conversation.question()
    version = conversation.add(Message("assistant", "another version"))
    conversation.head = conversation.all[1]
    conversation.add(Message("user", "a branch"))
    conversation.add(Message("assistant", "its reply"))
    conversation.head = version
    conversation.add(Message("user", "unanswered"))
    return conversation


def in_steps(conversation: Conversation) -> Path:
    """Save a conversation a message at a time, as the chat does, then a change of it."""
    file, growing = ConversationFile(), Conversation(conversation.system, conversation.examples)
    for message in conversation.all:
        growing.head = growing.find(message.parent.number) if message.parent else None
        growing.add(Message(message.role, message.text, message.ids))
        file.save(growing, TAG, durable=False)
    growing.all[1].text += " and more"
    growing.head = growing.all[1]
    file.save(growing, TAG)
    path = file.path
    assert path is not None
    file.close()
    return path


def flipped(line: bytes) -> bytes:
    at = line.index(b'"text": "') + 9 if b'"text"' in line else len(line) // 2
    return line[:at] + bytes([line[at] ^ 1]) + line[at + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "a bit": flipped,
    "zeros": lambda line: bytes(len(line) - 1) + b"\n",
    "its end": lambda line: line[: len(line) // 2] + b"\n",
    "another line": lambda line: b"Dear diary\n",
    "all of it": lambda line: b"\n",
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_one_damaged_line_costs_no_other(kind: str, home: Path) -> None:
    path = in_steps(branching())
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    good = store.read(path).conversation
    for number, line in enumerate(lines[:-1], 1):
        damaged = b"".join([*lines[: number - 1], DAMAGES[kind](line), *lines[number:]])
        path.write_bytes(damaged)
        loaded = store.read(path)
        assert re.match(rf"line {number}: it", loaded.problem)
        assert not loaded.cut
        # Nothing tells of the last message if its line is lost.
        n_known = len(good.all) - (b'"number": 10' in line and kind != "a bit")
        assert len(loaded.conversation.all) == n_known
        shown = [message.text for message in loaded.conversation.all]
        told = good.all[:n_known]
        differing = [i for i, message in enumerate(told) if message.text != shown[i]]
        assert len(differing) <= 1
        assert all(shown[i] == LOST or kind == "a bit" for i in differing)
        roles = [message.role for message in loaded.conversation.all]
        assert roles == [message.role for message in told]
        assert path.read_bytes() == damaged
        # Resuming keeps the file as it was beside it, and the conversation can be gone on with.
        file = ConversationFile()
        conversation = file.open(path).conversation
        (copy,) = home.glob("*.damaged-*")
        assert (copy.read_bytes(), mode_of(copy), mode_of(path)) == (damaged, 0o600, 0o600)
        copy.unlink()
        assert not store.read(path).problem
        conversation.head = None
        conversation.add(Message("user", "go on"))
        file.save(conversation, TAG)
        file.close()
        assert facts(store.read(path).conversation) == facts(conversation)


def test_the_rest_of_a_conversation_is_where_it_was(home: Path) -> None:
    """Parents stay, but those of the lost message, which are guessed."""
    path = in_steps(branching())
    lines = path.read_bytes().splitlines(keepends=True)
    good = store.read(path).conversation
    for number in (3, 4, 5, 7, 8, 9):
        path.write_bytes(b"".join([*lines[:number], b"\n", *lines[number + 1 :]]))
        for found, message in zip(store.read(path).conversation.all, good.all, strict=True):
            if found.text != LOST:
                parents = [each.parent.number if each.parent else 0 for each in (found, message)]
                assert parents[0] == parents[1]


def test_of_a_save_that_is_not_complete_nothing_is_read(home: Path) -> None:
    path = saved(conversation_of(2))
    file = ConversationFile()
    conversation = file.open(path).conversation
    before, whole = facts(conversation), path.read_bytes()
    conversation.system = "Changed."
    conversation.add(Message("user", "x" * 100))
    conversation.add(Message("assistant", "y"))
    file.save(conversation, TAG)
    file.close()
    data = path.read_bytes()
    assert data.startswith(whole)
    first, second, third = data[len(whole) :].splitlines(keepends=True)
    for left in ([first], [first, second], [second, third], [first, third], [b"\n", second, third],
                 [first, b"\n", third], [bytes(300), third], [bytes(300) + b"\n"]):  # fmt: skip
        path.write_bytes(whole + b"".join(left))
        loaded = store.read(path)
        assert (facts(loaded.conversation), loaded.cut, loaded.damage) == (before, True, [])


def test_a_file_without_checksums_is_read_and_gets_them_at_the_next_save(home: Path) -> None:
    conversation = branching()
    path = saved(conversation)
    created = json.loads(path.read_bytes().splitlines()[0])["created"]
    old = without_checksums(path).replace(created.encode(), b"in 2023")
    path.write_bytes(old)
    loaded = store.read(path)
    assert (loaded.n_sealed, loaded.problem) == (0, "")
    file = ConversationFile()
    conversation = file.open(path).conversation
    assert path.read_bytes() == old
    conversation.add(Message("assistant", "answered"))
    file.save(conversation, TAG)
    file.close()
    loaded = store.read(path)
    assert loaded.n_sealed == loaded.n_lines == path.read_bytes().count(b"\n")
    assert loaded.created == "in 2023"
    assert facts(loaded.conversation) == facts(conversation)
    assert names_in(home) == [path.name]


def test_lines_of_an_older_program_may_follow_those_with_checksums(home: Path) -> None:
    path = saved(conversation_of(1))
    with path.open("ab") as file:
        file.write(b'{"number": 3, "parent": 2, "role": "user", "text": "from before"}\n')
    loaded = store.read(path)
    assert (loaded.problem, loaded.conversation.all[2].text) == ("", "from before")


def test_replaced_lines_are_dropped_once_they_are_most_of_a_file(home: Path) -> None:
    conversation, file = conversation_of(2), ConversationFile()
    most = 0
    for number in range(150):
        conversation.all[3].text = f"version {number}"
        file.save(conversation, TAG, durable=False)
        assert file.path is not None
        most = max(most, store.read(file.path).n_lines)
        path = file.path
    assert facts(store.read(path).conversation) == facts(conversation)
    assert most < 100
    assert names_in(home) == [path.name]


def test_what_is_no_conversation_or_of_another_version_is_never_repaired(home: Path) -> None:
    path = saved(conversation_of(1))
    newer = without_checksums(path).replace(b'"version": 1', b'"version": 2')
    other = path.read_bytes().replace(b'"version": 1', b'"version": 2')  # with a wrong checksum
    diary = b"Dear diary\n" * 3
    for data, why in (
        (diary, "nothing of it can be read"), (newer, "version 2"), (other, "version 2")
    ):  # fmt: skip
        path.write_bytes(data)
        with pytest.raises(UsageError, match=why):
            repair(path)
        assert (path.read_bytes(), names_in(home)) == (data, [path.name])


def states(home: Path, *arguments: str) -> dict[str, str]:
    done = run("sessions", *arguments, home=home)
    return dict(line.split("\t")[:2] for line in done.out.splitlines())


def test_check_and_repair(tmp_path: Path, home: Path) -> None:
    assert run("sessions", "check", home=tmp_path).err == "no conversation is saved yet\n"
    for name in ("good", "old", "cut", "rotten", "old-rotten", "diary", "open"):
        saved(conversation_of(2), name)
    paths = {path.stem: path for path in home.iterdir()}
    whole = paths["good"].read_bytes()
    old = without_checksums(paths["old"])
    paths["old"].write_bytes(old)
    paths["old-rotten"].write_bytes(old.replace(b'"number": 2', b'"number": oo'))
    paths["cut"].write_bytes(whole[:-9])
    paths["rotten"].write_bytes(whole.replace(b"question 1", b"question 7"))
    paths["diary"].write_bytes(b"Dear diary\n")
    held = ConversationFile()
    held.open(paths["open"])
    with paths["open"].open("ab") as file:
        file.write(b'{"number": 5')
    before = {name: path.read_bytes() for name, path in paths.items()}

    expected = {"good": "ok", "old": "old", "cut": "cut", "rotten": "damaged", "open": "open",
                "old-rotten": "unreadable", "diary": "unreadable"}  # fmt: skip
    done = run("sessions", "check", home=tmp_path)
    assert (done.status, states(tmp_path, "check")) == (1, expected)
    assert done.err.startswith("llama-chat: error: sessions: 4 of 7 damaged: ")
    found = json.loads(run("sessions", "check", "rotten", "--json", home=tmp_path).out)
    assert found == [
        {
            "name": "rotten",
            "state": "damaged",
            "problem": "line 4: its checksum is wrong",
            "copy": "",
        }
    ]
    assert run("sessions", "check", "good", "old", "open", home=tmp_path).status == 0
    assert_clean_error(run("sessions", "check", "goo", home=tmp_path), 2, "none is saved")
    assert {name: path.read_bytes() for name, path in paths.items()} == before
    shown = run("sessions", "show", "rotten", home=tmp_path)
    assert "question 7" in shown.out
    assert "warning: conversation 'rotten': line 4: its checksum is wrong" in shown.err

    done = run("sessions", "repair", home=tmp_path)
    assert done.status == 1
    assert done.err.count("\n") == 1
    repaired = dict(line.split("\t")[:2] for line in done.out.splitlines())
    mended = dict.fromkeys(["cut", "rotten", "old-rotten"], "repaired")
    assert repaired == expected | mended | {"old": "sealed"}
    for name in mended:
        (copy,) = home.glob(f"{name}.damaged-*")
        assert copy.read_bytes() == before[name]
        assert f"\t{copy}\n" in done.out
    assert [path.read_bytes() for path in (paths["good"], paths["diary"])] == [
        before["good"], before["diary"]
    ]  # fmt: skip
    assert states(tmp_path, "check") == dict.fromkeys(expected, "ok") | {
        "open": "open", "diary": "unreadable"
    }  # fmt: skip
    texts = [message.text for message in store.read(paths["old-rotten"]).conversation.all]
    assert texts == ["question 0: word", LOST, "question 1: word", "answer 1: word"]
    held.close()
