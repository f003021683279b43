"""Saved conversations are picked from a list, found by a word, and shown from their beginning."""

import os
import re
import shlex
from pathlib import Path

import pytest

from harness.program import COMMAND, run
from harness.terminal import CTRL_C, CTRL_D, ESCAPE, READY, UP, Terminal
from llama_chat.chat import store
from llama_chat.chat.conversation import Conversation, Message
from tests.conversations import saved

DOWN = "\x1b[B"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with three saved conversations of four messages each."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / ".local/share"))
    for age, topic in enumerate(["tomatoes", "planets", "\x1b[31mred\u202e wine"]):
        conversation = Conversation()
        for text in (f"What about {topic}?", f"They are {topic}", "Why?", f"Because of {topic}"):
            conversation.add(Message("assistant" if len(conversation.all) % 2 else "user", text))
        path = saved(conversation, f"about-{age}")
        os.utime(path, (10**9 - 3600 * age, 10**9 - 3600 * age))
    assert len(store.names()) == 3
    return tmp_path


def test_resume_without_a_name_lets_one_be_picked(home: Path, gguf_model: Path) -> None:
    with Terminal("--resume", "-m", gguf_model, home=home) as terminal:
        terminal.wait_for(r"Enter picks")
        assert re.search(r"› .*about-0.*tomatoes", terminal.shown)
        assert "Because of tomatoes" in terminal.shown
        assert "\x1b[31mred" not in terminal.raw.decode()
        terminal.type(DOWN)
        terminal.wait_for(r"› .*about-1.*planets[\s\S]*Because of planets")
        terminal.type("about ToMa")
        terminal.wait_for(r"› .*about-0.*tomatoes")
        assert "about-1" not in terminal.shown
        terminal.type("\r")
        terminal.wait_for(READY)
        text = terminal.text
        assert "Enter picks" not in text
        assert "2 earlier messages; /history shows all" in text
        assert re.search(r"going on with about-0[\s\S]*› Why\?\s[\s\S]*Because of tomatoes", text)
        terminal.line("/exit")
        assert terminal.wait_for_end() == 0


@pytest.mark.parametrize(("key", "status"), [(ESCAPE, 0), (CTRL_D, 0), (CTRL_C, 130)])
def test_a_list_that_is_left_changes_nothing(
    key: str, status: int, home: Path, gguf_model: Path
) -> None:
    with Terminal("--resume", "-m", gguf_model, home=home) as terminal:
        terminal.wait_for(r"Enter picks")
        terminal.type(key)
        assert terminal.wait_for_end() == status
        assert not terminal.text.strip()


def test_a_list_goes_to_its_ends_and_is_filtered_by_names_that_are_not_shown(
    home: Path, gguf_model: Path
) -> None:
    conversation = Conversation()
    conversation.add(Message("user", "Words: of a question"))
    path = saved(conversation)
    os.utime(path, (1, 1))
    with Terminal("--resume", "-m", gguf_model, home=home) as terminal:
        terminal.wait_for(r"› .*about-0[\s\S]*Enter picks")
        terminal.type("\x1b[F")
        terminal.wait_for(r"› .*Words: of")
        terminal.type("\x1b[H")
        terminal.wait_for(r"› .*about-0")
        terminal.type("words-of")
        terminal.wait_for(r"› .*Words: of")
        assert "about-0" not in terminal.shown


def test_a_list_is_stopped_by_control_z(home: Path, gguf_model: Path) -> None:
    with Terminal(home=home, command=["bash", "--norc", "-i"], PS1="$ ") as terminal:
        terminal.wait_for(r"\$")
        command = shlex.join([*COMMAND, "--resume", "-m", str(gguf_model)])
        terminal.line(command)
        terminal.wait_for(r"Enter picks")
        terminal.type("about-2\x1a")
        terminal.wait_for(r"Stopped[\s\S]*\$")
        terminal.line("fg")
        terminal.wait_for(r"fg\n[\s\S]*about-2\n› .*about-2[\s\S]*Enter picks")
        terminal.type(CTRL_D)
        terminal.wait_for(r"--resume [^\n]*\n\$\s*\Z")
        terminal.line("exit 7")
        assert terminal.wait_for_end() == 7


