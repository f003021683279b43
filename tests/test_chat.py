"""The chat as a user sees it: a real terminal, a real model, the screen."""

import json
import re
import signal
import stat
import termios
from pathlib import Path

import pytest

from harness.terminal import CTRL_C, CTRL_D, READY, Terminal

TOOLBAR = r"context (\d+)/(\d+)"


def used(chat: Terminal) -> int:
    """Return the number of tokens that the toolbar shows."""
    found = re.findall(TOOLBAR, chat.wait_for(TOOLBAR))
    return int(found[-1][0])


def test_a_first_conversation(chat: Terminal) -> None:
    chat.line("What is the capital of France?")
    text = chat.wait_for(r"tok/s · first in \d")
    assert re.search(r"› What is the capital of France\?\n── model\n.*Paris", text)
    before = used(chat)
    chat.line("Write a long story about a river.")
    chat.wait_for(r"cut off after 30 tokens; /continue goes on")
    chat.line("/stats")
    text = chat.wait_for(r"cached_tokens\s+\d+")
    assert re.search(rf"cached_tokens\s+{before}\n", text)
    chat.type(CTRL_D)
    assert chat.wait_for_end() == 0


def test_ctrl_c_stops_a_reply_and_keeps_its_text(chat: Terminal) -> None:
    chat.ask("/max-tokens 100000", "max-tokens is 100000")
    chat.line("Write a long story about a river.")
    chat.wait_for(r"a long story about a river\.\n(\S.*\n)*\S.{40}")
    chat.type(CTRL_C)
    chat.wait_for(r"stopped after \d+ tokens; the text is kept")
    chat.line("/context")
    text = chat.wait_for(r"(?s)assistant\s+\d+\s+\d+\s+\S.*tokens, \d+ free")
    row = re.search(r"assistant\s+(\d+)\s+(\d+)", text)
    assert row is not None
    assert row[1] == row[2] != "0"
    chat.ask("/max-tokens 5", "max-tokens is 5")
    chat.line("Go on.")
    chat.wait_for(r"(?s)Go on\.\n.*cut off after 5 tokens")


def test_undo_retry_clear_and_context(chat: Terminal) -> None:
    chat.line("One fact about cats.")
    chat.wait_for(r"cut off after 30")
    chat.line("/retry")
    chat.wait_for(r"version 2; the earlier ones are kept")
    chat.line("/undo")
    chat.wait_for(r"undone: One fact about cats\.")
    chat.line("/context")
    chat.wait_for(r"0 of 8192 tokens, 8192 free")
    chat.line("/undo")
    chat.wait_for(r"/undo: there is no message yet")
    chat.line("/clear")
    chat.wait_for(r"a new conversation")


def test_settings_change_within_their_range_only(chat: Terminal) -> None:
    chat.line("/temperature 0.25")
    chat.wait_for(r"temperature is 0.25")
    chat.line("/temperature 99")
    chat.wait_for(r"/temperature: '99' does not fit: give a number from 0 to 10")
    chat.wait_for(r"› /temperature 99")  # kept, to be corrected
    chat.type(CTRL_C)
    chat.line("/top-p")
    chat.wait_for(r"top-p is 0.9")
    chat.line("/tempe")
    chat.wait_for(r"(?s)/tempe\n.*temperature is 0.25")
    chat.line("/seed 42")
    chat.wait_for(r"seed is 42")
    chat.line("/min-p 0.1")
    chat.wait_for(r"min-p is 0.1")


def test_a_mistyped_command_stays_and_a_path_is_a_message(chat: Terminal) -> None:
    chat.line("/tempreture 0.5")
    chat.wait_for(r"/tempreture: no such command: did you mean /temperature\?")
    chat.wait_for(r"› /tempreture 0.5\s*$|› /tempreture 0\.5\s*\n")
    chat.type(CTRL_C)
    chat.line("/etc/hosts is a file")
    chat.wait_for(r"(?s)hosts is a file\n.*cut off after 30")
    chat.line("//context is a word")
    chat.wait_for(r"(?s)/context is a word\n.*cut off after 30")


