"""Completion in the chat lists a folder once per typed line, and opens no conversation."""

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from llama_chat.chat import store
from llama_chat.chat.conversation import Conversation, Message
from llama_chat.settings.settings import Settings
from llama_chat.terminal.chat import Chat
from llama_chat.terminal.completion import ChatCompleter
from llama_chat.terminal.interrupts import Interrupts
from tests.conversations import home_at, saved

FILE_EVENTS = ("open", "os.listdir", "os.scandir")

_recorded: list[tuple[str, str]] | None = None


def _record(event: str, arguments: tuple[object, ...]) -> None:
    if _recorded is not None and event in FILE_EVENTS:
        _recorded.append((event, str(arguments[0])))


sys.addaudithook(_record)  # for the whole process: hooks cannot be removed


@contextmanager
def file_events() -> Iterator[list[tuple[str, str]]]:
    """Record the files opened and the folders listed in the block."""
    global _recorded
    events: list[tuple[str, str]] = []
    _recorded = events
    try:
        yield events
    finally:
        _recorded = None


@pytest.fixture
def completer(tmp_path: Path) -> Iterator[ChatCompleter]:
    def plan_load(settings: Settings, *, reclaimable: int = 0) -> object:
        raise AssertionError("nothing is loaded")

    with home_at(tmp_path):
        for name in ("alpha", "beta", "betamax"):
            conversation = Conversation()
            conversation.add(Message("user", "hello"))
            saved(conversation, name)
        yield ChatCompleter(Chat(Settings(), plan_load, None, Interrupts()))  # type: ignore[arg-type]


def completions(completer: ChatCompleter, line: str, *, by_tab: bool = False) -> dict[str, str]:
    event = CompleteEvent(completion_requested=by_tab)
    found = completer.get_completions(Document(line), event)
    return {each.text: each.display_meta_text for each in found}


def test_conversations_are_offered_without_opening_one(completer: ChatCompleter) -> None:
    with file_events() as events:
        offered = completions(completer, "/load be")
    assert set(offered) == {"beta", "betamax"}
    assert all(meaning.startswith("20") for meaning in offered.values())
    assert [kind for kind, path in events if path.startswith(str(store.folder()))] == ["os.listdir"]


@pytest.mark.parametrize("command", ["/load", "/model", "/prompt"])
def test_further_keys_are_answered_from_memory(command: str, completer: ChatCompleter) -> None:
    with file_events() as events:
        completions(completer, f"{command} ")
    assert events
    with file_events() as events:
        completions(completer, f"{command} b")
        completions(completer, f"{command} be")
    assert events == []
    completer.forget()
    with file_events() as events:
        completions(completer, f"{command} b")
    assert events


def test_completion_depends_on_the_words_typed_so_far(completer: ChatCompleter) -> None:
    assert "temperature " in completions(completer, "/set temp")
    assert set(completions(completer, "/set overflow s")) == {"overflow stop"}
    assert set(completions(completer, "/set markdown n")) == {"markdown never"}


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("/file pl", "/file plain.txt"),
        ("/file my", '/file "my notes.txt"'),
        ("/file plain.txt my", '/file plain.txt "my notes.txt"'),
        ('/file "my n', '/file "my notes.txt"'),
        ("/file plain.txt 'my n", '/file plain.txt "my notes.txt"'),
        ('/file "my notes.txt" pl', '/file "my notes.txt" plain.txt'),
        ("/file it", '/file "it\'s \\"odd\\".txt"'),
        ('/file "a folder/in', '/file "a folder/inner.txt"'),
        ("/export a folder/in", "/export a folder/inner.txt"),
    ],
)
def test_names_with_blanks_are_completed_in_quotes(
    typed: str,
    completed: str,
    completer: ChatCompleter,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a folder").mkdir()
    for name in ("plain.txt", "my notes.txt", 'it\'s "odd".txt', "a folder/inner.txt"):
        Path(name).touch()
    [found] = completer.get_completions(Document(typed), CompleteEvent(completion_requested=True))
    assert typed[: len(typed) + found.start_position] + found.text == completed
    name, _, argument = completed.partition(" ")
    assert name != "/file" or all(map(os.path.exists, shlex.split(argument)))


@pytest.mark.parametrize(
    "path", ["a\0b/", "~a\0b/", "/\0", "~nobody-here/", "\ud800/", "/dev/null/"]
)
def test_what_is_no_path_completes_to_nothing(path: str, completer: ChatCompleter) -> None:
    for command in ("/file", "/model", "/prompt", "/load"):
        assert completions(completer, f"{command} {path}", by_tab=True) == {}
