"""Control characters in the input: the terminal gets none, and the text that is sent has all."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.terminal import CTRL_C, CTRL_R, READY, UP, Terminal
from llama_chat.terminal.sanitizer import BIDI_CONTROLS, REPLACEMENTS, restored, sanitize

HOSTILE = f"a{BIDI_CONTROLS}b\x1b]0;owned\x07c\x9b31m\x9d\x85\x00\x08\x7fd"
SHOWN = sanitize(HOSTILE)


@contextmanager
def chat(model: Path, home: Path, *flags: str) -> Iterator[Terminal]:
    """A chat, whose output is checked at the end."""
    more = ("--max-tokens", "1", *flags)  # it is cut off, unless it has no token at all
    with Terminal("-m", model, *more, home=home, COLORFGBG="15;0") as terminal:
        terminal.wait_for(READY.replace("›", r"\n?[›>]"))
        yield terminal
        text = terminal.raw.decode("utf-8", "surrogateescape")
        assert not {*text} & {*REPLACEMENTS} - {"\x1b", "\r", "\x08"}
        assert "\x1b]" not in text  # no window title, no clipboard, no question


def sent(terminal: Terminal, home: Path) -> list[str]:
    """Return the messages of the user."""
    terminal.line(f"/export {home}/sent.json")
    terminal.wait_for(r"written:")
    dialog = json.loads((home / "sent.json").read_text())
    return [message["content"] for message in dialog if message["role"] == "user"]


def write_dialog(home: Path, text: str) -> Path:
    path = home / "dialog.json"
    reply = {"role": "assistant", "content": "Well."}
    path.write_text(json.dumps([{"role": "user", "content": text}, reply]))
    return path


def write_history(home: Path, *lines: str) -> None:
    path = home / ".local/state/llama-chat/history"
    path.parent.mkdir(parents=True)
    path.write_text("".join(f"\n# 2026-01-01\n+{line}\n" for line in lines))


@pytest.mark.parametrize("flags", [(), ("--plain",)])
def test_a_loaded_message_is_edited(
    flags: tuple[str, ...], gguf_model: Path, tmp_path: Path
) -> None:
    with chat(gguf_model, tmp_path, *flags) as terminal:
        terminal.line(f"/load {write_dialog(tmp_path, HOSTILE)}")
        terminal.wait_for(r"Well\.")
        terminal.line("/edit")
        terminal.wait_for(rf"message 1[\s\S]*[›>] {re.escape(SHOWN)}")
        terminal.line("!")
        terminal.wait_for("cut off|ended")
        assert sent(terminal, tmp_path) == [HOSTILE + "!"]


@pytest.mark.parametrize("flags", [(), ("--plain",)])
def test_a_line_of_the_history_comes_back(
    flags: tuple[str, ...], gguf_model: Path, tmp_path: Path
) -> None:
    write_history(tmp_path, HOSTILE)
    with chat(gguf_model, tmp_path, *flags) as terminal:
        terminal.type(UP)
        terminal.wait_for(rf"[›>] {re.escape(SHOWN)}")
        terminal.type("\r")
        terminal.wait_for("cut off|ended")
        assert sent(terminal, tmp_path) == [HOSTILE]


def test_a_suggestion_is_accepted_and_a_search_finds(gguf_model: Path, tmp_path: Path) -> None:
    line = HOSTILE.replace("\x85", "")  # a suggestion is one line, and that ends it
    write_history(tmp_path, f"other {line}", f"same {line}")
    with chat(gguf_model, tmp_path) as terminal:
        terminal.type("same")
        terminal.wait_for(rf"› same {re.escape(sanitize(line))}")
        terminal.type(CTRL_C + CTRL_R)
        terminal.wait_for("I-search")
        terminal.paste("othe\u202e")
        terminal.wait_for("othe\ufffd")
        terminal.type("\x08")
        terminal.wait_for(rf"› other {re.escape(sanitize(line))}")
        terminal.type("\r\r")
        terminal.wait_for("cut off|ended")
        assert sent(terminal, tmp_path) == [f"other {line}"]


def test_a_paste_is_sent_as_it_is(gguf_model: Path, tmp_path: Path) -> None:
    with chat(gguf_model, tmp_path) as terminal:
        terminal.paste(HOSTILE)
        os.write(terminal.descriptor, b"\xff")  # a lone surrogate
        terminal.wait_for(rf"› {re.escape(SHOWN)}\ufffd")
        terminal.type("\x7f\r")
        terminal.wait_for("cut off|ended")
        assert sent(terminal, tmp_path) == [HOSTILE]


def test_the_names_of_files_in_the_toolbar_and_in_completions(
    gguf_model: Path, tmp_path: Path
) -> None:
    name = HOSTILE.replace("\x00", "")
    model = tmp_path / f"{name}.gguf"
    model.symlink_to(gguf_model)
    prompts = tmp_path / ".config/llama-chat/prompts"
    prompts.mkdir(parents=True)
    for stem in (f"one {name}", f"two {name}"):
        (prompts / f"{stem}.txt").write_text("x")
    shown = re.escape(sanitize(name))
    with chat(model, tmp_path) as terminal:
        terminal.wait_for(rf" {shown} · context")
        terminal.type("/prompt one")
        terminal.wait_for(rf"/prompt one\s+one {shown}")
        terminal.type("\t")
        terminal.wait_for(rf"› /prompt one {shown}")
        terminal.type(CTRL_C + f"/file {prompts}/\t")
        terminal.wait_for(rf'› /file "{prompts}/one {shown}\.txt"')


def test_what_was_edited_has_the_text_around_the_edit() -> None:
    text = "\u202eone\x00 two\u202c"
    shown = sanitize(text)
    assert restored(shown, text) == text
    assert restored("x" + shown, text) == "x" + text
    assert restored(shown + "x", text) == text + "x"
    assert restored("x" + shown + "x", text) == "x" + shown + "x"
    assert restored(shown.replace("one", "1"), text) == text.replace("one", "1")
    assert restored(shown[2:], text) == text[2:]
    assert restored("", text) == ""
    assert restored("other", text) == "other"
    assert restored("line", "") == "line"
    assert restored("aa", "aaa") == "aa"