def test_system_and_prompt_files_begin_the_conversation(chat: Terminal) -> None:
    chat.line("/system You are a pirate.")
    chat.wait_for(r"system: You are a pirate\.")
    chat.line("/prompt translate_to_french")
    text = chat.wait_for(r"laptop → ordinateur portable")
    assert "system: Translate English to French:" in text
    chat.wait_for_quiet()
    chat.line("/context")
    text = chat.wait_for(r"(?s)system\s+\d+.*user\s+\d+.*tokens, \d+ free")
    rows = re.findall(r"(?m)^ *\d* *(system|user|assistant) +(\d+) +(\d+)", text)
    assert [row[0] for row in rows] == ["system", "user", "assistant", "user", "assistant"]
    assert all(tokens == cached for _, tokens, cached in rows)  # prefilled in the background
    chat.ask("/temperature", r"temperature is 0\.0")
    chat.line("/prompt off")
    chat.wait_for(r"no prompt file")
    chat.line("/system")
    chat.wait_for(r"(?s)no prompt file\n.*system: You are a pirate\.")
    chat.line("/system off")
    chat.wait_for(r"no system message")
    chat.line("/prompt zero_shot/quantum_entanglement")
    chat.wait_for(r"(?s)sent as a message\n.*cut off after 30")


def test_the_toolbar_counts_the_message_being_typed(chat: Terminal) -> None:
    assert used(chat) == 0
    chat.type("one two three four five")
    chat.wait_for(r"context 1\d/8192")


SPEED = r"\d+(\.\d)? tok/s · \d+\.\d\d s"


def test_a_narrow_toolbar_is_shortened_step_by_step_and_cuts_no_number(
    gguf_model: Path, tmp_path: Path
) -> None:
    model = tmp_path / "a-model-with-a-long-name.Q4_K_M.gguf"
    model.symlink_to(gguf_model)
    flags = ("-m", model, "--temperature", "0", "--max-tokens", "8")
    with Terminal(*flags, home=tmp_path, size=(80, 24)) as chat:
        chat.wait_for(READY)
        chat.line("hello")
        name, context = r"a-model-with\S*…", r"context \d+/\d+"
        chat.wait_for(rf"\n {name} · {context} · temp 0 · top-p \S+ · {SPEED}\n*\Z")
        for columns, shown in (
            (62, rf"a-model-\S*… · {context} · {SPEED}"),
            (40, rf"a-model-\S*… · {context}"),
            (26, context),
            (12, ""),
        ):
            chat.resize(columns, 24)
            chat.wait_for(rf"\A(?s:.*)›\n+ ?{shown}\n*\Z")


def test_exit_leaves_the_terminal_as_it_was(starter_model: Path, tmp_path: Path) -> None:
    with Terminal("-m", starter_model, home=tmp_path) as terminal:
        before = termios.tcgetattr(terminal.descriptor)
        terminal.wait_for(READY)
        assert termios.tcgetattr(terminal.descriptor) != before
        terminal.line("/exit")
        assert terminal.wait_for_end() == 0
        assert terminal.raw.rfind(b"\x1b[?2004l") > terminal.raw.rfind(b"\x1b[?2004h")
    history = tmp_path / ".local/state/llama-chat/history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert stat.S_IMODE(history.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_signals_at_the_prompt_restore_the_terminal(
    number: int, status: int, chat: Terminal
) -> None:
    chat.child.kill(number)
    assert chat.wait_for_end() == status
    assert chat.raw.rfind(b"\x1b[?2004l") > chat.raw.rfind(b"\x1b[?2004h")
    assert "Traceback" not in chat.text


def test_a_reply_wider_than_the_screen_is_broken_between_words_or_by_the_terminal(
    starter_model: Path, tmp_path: Path
) -> None:
    flags = ("-m", starter_model, "--temperature", "0", "--max-tokens", "40")
    with Terminal(*flags, home=tmp_path, size=(40, 40)) as terminal:
        terminal.wait_for(READY)
        terminal.line("Tell me about cats.")
        terminal.wait_for(r"cut off")
        begun = len(terminal.raw)
        terminal.ask("/wrap terminal", "wrap")
        terminal.ask("/retry", "cut off")
    by_us, by_terminal = (
        re.sub(
            rb"\x1b7.*?\x1b8|\x1bD|\x1b\[[0-9;?]*\w",
            b"",
            raw.partition(b"cut off")[0].rpartition(line)[2],
        )
        for raw, line in ((terminal.raw, b"me about cats."), (terminal.raw[begun:], b"/retry"))
    )
    assert max(map(len, by_us.split(b"\r\n"))) <= 40
    assert max(map(len, by_terminal.split(b"\r\n"))) > 60


def test_without_a_model_the_starter_is_offered(tmp_path: Path) -> None:
    with Terminal(home=tmp_path, size=(160, 40)) as terminal:
        terminal.wait_for(r"Download SmolLM2-135M-Instruct \(98 MB, licence Apache-2.0\)\? \[Y/n\]")
        terminal.line("n")
        text = terminal.wait_for(r"error: model: none is configured")
        assert "llama-chat pull smollm2-135m" in text
        assert terminal.wait_for_end() == 3


