"""The folder of conversations in one process: lists, searches, names, and each refusal in full."""

import os
from pathlib import Path

import pytest

from llama_chat.chat import store
from llama_chat.chat.conversation import Conversation, Message
from llama_chat.chat.conversation_file import ConversationFile
from llama_chat.chat.locked_file import LockedFile
from llama_chat.errors import SaveError, UsageError
from tests.conversations import TAG, conversation_of, refused, saved

pytestmark = pytest.mark.usefixtures("home")


def saved_at(name: str, seconds: float, *texts: str) -> Path:
    """Save a conversation that was last changed at a time."""
    conversation = Conversation()
    for text in texts or ("hello",):
        conversation.add(Message("assistant" if len(conversation.all) % 2 else "user", text))
    path = saved(conversation, name)
    os.utime(path, (seconds, seconds))
    return path


NAMES = "use letters, digits, spaces, - and _, up to 100 bytes of UTF-8"


def test_a_name_is_the_start_of_that_of_a_file(home: Path) -> None:
    for name in ("a", "é" * 50, "x" * 100, "a.b-c d", "x."):
        assert store.path_of(name) == home / f"{name}.jsonl"
    for name in ("", "-a", ".a", "a/b", " a", "a\n", "x" * 101, "é" * 51):
        shown = repr(name[:40])
        refused(UsageError, f"name {shown}: not a possible name: {NAMES}", store.path_of, name)


def test_all_are_listed_the_latest_first(home: Path) -> None:
    assert (store.dated_names(), store.names(), store.entries()) == ([], [], [])
    saved_at("old", 1000)
    saved_at("new", 3000.5)
    saved_at("between", 2000)
    (home / ".hidden.jsonl").write_bytes((home / "old.jsonl").read_bytes())
    (home / "note.json").touch()
    (home / "folder.jsonl").mkdir()
    (home / "a link to nothing.jsonl").symlink_to("nowhere")
    assert store.dated_names() == [("new", 3000.5), ("between", 2000.0), ("old", 1000.0)]
    listed = [entry.name for entry in store.entries()]
    assert store.names() == listed == ["new", "between", "old"]
    assert store.latest() == home / "new.jsonl"


def test_a_list_tells_of_each_what_it_is_or_why_it_cannot_be_read(home: Path) -> None:
    saved_at("good", 1000, "first line\nsecond", "reply", "more")
    saved_at("cut", 2000).write_bytes(b"{")
    os.utime(home / "cut.jsonl", (2000, 2000))
    empty = Conversation()
    empty.add(Message("user", "x"))
    lines = saved(empty, "empty", TAG).read_bytes().splitlines(keepends=True)
    (home / "empty.jsonl").write_bytes(lines[0])
    os.utime(home / "empty.jsonl", (3000, 3000))
    found = [
        store.Entry("empty", home / "empty.jsonl", 3000.0, "", 0, "", ""),
        store.Entry(
            "cut", home / "cut.jsonl", 2000.0, "", 0, "", "it is cut off in its first line"
        ),
        store.Entry("good", home / "good.jsonl", 1000.0, "first line", 3, TAG.name, ""),
    ]
    assert store.entries() == found
    (one, loaded), *others = store.read_all([home / "good.jsonl", home / "missing.jsonl"])
    assert (one, others) == (found[2], [])
    assert loaded is not None
    assert [message.text for message in loaded.conversation.all][1:] == ["reply", "more"]
    assert [entry for entry, loaded in store.read_all([home / "cut.jsonl"]) if not loaded] == [
        found[1]
    ]
    assert list(store.read_all([])) == []


def test_the_one_conversation_that_a_name_or_its_beginning_fits_is_found(home: Path) -> None:
    for seconds, name in enumerate(("alone", "alone too", "b7", "b5", "b6", "b2", "b3", "b4")):
        saved_at(name, 1000 + seconds)
    assert store.find("alone", whole=True) == store.find("alone") == home / "alone.jsonl"
    assert store.find("alone t") == home / "alone too.jsonl"
    line = "conversation 'b': more than one begins so: b4, b3, b2, b6, b5, …"
    refused(UsageError, line, store.find, "b")
    (home / "b7.jsonl").unlink()
    refused(UsageError, line.removesuffix(", …"), store.find, "b")
    advice = "none is saved by that name: llama-chat sessions lists them"
    for name in ("x" * 41, "alone to"):
        line = f"conversation {name[:40]!r}: {advice}"
        refused(UsageError, line, lambda name: store.find(name, whole=True), name)


