"""Nothing that was saved is lost: to a full disk, a kill, or another program."""

import fcntl
import os
import random
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llama_chat.chat import store
from llama_chat.chat.conversation import Conversation, Message
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
from tests.disks import SmallDisk

pytestmark = pytest.mark.usefixtures("home")


@contextmanager
def program(script: str, *arguments: str | Path) -> Iterator["subprocess.Popen[str]"]:
    """Start another program, which reads and writes lines; it is killed at the end."""
    child = subprocess.Popen(
        [sys.executable, "-c", PROGRAM + script, *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def next_line(child: "subprocess.Popen[str]") -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


HOLD = """
file.open(Path(sys.argv[1]))
print("open", file.name, flush=True)
input()
"""


def test_a_second_program_reads_and_saves_to_another_file(home: Path) -> None:
    path = saved(conversation_of(2), "shared")
    whole = path.read_bytes()
    with program(HOLD, path) as child:
        assert next_line(child) == "open shared"
        assert is_open(path)
        file = ConversationFile()
        loaded = file.open(path)
        assert file.path is None
        assert facts(loaded.conversation) == facts(conversation_of(2))
        loaded.conversation.add(Message("user", "elsewhere"))
        file.save(loaded.conversation, TAG)
        assert file.path not in (None, path)
        assert path.read_bytes() == whole
        with pytest.raises(UsageError, match="a program has it open"):
            store.remove(path)
        assert path.exists()


def test_a_line_that_another_program_is_writing_is_not_damage(home: Path) -> None:
    path = saved(conversation_of(2), "shared")
    with program(HOLD, path) as child:
        next_line(child)
        with path.open("ab") as writer:
            writer.write(b'{"number": 5, "pa')
        half = path.read_bytes()
        assert not ConversationFile().open(path).cut
        assert (path.read_bytes(), names_in(home)) == (half, ["shared.jsonl"])


def test_a_killed_program_leaves_no_lock() -> None:
    path = saved(conversation_of(2), "shared")
    with program(HOLD, path) as child:
        next_line(child)
        child.send_signal(signal.SIGKILL)
        child.wait()
        file = ConversationFile()
        file.open(path)
        assert file.path == path
        file.close()
    assert not is_open(path)


TAKE_TURNS = """
for turn in range(int(sys.argv[2])):
    while file.path is None:
        conversation = file.open(Path(sys.argv[1])).conversation
    conversation.add(Message("assistant" if len(conversation.all) % 2 else "user", sys.argv[3]))
    file.save(conversation, TAG, durable=False)
    file.close()
print("done", flush=True)
"""


def test_programs_that_take_turns_lose_nothing_of_each_other() -> None:
    path = saved(conversation_of(1), "shared")
    with (
        program(TAKE_TURNS, path, "60", "one") as one,
        program(TAKE_TURNS, path, "60", "two") as two,
    ):
        assert next_line(one) == next_line(two) == "done"
    said = [message.text for message in store.read(path).conversation.path()]
    assert (len(said), said.count("one"), said.count("two")) == (122, 60, 60)


SAVE_FOR_EVER = """
conversation = conversation_of(1)
for number in range(10**6):
    conversation.add(Message("user", f"{number} " + "x" * 50_000))
    conversation.add(Message("assistant", str(number)))
    file.save(conversation, TAG, durable=number % 5 == 0)
    print(number, file.path, flush=True)
"""


@pytest.mark.parametrize("seed", range(12))
def test_no_acknowledged_save_is_lost_by_a_kill(seed: int, home: Path) -> None:
    with program(SAVE_FOR_EVER) as child:
        for _ in range(random.Random(seed).randrange(1, 60)):
            number, path = next_line(child).split(maxsplit=1)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    loaded = store.read(Path(path))
    texts = [message.text for message in loaded.conversation.path()]
    assert texts[2 * int(number) + 3] == number
    # The conversation can be continued.
    file = ConversationFile()
    conversation = file.open(Path(path)).conversation
    conversation.add(Message("user" if len(texts) % 2 == 0 else "assistant", "after the kill"))
    file.save(conversation, TAG)
    assert facts(store.read(Path(path)).conversation) == facts(conversation)


class LimitedFiles:
    """A process whose files may not become larger, as on a disk with a quota."""

    def __init__(self, folder: Path) -> None:
        self._before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, self._before[1]))

    def make_room(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self._before)

    close = make_room