def test_the_list_is_in_the_chat_too(home: Path, gguf_model: Path) -> None:
    with Terminal("-m", gguf_model, home=home) as terminal:
        terminal.wait_for(READY)
        terminal.line("/sessions")
        terminal.wait_for(r"Enter picks")
        terminal.type("nothing like it\r")
        terminal.wait_for("nothing fits")
        terminal.type(ESCAPE)
        terminal.wait_for(r"› /sessions\s+›")
        terminal.line("/load")
        terminal.wait_for(r"Enter picks")
        terminal.type(DOWN + DOWN + UP + "\r")
        terminal.wait_for(r"› Why\?\s[\s\S]*Because of planets\s+it was held with .*\n›")
        end = r"They are planets\n\n› Why\?\n── model\nBecause of"
        terminal.line("/history 3")
        terminal.wait_for(rf"/history 3\n── model\n{end}")
        terminal.line("/history")
        terminal.wait_for(rf"/history\n› What about planets\?\n── model\n{end}")
        terminal.line("/search OF  tomatoes")
        terminal.wait_for(r"about-0 .*\n  Because of tomatoes")
        assert not re.search(r"about-[12] .*\n  Because", terminal.text)
        terminal.line("/search cucumbers")
        terminal.wait_for(r"/search: no conversation says 'cucumbers'")


def test_the_chosen_row_is_on_a_small_screen(home: Path, gguf_model: Path) -> None:
    with Terminal("--resume", "-m", gguf_model, home=home, size=(60, 4)) as terminal:
        terminal.wait_for(r"› .*about-0")
        for keys, name in ((DOWN, "about-1"), (DOWN, "about-2"), (UP, "about-1")):
            terminal.type(keys)
            terminal.wait_for(rf"› [^\n]*{name}(?=[^›]*Enter picks[^\n]*\s*\Z)")


@pytest.mark.parametrize("columns", [40, 80])
@pytest.mark.parametrize("mode", ["--plain", "--no-plain"])
def test_what_a_search_finds_is_visible(
    columns: int, mode: str, tmp_path: Path, gguf_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / ".local/share"))
    for before in ("words " * 20, "言葉 " * 20, "ß" * 100 + " "):
        conversation = Conversation()
        conversation.add(Message("user", f"{before}Cucumbers {'and more words ' * 20}"))
        saved(conversation)  # with a name of its own, which is long
    flags = () if mode == "--no-plain" else (mode,)
    size = (columns, 40)
    with Terminal(*flags, "-m", gguf_model, home=tmp_path, size=size) as terminal:
        terminal.wait_for(r"random")
        terminal.line("/search cucumbers")
        terminal.wait_for(r"goes on with one")
        assert len(re.findall(r"(?m)^  ….* Cucumbers and .*…$", terminal.text)) == 3


@pytest.mark.parametrize(
    ("flags", "columns", "shown"),
    [
        ((), 40, r"(?m)^. {3}\d{4}-\d\d-\d\d \d\d:\d\d +1  Words of "),
        (("--plain",), 80, r"(?m)^ +\d{4}-\d\d-\d\d-\d{6}-\S+ +1 .* Words of a long questi"),
    ],
)
def test_a_list_shows_how_those_begin_that_have_no_name_of_their_own(
    flags: tuple[str, ...], columns: int, shown: str, home: Path, gguf_model: Path
) -> None:
    conversation = Conversation()
    conversation.add(Message("user", "Words of a long question about many things"))
    saved(conversation)
    with Terminal(*flags, "-m", gguf_model, home=home, size=(columns, 40)) as terminal:
        terminal.wait_for(r"random")
        terminal.line("/sessions")
        assert re.search(shown, terminal.wait_for(r"Enter picks|goes on with one"))
        assert "about-0 " in terminal.text


def test_a_plain_chat_lists_the_latest_twenty(home: Path, gguf_model: Path) -> None:
    for age in range(3, 23):
        conversation = Conversation()
        conversation.add(Message("user", "more"))
        path = saved(conversation, f"about-{age:02}")
        os.utime(path, (10**9 - 3600 * age, 10**9 - 3600 * age))
    with Terminal("--plain", "-m", gguf_model, home=home) as terminal:
        terminal.wait_for(r"random")
        terminal.line("/load")
        terminal.wait_for(r"and 3 earlier ones: /search WORDS finds them\n/load NAME")
        assert re.findall(r"(?m)^ +about-(\d+)", terminal.text) == ["0", "1", "2"] + [
            f"{age:02}" for age in range(3, 20)
        ]


def test_nothing_is_picked_where_the_cursor_cannot_move(home: Path, gguf_model: Path) -> None:
    why = r"--resume: no name is given: llama-chat sessions lists them"
    with Terminal("--resume", "--plain", "-m", gguf_model, home=home) as terminal:
        terminal.wait_for(why)
        assert terminal.wait_for_end() == 2
    with Terminal("--resume", "-m", gguf_model, home=home, TERM="dumb") as terminal:
        terminal.wait_for(why)
        assert terminal.wait_for_end() == 2
    assert run("--resume", "-m", gguf_model, home=home, stdin=b"hello").status == 2