def test_a_new_conversation_has_no_name_of_its_own(home: Path) -> None:
    for text, name in (("Two words", ""), ("?", ""), ("x", "2026-12-01"), ("x", "two-words")):
        conversation = Conversation()
        conversation.add(Message("user", text))
        path = saved(conversation, name)
        (entry,) = (each for each in store.entries() if each.path == path)
        assert entry.has_own_name == bool(name)


def test_without_any_there_is_no_latest() -> None:
    line = "--continue: no conversation is saved yet: begin one: llama-chat"
    refused(UsageError, line, store.latest)


def test_words_are_found_in_any_case_and_over_line_ends(home: Path) -> None:
    saved_at("one", 1000, "nothing", "The STRASSE\n  of  Rome", "straße of rome")
    saved_at("two", 2000, "straße Of rome?")
    saved_at("three", 3000, "Straße", "of rome")
    saved_at("bad", 4000).write_bytes(b"{")
    found = [(entry.name, text) for entry, text in store.search(" Straße  of\trome")]
    assert found == [("two", "straße Of rome?"), ("one", "The STRASSE\n  of  Rome")]


def test_a_conversation_that_is_open_is_not_removed(home: Path) -> None:
    for name in ("mine", "x" * 50):
        path = saved_at(name, 1000)
        held = LockedFile(path)
        line = f"conversation {name[:40]!r}: a program has it open: leave that first"
        for use in (store.refuse_if_open, store.remove):
            refused(UsageError, line, use, path)
        held.close()
        store.refuse_if_open(path)
        store.remove(path)
        assert not path.exists()
        line = f"{str(path)!r}: no such file or directory: check the folder"
        refused(SaveError, line, store.remove, path)


def test_a_conversation_that_cannot_be_read_says_why(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved_at("x" * 50, 1000)
    shown = repr("x" * 40)
    monkeypatch.setattr(store, "MAX_BYTES", 2**20)
    os.truncate(path, 2**20)
    assert store.read(path).cut
    os.truncate(path, 2**20 + 1)
    advice = "repair or remove"
    line = f"conversation {shown}: larger than 1 MiB: {advice} {str(path)!r}"
    refused(UsageError, line, store.read, path)
    path.unlink()
    os.mkfifo(path)
    for each, name, why in (
        (path, shown, "not a file"),
        (home / "none.jsonl", "'none'", "no such file or directory"),
        (Path("/proc/self/mem"), "'mem'", "input/output error"),
    ):
        line = f"conversation {name}: {why}: {advice} {str(each)!r}"
        refused(UsageError, line, store.read, each)


def test_damage_is_read_around_on_request(home: Path) -> None:
    path = saved_at("old", 1000, "question", "reply")
    lines = path.read_bytes().splitlines(keepends=True)
    bare = [line[: line.index(b', "crc32"')] + b"}\n" for line in lines]
    path.write_bytes(b"".join([*bare[:2], b"Dear diary\n", *bare[3:]]))
    with pytest.raises(UsageError, match="line 3: it is not JSON"):
        store.read(path)
    assert store.read(path, salvage=True).damage == ["line 3: it is not JSON"]
    with path.open("rb") as file:
        assert store.read_open(file, path, salvage=True).problem == "line 3: it is not JSON"


def test_a_folder_that_cannot_be_read_is_told(home: Path) -> None:
    home.parent.mkdir()
    home.touch()
    for use in (store.names, store.entries, store.latest, lambda: list(store.search("x"))):
        refused(UsageError, f"{str(home)!r}: not a directory: check the folder", use)


def test_an_open_conversation_is_listed_too(home: Path) -> None:
    file = ConversationFile()
    file.save(conversation_of(1), TAG)
    assert [entry.title for entry in store.entries()] == ["question 0: word"]
    file.close()
