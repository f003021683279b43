"""A saved conversation is hostile until checked: read whole, recovered, or refused in one line."""

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_chat.chat import store
from llama_chat.chat.conversation import Conversation, Message
from llama_chat.chat.conversation_file import ConversationFile
from llama_chat.chat.record_lines import MAX_LINE_BYTES
from llama_chat.errors import SaveError, UsageError
from tests.conversations import TAG, conversation_of, facts, home_at, names_in, saved
from tests.memory_use import peak_and_error

pytestmark = pytest.mark.usefixtures("home")


HEADER = {"format": "llama-chat conversation", "version": 1}
USER = {"number": 1, "parent": 0, "role": "user", "text": "a"}
REPLY = {"number": 2, "parent": 1, "role": "assistant", "text": "b", "ids": [5, 6]}
STATE = {"head": 2, "system": "", "examples": [["x", "y"]], "model": "m", "vocabulary": "v"}
RECORDS: list[dict[str, Any]] = [HEADER, USER, REPLY, STATE]


def lines_of(*records: object) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def refused(path: Path, *parts: str) -> None:
    """Check that reading and opening are refused in one printable line that names the file."""
    file = ConversationFile()
    before = names_in(path.parent)
    for use in (store.read, file.open):
        with pytest.raises(UsageError) as caught:
            use(path)
        line = str(caught.value)
        assert line.isprintable()
        assert line.startswith(f"conversation {path.stem!r}: ")
        assert len(line) < 300 + len(str(path))
        for part in parts:
            assert part in line, line
    assert file.path is None
    assert names_in(path.parent) == before


def test_the_file_that_the_cases_below_change_is_good(tmp_path: Path) -> None:
    path = tmp_path / "good.jsonl"
    path.write_bytes(lines_of(*RECORDS))
    assert len(store.read(path).conversation.all) == 2


def test_a_file_cut_at_any_byte_gives_every_complete_line_or_is_refused(home: Path) -> None:
    whole = saved(conversation_of(3), "whole").read_bytes()
    path = home / "cut.jsonl"
    known = {}
    for n_lines in range(1, whole.count(b"\n") + 1):
        path.write_bytes(b"".join(whole.splitlines(keepends=True)[:n_lines]))
        known[n_lines] = facts(store.read(path).conversation)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        n_lines = whole[:length].count(b"\n")
        if not n_lines:
            refused(path, "cut off in its first line" if length else "it is empty")
            continue
        loaded = store.read(path)
        assert facts(loaded.conversation) == known[n_lines]
        assert loaded.cut == (whole[length - 1 : length] != b"\n")


def test_half_a_last_line_is_dropped_and_kept_in_a_copy(home: Path) -> None:
    path = saved(conversation_of(2), "crashed")
    whole = path.read_bytes()
    for length in range(whole.index(b"\n") + 1, len(whole), 7):
        path.write_bytes(whole[:length])
        file = ConversationFile()
        loaded = file.open(path)
        copies = [home / name for name in names_in(home) if "damaged" in name]
        assert [copy.read_bytes() for copy in copies] == [whole[:length]] * loaded.cut
        assert all(copy.stat().st_mode & 0o777 == 0o600 for copy in copies)
        assert [entry.name for entry in store.entries()] == ["crashed"]
        loaded.conversation.head = None
        loaded.conversation.add(Message("user", "after the crash"))
        file.save(loaded.conversation, TAG)
        file.close()
        again = store.read(path)
        assert not again.cut
        assert facts(again.conversation) == facts(loaded.conversation)
        for copy in copies:
            copy.unlink()


def changed(n: int, **values: object) -> bytes:
    """Return the good file with some values of record ``n`` changed; ``...`` removes one."""
    records = [dict(record) for record in RECORDS]
    records[n - 1] |= values
    records[n - 1] = {key: value for key, value in records[n - 1].items() if value is not ...}
    return lines_of(*records)


def with_line(n: int, line: bytes) -> bytes:
    """Return the good file with ``line`` in place of line ``n``."""
    lines = lines_of(*RECORDS).splitlines(keepends=True)
    return b"".join([*lines[: n - 1], line + b"\n", *lines[n:]])


