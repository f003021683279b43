"""Saved conversations are read back unchanged, after every step and for every text."""

import os
import re
import shutil
import stat
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llama_chat.chat import store
from llama_chat.chat.conversation import Attachment, Conversation, Example, Message
from llama_chat.chat.conversation_file import ConversationFile
from llama_chat.chat.records import ModelTag, keep_valid_ids
from llama_chat.errors import SaveError, UsageError
from tests.conversations import (
    TAG,
    Facts,
    attachments,
    conversation_of,
    facts,
    home_at,
    is_open,
    many_examples,
    many_ids,
    names_in,
    saved,
    texts,
)
from tests.model_files import byte_tokenizer
from tests.sessions import finish_of, interrupt_after, new_session

pytestmark = pytest.mark.usefixtures("home")


class SavedConversations(RuleBasedStateMachine):
    """After any changes a saved file has the same contents as its conversation."""

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp())
        self.conversation = Conversation()
        self.tag = TAG
        self.file = ConversationFile()
        self.earlier: dict[Path, Facts] = {}

    def teardown(self) -> None:
        self.file.close()
        shutil.rmtree(self.home)

    @rule(text=texts, reply=texts, ids=many_ids, files=attachments, interrupted=st.booleans())
    def send(
        self,
        text: str,
        reply: str,
        ids: tuple[int, ...] | None,
        files: tuple[Attachment, ...],
        interrupted: bool,
    ) -> None:
        conversation = self.conversation
        if conversation.head is not None and conversation.head.role == "user":
            conversation.add(Message("assistant", "", (), interrupted=True))
        conversation.add(Message("user", text, attachments=files))
        conversation.add(Message("assistant", reply, ids, interrupted=interrupted))

    @rule(text=texts)
    def send_without_an_answer(self, text: str) -> None:
        self.send(text, "", None, (), interrupted=True)
        self.conversation.add(Message("user", text))

    @rule(turns=st.integers(1, 3))
    def undo(self, turns: int) -> None:
        self.conversation.undo(turns)

    @precondition(lambda self: self.conversation.question() is not None)
    @rule(reply=texts, ids=many_ids)
    def retry(self, reply: str, ids: tuple[int, ...] | None) -> None:
        self.conversation.head = self.conversation.question()
        self.conversation.add(Message("assistant", reply, ids))

    @precondition(lambda self: self.conversation.all)
    @rule(data=st.data())
    def go_to(self, data: st.DataObject) -> None:
        self.conversation.head = data.draw(st.sampled_from([None, *self.conversation.all]))

    @precondition(lambda self: self.conversation.all)
    @rule(data=st.data(), more=texts, ids=many_ids)
    def go_on(self, data: st.DataObject, more: str, ids: tuple[int, ...] | None) -> None:
        message = data.draw(st.sampled_from(self.conversation.all))
        if message.role == "assistant":
            message.text += more
            message.ids, message.interrupted = ids, not message.interrupted
            message.n_dropped = (len(self.conversation.path()) - 1) // 2
            self.conversation.head = message
            message.n_dropped = (len(self.conversation.path()) - 1) // 2

    @rule(system=texts, examples=many_examples)
    def begin_with(self, system: str, examples: tuple[Example, ...]) -> None:
        self.conversation.system, self.conversation.examples = system, examples

    @rule(model=texts)
    def change_the_model(self, model: str) -> None:
        self.tag = ModelTag(model, self.tag.vocabulary[::-1])

    @precondition(lambda self: self.conversation.all)
    @rule()
    def clear(self) -> None:
        assert self.file.path is not None
        self.earlier[self.file.path] = facts(self.conversation)
        self.conversation.clear()

    @precondition(lambda self: self.conversation.all)
    @rule()
    def leave_and_come_back(self) -> None:
        path = self.file.path
        assert path is not None
        self.file.close()
        loaded = self.file.open(path)
        assert not loaded.cut
        # Reading has replaced lone surrogates.
        self.conversation, self.tag = loaded.conversation, loaded.tag

    @invariant()
    def is_saved(self) -> None:
        with home_at(self.home):
            self.file.save(self.conversation, self.tag, durable=False)
        if self.conversation.all:
            assert self.file.path is not None
            loaded = store.read(self.file.path)
            assert facts(loaded.conversation) == facts(self.conversation)
            assert loaded.tag.vocabulary == self.tag.vocabulary

    @invariant()
    def nothing_earlier_changes(self) -> None:
        for path, before in self.earlier.items():
            assert facts(store.read(path).conversation) == before