def test_a_plain_terminal_and_no_color_get_no_color(starter_model: Path, tmp_path: Path) -> None:
    with Terminal("-m", starter_model, home=tmp_path, NO_COLOR="1") as terminal:
        terminal.wait_for(READY)
        terminal.line("/system hello")
        terminal.wait_for("system: hello")
    assert not re.search(rb"\x1b\[(3[0-7]|9[0-7])m", terminal.raw)


def test_nothing_is_drawn_while_nothing_changes(chat: Terminal) -> None:
    chat.ask("What is the capital of France?", r"Paris\.")
    chat.wait_for(r"first in \d")
    chat.wait_for_quiet()
    assert chat.watch_for(2.0) == b""


def test_a_resize_in_the_middle_of_a_reply_draws_nothing_twice(
    starter_model: Path, tmp_path: Path
) -> None:
    flags = ("-m", starter_model, "--temperature", "0", "--max-tokens", "120")
    with Terminal(*flags, home=tmp_path) as terminal:
        terminal.wait_for(READY)
        terminal.line("Write a story about a river.")
        terminal.wait_for(r"about a river\.\n(\S.*\n)*\S.{40}")
        terminal.resize(60, 30)
        terminal.wait_for(r"cut off after 120 tokens")
        terminal.wait_for(r"context \d+/8192")
        terminal.line(f"/export {tmp_path / 'story.json'}")
        terminal.wait_for(r"written:")
    reply = json.loads((tmp_path / "story.json").read_text())[1]["content"]
    shown = terminal.raw.partition(b"about a river.")[2].partition(b"cut off")[0]
    shown = re.sub(rb"\x1b7.*?\x1b8", b"", shown)  # a status, which is erased again
    written = re.sub(rb"\x1b(?:D|\[[0-9;?]*[A-Za-z])|\r", b"", shown).decode()
    assert "".join(reply.split()) in "".join(written.split())
    assert "".join(written.split()).count("".join(reply.split())) == 1


def test_a_long_message_shows_progress_of_its_prefill(starter_model: Path, tmp_path: Path) -> None:
    flags = ("-m", starter_model, "--max-tokens", "4", "--dtype", "float32", "--threads", "1")
    slow = {"LLAMA_CHAT_KERNEL": "torch"}  # which takes long enough on any processor
    with Terminal(*flags, home=tmp_path, size=(200, 40), **slow) as terminal:
        terminal.wait_for(READY)
        terminal.paste("What a long text this is. " * 400 + "Why?")
        terminal.type("\r")
        terminal.wait_for(r"cut off after 4 tokens")
    bar = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", terminal.raw)
    assert re.search(rb"Reading \S+ +\d+% (\d:\d\d:\d\d|-:--:--)", bar)
    assert b"Reading" not in terminal.shown.encode()


def test_leaving_prints_the_command_that_resumes(chat: Terminal) -> None:
    chat.ask("One fact about cats.", r"cut off")
    chat.type(CTRL_D)
    assert chat.wait_for_end() == 0
    assert re.search(r"saved: llama-chat --resume \S+-one-fact-about-cats", chat.text)


@pytest.mark.parametrize("markdown", ["auto", "never"])
def test_replies_are_formatted_unless_markdown_is_never(
    markdown: str, starter_model: Path, tmp_path: Path
) -> None:
    flags = ("-m", starter_model, "--temperature", "0", "--max-tokens", "40")
    with Terminal(*flags, "--markdown", markdown, home=tmp_path) as terminal:
        terminal.wait_for(READY)
        question = "Write a Python function that returns the squares of a list."
        text = terminal.ask(question, r"cut off after 40 tokens.*\n")
        assert re.search(r"(?m)^def \w+\(\w+\):\n    \S", text)
        assert ("```" in text) == (markdown == "never")
        # A reply that is continued within a code block stays in it.
        terminal.ask("/continue", r"cut off after 40 tokens|\n\n(?=›)")
        assert ("```" in terminal.text) == (markdown == "never")
        assert terminal.text.count("┌─") == terminal.text.count("└─")
    keyword = b"\x1b[35mdef\x1b[0m"
    assert (keyword in terminal.raw) == (markdown == "auto")


def test_without_colours_letters_are_still_bold(starter_model: Path, tmp_path: Path) -> None:
    dialog = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "a **b** `c`"}]
    (tmp_path / "bold.json").write_text(json.dumps(dialog))
    with Terminal("-m", starter_model, home=tmp_path, NO_COLOR="1") as terminal:
        terminal.wait_for(READY)
        terminal.ask(f"/load {tmp_path}/bold.json", r"a b c\n")
    assert b"a \x1b[1mb\x1b[0m c" in terminal.raw