BAD_FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "it is empty"),
    "an empty line": (b"\n", "line 1: it is not JSON"),
    "not JSON": (b"Dear diary,\n", "line 1: it is not JSON"),
    "other JSON": (b'{"a": 1}\n', "line 1: it is not a saved conversation"),
    "a list": (b"[]\n", "line 1: it is not a JSON object"),
    "UTF-16": (lines_of(*RECORDS).decode().encode("utf-16"), "line 1: it is not JSON"),
    "no UTF-8": (with_line(2, b'{"number": 1, "text": "\xff"}'), "line 2: it is not JSON"),
    "a surrogate in UTF-8": (with_line(2, b'{"text": "\xed\xa0\x80"}'), "line 2: it is not JSON"),
    "a future version": (changed(1, version=2), "line 1: it is of version 2, and this program"),
    "version 0": (changed(1, version=0), "line 1: it is of version 0"),
    "version true": (changed(1, version=True), "line 1: a number is not a whole number"),
    "version 1.0": (changed(1, version=1.0), "line 1: a number is not a whole number"),
    "no version": (changed(1, version=...), "line 1: a number is not a whole number"),
    "version of 4,000 digits": (changed(1, version=10**4000), "line 1: a number is not a whole"),
    "half a line in the middle": (with_line(2, b'{"number": 1, "par'), "line 2: it is not JSON"),
    "a line twice in one": (with_line(3, b"{}{}"), "line 3: it is not JSON"),
    "NUL bytes": (with_line(3, bytes(100)), "line 3: it is not JSON"),
    "no record": (with_line(3, b"{}"), "line 3: it is no record of a message"),
    "a text alone": (with_line(3, b'"text"'), "line 3: it is not a JSON object"),
    "nested": (with_line(3, b'{"a":' * 10_000), "line 3: it is not JSON"),
    "nested lists": (with_line(3, b'{"ids":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "line 3"),
    "5,000 digits": (with_line(2, b'{"number":' + b"1" * 5000 + b"}"), "line 2: it is not JSON"),
    "unknown role": (changed(2, role="tool"), "line 2: unknown role"),
    "a system message": (changed(2, role="system"), "line 2: unknown role"),
    "a role of lists": (changed(2, role=["user"]), "line 2: unknown role"),
    "text null": (changed(2, text=None), "line 2: a text is missing"),
    "text a number": (changed(2, text=5), "line 2: a text is missing"),
    "no text": (changed(2, text=...), "line 2: it is no record of a message"),
    "two user turns": (changed(3, role="user"), "line 3: user and assistant do not alternate"),
    "a reply first": (changed(2, role="assistant"), "line 2: user and assistant do not alternate"),
    "number 0": (changed(2, number=0), "line 2: its parent is message 0"),
    "number -1": (changed(2, number=-1), "line 2: a number is not a whole number from 0"),
    "number true": (changed(2, number=True), "line 2: a number is not a whole number"),
    "number 1.0": (changed(2, number=1.0), "line 2: a number is not a whole number"),
    "number NaN": (changed(2, number=float("nan")), "line 2: a number is not a whole number"),
    "number null": (changed(2, number=None), "line 2: a number is not a whole number"),
    "number 2^63": (changed(3, number=2**63), "line 3: a number is not a whole number"),
    "number 9": (changed(3, number=9), "line 3: message 9 is out of order"),
    "parent 7": (changed(3, parent=7), "line 3: its parent is message 7"),
    "parent itself": (changed(3, parent=2), "line 3: its parent is message 2"),
    "no parent": (changed(3, parent=...), "line 3: it is no record of a message"),
    "moved": (lines_of(*RECORDS, USER | {"number": 3, "parent": 2}, USER | {"number": 3}),
              "line 6: message 3 moves to another place"),
    "another role": (lines_of(*RECORDS, USER | {"number": 2}), "line 5: message 2 moves"),
    "ids a number": (changed(3, ids=5), "line 3: a list is missing"),
    "ids a text": (changed(3, ids="12"), "line 3: a list is missing"),
    "ids of texts": (changed(3, ids=["5"]), "line 3: a number is not a whole number"),
    "ids infinite": (changed(3, ids=[float("inf")]), "line 3: a number is not a whole number"),
    "ids below 0": (changed(3, ids=[-1]), "line 3: a number is not a whole number"),
    "attachments null": (changed(2, attachments=None), "line 2: a list is missing"),
    "attachments of texts": (changed(2, attachments=["ab"]), "line 2: a list is missing"),
    "attachments of three": (changed(2, attachments=[["a"] * 3]), "line 2: a pair of texts"),
    "attachments of numbers": (changed(2, attachments=[[1, 2]]), "line 2: a text is missing"),
    "dropped -1": (changed(3, dropped=-1), "line 3: a number is not a whole number"),
    "dropped true": (changed(3, dropped=True), "line 3: a number is not a whole number"),
    "all dropped": (changed(3, dropped=1), "message 2 leaves out more turns than it follows"),
    "head 3": (changed(4, head=3), "line 4: its head is message 3, which does not exist"),
    "head null": (changed(4, head=None), "line 4: a number is not a whole number"),
    "no head": (changed(4, head=...), "line 4: it is no record of a message"),
    "system a list": (changed(4, system=[]), "line 4: a text is missing"),
    "examples of texts": (changed(4, examples=["xy"]), "line 4: a list is missing"),
    "examples an object": (changed(4, examples={"xy": 1}), "line 4: a list is missing"),
    "model null": (changed(4, model=None), "line 4: a text is missing"),
    "no vocabulary": (changed(4, vocabulary=...), "line 4: it is no record of a message"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_refused_naming_the_line(case: str, tmp_path: Path) -> None:
    data, why = BAD_FILES[case]
    path = tmp_path / "bad.jsonl"
    path.write_bytes(data)
    refused(path, why, f"repair or remove {str(path)!r}")
    assert path.read_bytes() == data


def test_a_branch_cannot_drop_turns_of_another(tmp_path: Path) -> None:
    turns = [USER, REPLY, USER | {"number": 3, "parent": 2}, REPLY | {"number": 4, "parent": 3}]
    path = tmp_path / "branches.jsonl"
    path.write_bytes(lines_of(HEADER, *turns, USER | {"number": 5, "dropped": 1}, STATE))
    refused(path, "message 5 leaves out more turns than it follows")
    path.write_bytes(lines_of(HEADER, *turns, turns[3] | {"number": 5, "dropped": 1}, STATE))
    assert store.read(path).conversation.all[4].n_dropped == 1


BOMBS: dict[str, tuple[bytes, bytes, int, bytes, str]] = {
    "one line": (b'{"a":[', b"[],", 2**26, b"", "line 1: it is longer than 8 MiB"),
    "just fitting": (b'{"a":[', b"[],", MAX_LINE_BYTES // 3 - 9, b"[]]}\n", "line 1: it is"),
    "of newlines": (b"", b"\n", 2**27, b"", "line 1: it is not JSON"),
    "of zeros": (b"", b"\0", 2**27, b"", "line 1: it is longer than 8 MiB"),
}
"""Start of a file, repeated part, number of repeats, end of the file, and why it is refused."""


@pytest.mark.parametrize("case", BOMBS)
def test_a_bomb_costs_little_memory(case: str, tmp_path: Path) -> None:
    begin, repeated, times, end, why = BOMBS[case]
    path = tmp_path / "bomb.jsonl"
    path.write_bytes(begin + repeated * times + end)
    imports = "from pathlib import Path; from llama_chat.chat import store"
    peak, error = peak_and_error(imports, f"store.read(Path({str(path)!r}))", tmp_path)
    assert why in error
    assert peak < 300e6


def test_a_file_larger_than_any_conversation_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.jsonl"
    path.touch()
    os.truncate(path, 2**40)  # a hole that takes no disk space
    refused(path, "larger than 256 MiB")


def test_a_message_too_large_to_read_again_is_not_saved(home: Path) -> None:
    conversation = conversation_of(1)
    file = ConversationFile()
    file.save(conversation, TAG)
    assert file.path is not None
    before = file.path.read_bytes()
    conversation.add(Message("user", "x" * MAX_LINE_BYTES))
    with pytest.raises(SaveError, match="a message is larger than 8 MiB"):
        file.save(conversation, TAG)
    assert file.path.read_bytes() == before
    large = Conversation()
    large.add(Message("user", "x" * (MAX_LINE_BYTES - 100)))
    assert len(store.read(saved(large)).conversation.all[0].text) == MAX_LINE_BYTES - 100


def test_reading_and_saving_stay_linear(home: Path) -> None:
    def seconds_for(turns: int) -> float:
        conversation = conversation_of(turns)
        for message in conversation.all[2:]:
            message.n_dropped = 1  # makes each look back
        began = time.perf_counter()
        loaded = store.read(saved(conversation)).conversation
        assert len(loaded.all) == 2 * turns
        return time.perf_counter() - began

    few = min(seconds_for(500) for _ in range(3))
    many = seconds_for(5000)
    # Ten times as long if linear; a hundred times if quadratic.
    assert many < 40 * few


wild = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
    | st.sampled_from([0, 1, 2, 3, 2**31, "user", "assistant", "system"]),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=3), values),
    max_leaves=6,
)  # fmt: skip
mutated = st.builds(
    lambda record, changes: record | changes,
    st.sampled_from([USER, REPLY, STATE, USER | {"number": 3, "parent": 2}]),
    st.dictionaries(st.sampled_from([*USER, *REPLY, *STATE, "attachments", "dropped"]), wild),
)
good = st.sampled_from([*RECORDS[1:], USER | {"number": 3, "parent": 2}, USER | {"number": 3}])
raw_lines = st.one_of(
    st.binary(max_size=30),
    wild.map(lambda value: json.dumps(value).encode()),
    mutated.map(lambda record: json.dumps(record).encode()),
    good.map(lambda record: json.dumps(record).encode()),
)


@settings(max_examples=150, deadline=1000)
@given(st.lists(raw_lines, max_size=6), st.binary(max_size=10))
def test_any_lines_are_read_or_refused_in_one_line(lines: list[bytes], rest: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "any.jsonl"
        path.write_bytes(lines_of(HEADER) + b"".join(line + b"\n" for line in lines) + rest)
        try:
            conversation = store.read(path).conversation
        except UsageError:
            refused(path)
            return
        # A conversation that was read can be used and saved again.
        for message in conversation.all:
            conversation.head = message
            assert conversation.messages()[-1] is message
            roles = [said.role for said in conversation.path()]
            assert roles == (["user", "assistant"] * len(roles))[: len(roles)]
        with home_at(Path(folder)):
            if conversation.all:
                assert facts(store.read(saved(conversation)).conversation) == facts(conversation)