SavedConversations.TestCase.settings = settings(max_examples=150, stateful_step_count=20)
TestSavedConversations = SavedConversations.TestCase


def test_a_step_adds_a_line_or_two_and_changes_none() -> None:
    conversation = conversation_of(3)
    file = ConversationFile()
    file.save(conversation, TAG)
    assert file.path is not None
    before = file.path.read_bytes()
    conversation.add(Message("user", "more"))
    conversation.add(Message("assistant", "of it"))
    file.save(conversation, TAG)
    data = file.path.read_bytes()
    assert data.startswith(before)
    # The head follows from the messages, and needs no line.
    assert data.count(b"\n") == before.count(b"\n") + 2
    file.save(conversation, TAG)
    assert file.path.read_bytes() == data


def test_an_empty_conversation_has_no_file(home: Path) -> None:
    file = ConversationFile()
    file.save(Conversation("Be brief."), TAG)
    assert (file.path, file.name, home.exists()) == (None, "", False)
    with pytest.raises(SaveError, match="there is no message yet"):
        file.rename("name")


def test_nobody_else_may_read_a_conversation(home: Path) -> None:
    mask = os.umask(0)
    try:
        path = saved(conversation_of(1))
    finally:
        os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for folder in (home, home.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_name_has_the_time_and_words_of_the_first_message() -> None:
    conversation = Conversation()
    conversation.add(Message("user", "Où est l'Étoile? ../../etc \x1b[31m"))
    name = saved(conversation).stem
    assert re.fullmatch(r"\d{4}-\d\d-\d\d-\d{6}-o-est-l-toile-etc", name)
    conversation.clear()
    conversation.add(Message("user", "x" * 200))
    name = saved(conversation).stem
    assert len(name) == 80
    assert store.find(name).is_file()


def test_two_conversations_that_begin_alike_have_two_files(home: Path) -> None:
    for _ in range(3):
        saved(conversation_of(1))
    assert len(names_in(home)) == 3
    assert len(store.entries()) == 3


def test_after_clear_a_conversation_has_another_file() -> None:
    conversation = conversation_of(2)
    file = ConversationFile()
    file.save(conversation, TAG)
    first, before = file.path, facts(conversation)
    assert first is not None
    conversation.clear()
    file.save(conversation, TAG)
    conversation.add(Message("user", "something else"))
    file.save(conversation, TAG)
    assert file.path not in (None, first)
    assert facts(store.read(first).conversation) == before


def test_opening_an_open_file_again_is_allowed() -> None:
    file = ConversationFile()
    conversation = conversation_of(1)
    file.save(conversation, TAG)
    path = file.path
    assert path is not None
    conversation = file.open(path).conversation
    assert file.path == path
    conversation.add(Message("user", "more"))
    file.save(conversation, TAG)
    assert len(store.read(path).conversation.all) == 3
    assert is_open(path)


def test_renaming_never_replaces_another_conversation(home: Path) -> None:
    other = saved(conversation_of(1), "other")
    whole = other.read_bytes()
    file = ConversationFile()
    conversation = conversation_of(2)
    file.save(conversation, TAG)
    with pytest.raises(UsageError, match="there is a conversation of that name"):
        file.rename("other")
    file.rename("mine")
    file.rename("mine")
    assert file.name == "mine"
    conversation.add(Message("user", "more"))
    file.save(conversation, TAG)
    assert names_in(home) == ["mine.jsonl", "other.jsonl"]
    assert other.read_bytes() == whole
    assert len(store.read(home / "mine.jsonl").conversation.all) == 5


IMPOSSIBLE = [
    "", " ", " x", "x ", ".", "..", ".hidden", "../../x", "/etc/x", "a/b", "-rf", "x" * 101,
    "é" * 51, "x" * 300, "two\nlines", "\x1b[31mred", "nul\0", "\x9b", "\u202eright", "\ud800",
]  # fmt: skip


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_a_hostile_name_is_refused_wherever_it_is_given(name: str, home: Path) -> None:
    file = ConversationFile()
    file.save(conversation_of(1), TAG)
    before = names_in(home)
    for use in (store.path_of, store.find, file.rename):
        with pytest.raises(UsageError, match="not a possible name") as caught:
            use(name)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 400
    assert names_in(home) == before


def test_a_conversation_is_found_by_its_name_or_a_prefix() -> None:
    for name in ("apples", "apricots", "pears", "pears and plums"):
        saved(conversation_of(1), name)
    assert store.find("pears").stem == "pears"
    assert store.find("apr").stem == "apricots"
    with pytest.raises(UsageError, match="more than one begins so: apricots, apples"):
        store.find("ap")
    with pytest.raises(UsageError, match="none is saved by that name"):
        store.find("plums")


def test_the_latest_is_the_one_saved_last(home: Path) -> None:
    with pytest.raises(UsageError, match="no conversation is saved yet"):
        store.latest()
    assert (store.entries(), store.names()) == ([], [])
    for age, name in enumerate(["new", "old", "older"]):
        path = saved(conversation_of(age + 1), name)
        os.utime(path, (10**9 - age, 10**9 - age))
    assert store.latest() == home / "new.jsonl"
    entries = store.entries()
    assert [entry.name for entry in entries] == store.names() == ["new", "old", "older"]
    assert [entry.n_messages for entry in entries] == [2, 4, 6]
    assert [entry.changed for entry in entries] == [10**9, 10**9 - 1, 10**9 - 2]
    assert {(entry.title, entry.model, entry.problem) for entry in entries} == {
        ("question 0: word", TAG.name, "")
    }


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_replies_of_a_session_keep_their_ids(data: st.DataObject) -> None:
    session = new_session(system="Be brief.", examples=[Example("a", "b")])
    file = ConversationFile()
    tag = ModelTag("random", byte_tokenizer().fingerprint)
    for _ in range(data.draw(st.integers(1, 4))):
        match data.draw(st.sampled_from(["send", "stop", "close", "retry", "open", "resume"])):
            case "stop":
                finish_of(session.send("é", interrupt_after(data.draw(st.integers(0, 30)))))
            case "close":
                events = session.send("more")
                next(events)
                events.close()  # type: ignore[attr-defined] # a generator
            case "retry" if session.conversation.all:
                finish_of(session.retry())
            case "resume" if session.conversation.all:
                finish_of(session.continue_reply())
            case "open":
                finish_of(session.send("x", reply_prefix="🌻 <|im_end|>"))
            case _:
                finish_of(session.send("word"))
        file.save(session.conversation, tag, durable=False)
    assert file.path is not None
    loaded = store.read(file.path)
    file.close()
    assert keep_valid_ids(loaded.conversation, loaded.tag, byte_tokenizer())
    assert facts(loaded.conversation) == facts(session.conversation)


HOSTILE_IDS = {
    "a control token": (70, 1),
    "past the vocabulary": (70, 10**6),
    "another text": (70, 72),
    "no text": (),
}


@pytest.mark.parametrize("case", HOSTILE_IDS)
def test_ids_that_do_not_decode_to_the_text_are_dropped(case: str) -> None:
    tokenizer = byte_tokenizer()
    text = tokenizer.decode([70, 71])
    conversation = Conversation()
    conversation.add(Message("user", "x"))
    conversation.add(Message("assistant", text, (70, 71)))
    conversation.add(Message("user", "y"))
    conversation.add(Message("assistant", text, HOSTILE_IDS[case]))
    tag = ModelTag("m", tokenizer.fingerprint)
    loaded = store.read(saved(conversation, tag=tag))
    assert keep_valid_ids(loaded.conversation, loaded.tag, tokenizer)
    assert [message.ids for message in loaded.conversation.all] == [None, (70, 71), None, None]
    assert not keep_valid_ids(loaded.conversation, replace(tag, vocabulary="other"), tokenizer)
    assert [message.ids for message in loaded.conversation.all] == [None] * 4
