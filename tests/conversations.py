"""Conversations to save, and their contents as comparable values."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from llama_chat.chat import store
from llama_chat.chat.conversation import Attachment, Conversation, Example, Message
from llama_chat.chat.conversation_file import ConversationFile
from llama_chat.chat.records import ModelTag
from llama_chat.errors import LlamaChatError, UsageError
from llama_chat.tokenizers.base import without_surrogates
from tests.system_calls import n_open

TAG = ModelTag("llama-2-7b-chat", "0123456789abcdef")

ODD = "\0\t\n\r\x1b\x7f\x85\x9b\u2028\u2029\u202e\ud800\udcff\ufeff\uffff🌻\\\"'[]{}"
texts = st.text(st.characters() | st.sampled_from(ODD), max_size=12)
attachments = st.lists(st.builds(Attachment, texts, texts), max_size=2).map(tuple)
many_examples = st.lists(st.builds(Example, texts, texts), max_size=2).map(tuple)
many_ids = st.none() | st.lists(st.integers(0, 2**31 - 1), max_size=5).map(tuple)


def conversation_of(turns: int, words: str = "word") -> Conversation:
    """Make a conversation with a system message and examples, whose replies have token ids."""
    conversation = Conversation("Be brief.", [Example("in", "out")])
    for turn in range(turns):
        conversation.add(Message("user", f"question {turn}: {words}"))
        conversation.add(Message("assistant", f"answer {turn}: {words}", (turn, 7, 8)))
    return conversation


Facts = tuple[object, ...]


def facts(conversation: Conversation) -> Facts:
    """Return all that a file must keep of a conversation, as comparable values."""
    messages = [
        (
            message.number,
            message.parent.number if message.parent else 0,
            message.role,
            without_surrogates(message.text),
            message.ids,
            message.interrupted,
            [tuple(map(without_surrogates, (a.text, a.name))) for a in message.attachments],
            message.n_dropped,
        )
        for message in conversation.all
    ]
    head = conversation.head.number if conversation.head else 0
    examples = [(e.user, e.assistant) for e in conversation.examples]
    return (
        messages,
        head,
        without_surrogates(conversation.system),
        [tuple(map(without_surrogates, example)) for example in examples],
    )


def saved(conversation: Conversation, name: str = "", tag: ModelTag = TAG) -> Path:
    """Save a conversation and close its file; returns the path."""
    file = ConversationFile()
    file.save(conversation, tag)
    if name:
        file.rename(name)
    path = file.path
    assert path is not None
    file.close()
    return path


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def home_at(path: Path) -> Iterator[None]:
    """Save conversations below ``path``, for code that cannot use a fixture."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(path))
        yield


def followed(turns: int = 1) -> tuple[ConversationFile, Conversation, Path]:
    """Save a conversation, and keep its file open."""
    file, conversation = ConversationFile(), conversation_of(turns)
    file.save(conversation, TAG)
    assert file.path is not None
    return file, conversation, file.path


def is_open(path: Path) -> bool:
    try:
        store.refuse_if_open(path)
    except UsageError as error:
        return error.why == "a program has it open"
    return False


def one_line(error: pytest.ExceptionInfo[LlamaChatError], status: int) -> str:
    """Check the status of an error, and return its message, one printable line."""
    line = str(error.value)
    assert line.isprintable()
    assert line.count(": ") >= 2
    assert error.value.status == status
    return line


def without_checksums(path: Path) -> bytes:
    """Return a file as programs before checksums wrote it."""
    records = map(json.loads, path.read_bytes().splitlines())
    kept = [{k: v for k, v in each.items() if k not in ("crc32", "part")} for each in records]
    return b"".join(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in kept)


def refused(
    error: type[LlamaChatError], line: str, use: Callable[..., object], *arguments: Any
) -> None:
    """Check the line of an error, and that no descriptor is left open."""
    before = n_open()
    with pytest.raises(error) as caught:
        use(*arguments)
    assert (str(caught.value), n_open()) == (line, before)


PROGRAM = """
import sys
from pathlib import Path
from llama_chat.chat import store
from llama_chat.chat.conversation import Message
from llama_chat.chat.conversation_file import ConversationFile
from tests.conversations import TAG, conversation_of
file = ConversationFile()
"""
"""First lines of another program that uses conversations."""