NO_ROOM = r"no space left|file too large"
Disk = SmallDisk | LimitedFiles


@pytest.fixture(params=[SmallDisk, LimitedFiles])
def disk(request: pytest.FixtureRequest, home: Path) -> Iterator[Disk]:
    disk: Disk = request.param(home)
    yield disk
    disk.close()


def test_a_first_save_on_a_full_disk_leaves_nothing_and_succeeds_later(
    disk: Disk, home: Path
) -> None:
    disk.fill()
    before = names_in(home) if home.exists() else []
    file, conversation = ConversationFile(), conversation_of(3, "x" * 2000)
    for _ in range(2):
        with pytest.raises(SaveError, match=NO_ROOM) as caught:
            file.save(conversation, TAG)
        assert "the next turn tries again" in one_line(caught, 6)
        assert (names_in(home), file.path) == (before, None)
    disk.make_room()
    conversation.add(Message("user", "now"))
    file.save(conversation, TAG)
    assert file.path is not None
    assert facts(store.read(file.path).conversation) == facts(conversation)


def test_a_save_on_a_full_disk_leaves_the_file_whole_and_succeeds_later(disk: Disk) -> None:
    file, conversation, path = followed()
    whole = path.read_bytes()
    disk.fill()
    for turn in range(3):
        conversation.add(Message("user", f"{turn} " + "x" * 5000))
        conversation.add(Message("assistant", "y"))
        with pytest.raises(SaveError, match=NO_ROOM) as caught:
            file.save(conversation, TAG)
        assert str(path) in one_line(caught, 6)
        assert path.read_bytes() == whole
    disk.make_room()
    file.save(conversation, TAG)
    assert file.path == path
    assert facts(store.read(path).conversation) == facts(conversation)
    file.close()


def test_a_damaged_file_that_cannot_be_copied_stays_as_it_is(disk: Disk, home: Path) -> None:
    path = saved(conversation_of(2, "x" * 1000))
    with path.open("ab") as writer:
        writer.write(b'{"number": 5, "pa')
    damaged = path.read_bytes()
    disk.fill()
    before = names_in(home)
    file = ConversationFile()
    with pytest.raises(SaveError, match=NO_ROOM):
        file.open(path)
    assert (path.read_bytes(), names_in(home), file.path) == (damaged, before, None)
    assert not is_open(path)


def save_interrupted(
    file: ConversationFile, conversation: Conversation, patch: pytest.MonkeyPatch
) -> None:
    """Save while Ctrl-C interrupts a write in its middle, as some file systems allow."""

    def half_a_write(descriptor: int, data: bytes) -> int:
        os.writev(descriptor, [bytes(data)[: len(data) // 2]])
        raise KeyboardInterrupt

    with patch.context() as context:
        context.setattr(os, "write", half_a_write)
        with pytest.raises(KeyboardInterrupt):
            file.save(conversation, TAG)


def test_ctrl_c_in_the_middle_of_a_save_leaves_no_half_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file, conversation, path = followed()
    whole = path.read_bytes()
    conversation.add(Message("user", "more"))
    save_interrupted(file, conversation, monkeypatch)
    assert path.read_bytes() == whole
    file.save(conversation, TAG)
    assert facts(store.read(path).conversation) == facts(conversation)
    save_interrupted(ConversationFile(), conversation_of(1), monkeypatch)
    assert names_in(path.parent) == [path.name]


def test_nothing_is_written_after_half_a_line_that_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(descriptor: int, length: int) -> None:
        raise OSError(5, "Input/output error")

    file, conversation, path = followed()
    whole = path.read_bytes()
    conversation.add(Message("user", "more"))
    monkeypatch.setattr(os, "ftruncate", refuse)
    save_interrupted(file, conversation, monkeypatch)
    half = path.read_bytes()
    assert half.startswith(whole)
    assert store.read(path).cut
    file.save(conversation, TAG)
    assert file.path not in (None, path)
    assert path.read_bytes() == half
    assert file.path is not None
    assert facts(store.read(file.path).conversation) == facts(conversation)


def test_a_file_system_without_locks_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    file, _, path = followed()
    file.close()
    file.open(path)
    assert file.path == path
