"""A loss of power leaves every conversation as it was before a save or after it."""

import os
import tempfile
from pathlib import Path
from random import Random

import pytest

from harness.power_loss import Disk
from llama_chat.chat import conversation_file, store
from llama_chat.chat.conversation import Conversation, Example, Message
from llama_chat.chat.conversation_file import ConversationFile
from llama_chat.chat.records import ModelTag
from tests.conversations import TAG, Facts, facts

STATES = int(os.environ.get("LLAMA_CHAT_TEST_STATES", "0"))
"""States tried at each moment; 0 tries one state at every second moment."""

TURNS = 20


class Session:
    """A session of 20 turns, with all that saves more than one line."""

    def __init__(self, home: Path, random: Random) -> None:
        self.home, self.random = home, random
        self.disk = Disk(home)
        self.conversation, self.file, self.tag = Conversation(), ConversationFile(), TAG
        self.possible: list[Facts | None] = [None]
        """What the file may hold: all since the last save that was durable."""
        self.n_moments = 0

    def save(self, *, durable: bool) -> None:
        self.possible.append(facts(self.conversation))
        self.file.save(self.conversation, self.tag, durable=durable)
        if durable:
            self.possible = self.possible[-1:]
            self.lose_power()

    def lose_power(self) -> None:
        """Try states of this moment: each can be read and continued."""
        self.n_moments += 1
        with self.disk.paused():
            for _ in range(STATES or self.n_moments % 2):
                with tempfile.TemporaryDirectory(dir=self.home.parent) as there:
                    self.disk.leave(Path(there), self.random)
                    self.check(Path(there))

    def check(self, there: Path) -> None:
        found = list(there.rglob("*.jsonl"))
        assert len(found) == 1 or (not found and None in self.possible)
        for path in found:
            read = store.read(path)
            assert facts(read.conversation) in self.possible
            assert not read.damage
            file = ConversationFile()
            assert facts(file.open(path).conversation) == facts(read.conversation)
            file.close()
            assert not store.read(path).problem

    def run(self, patch: pytest.MonkeyPatch) -> None:
        words = "word " * 300
        for turn in range(TURNS):
            # Some turns write all of it anew.
            patch.setattr(conversation_file, "_MOST_REPLACED", 64 if turn % 5 < 4 else -1000)
            head = self.conversation.head
            if turn % 5 == 3:
                self.conversation.undo()
            if turn % 7 == 4:
                self.conversation.system, self.tag = f"system {turn}", ModelTag(f"{turn}", "v")
                self.conversation.examples = (Example("in", words),)
            self.conversation.add(Message("user", f"{turn}: {words}"))
            self.save(durable=False)
            reply = self.conversation.add(Message("assistant", f"{turn}: {words}", (turn,)))
            self.save(durable=True)
            if turn % 4 == 2:
                reply.text += words
                self.conversation.head = head
                self.save(durable=True)
                self.conversation.head = reply
        self.file.close()
        self.disk.close()


@pytest.mark.parametrize("seed", range(1))
def test_a_loss_of_power_leaves_what_was_before_or_after(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    session = Session(tmp_path / "home", Random(seed))
    with session.disk.recording(session.lose_power):
        session.run(monkeypatch)
    assert session.n_moments > 100
