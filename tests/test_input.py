"""Typing: lines, pastes, keys, history, completion, the editor."""

import re
import sys
from pathlib import Path

import pytest

from harness.terminal import (
    CTRL_C,
    CTRL_D,
    CTRL_G,
    CTRL_J,
    CTRL_L,
    CTRL_R,
    ESCAPE,
    READY,
    UP,
    Terminal,
)
from tests.test_background import QUESTION

TAB = "\t"


def test_lines_are_written_without_being_sent(chat: Terminal) -> None:
    chat.type("first" + CTRL_J + "  second" + ESCAPE + "\r" + "third")
    chat.wait_for(r"› first\n    second\n  third")
    assert "cut off" not in chat.text
    chat.type("\r")
    chat.wait_for(r"cut off after 30")
    # A paste ends in a newline and is still not sent.
    chat.type("\x1b[200~def f():\n    return 1\n\x1b[201~")
    chat.wait_for(r"› def f\(\):\n      return 1\n")
    assert chat.text.count("cut off") == 1


def test_ctrl_c_clears_the_line_and_twice_on_an_empty_one_leaves(chat: Terminal) -> None:
    chat.type("half a thought")
    chat.wait_for(r"› half a thought")
    chat.type(CTRL_C)
    chat.wait_for(r"›\s*\n")
    chat.type(CTRL_C)
    chat.wait_for(r"Ctrl-C again or Ctrl-D leaves")
    chat.type(CTRL_C)
    assert chat.wait_for_end() == 0


def test_a_second_ctrl_c_leaves_before_the_input_is_open_again(chat: Terminal) -> None:
    chat.type(CTRL_C)
    chat.take_until(b"Ctrl-C again or Ctrl-D leaves")
    chat.type(CTRL_C)  # before the message is drawn
    assert chat.wait_for_end() == 0


def test_tab_completes_commands_and_values(chat: Terminal) -> None:
    chat.type("/und\t")
    chat.wait_for(r"› /undo")
    chat.type(CTRL_C)
    chat.type("/prompt few_shot/tr\t")
    chat.wait_for(r"› /prompt few_shot/translate_to_french")


def test_what_is_typed_during_a_reply_waits_for_the_next_input(chat: Terminal) -> None:
    chat.line("One fact about cats.")
    chat.wait_for(r"about cats\.\n\S+ \S+")
    chat.type("/temperature 0.75\rhalf a")
    chat.wait_for(r"(?s)cut off after 30 tokens;.*› /temperature 0.75\n.*is 0.75")
    chat.wait_for(r"› half a")


def test_a_paste_of_any_length_is_one_message(babble: Terminal, tmp_path: Path) -> None:
    """Blank lines and indentation are kept, and a paste that ends in a newline is not sent."""
    lines = ["def f(x):", "", "    if x:", "\t\treturn 1", "", "", "    return 2"]
    babble.paste("\r".join(lines) + "\r")
    babble.wait_for(r"return 2\n")
    assert "cut off" not in babble.text
    babble.type("\r")
    babble.wait_for(r"cut off after 8")
    babble.ask(f"/export {tmp_path}/pasted.json", "written")
    text = (tmp_path / "pasted.json").read_text()
    assert "def f(x):\\n\\n    if x:\\n\\t\\treturn 1\\n\\n\\n    return 2" in text


@pytest.mark.parametrize("n_lines", [20, 21, 300])
def test_a_paste_of_over_20_lines_is_echoed_by_its_first_line_and_size(
    n_lines: int, babble: Terminal, tmp_path: Path
) -> None:
    lines = [f"row\x1b {number}" for number in range(n_lines)]
    babble.paste("\r".join(lines))
    babble.wait_for(rf"row␛ {n_lines - 1}\n")
    babble.type("\r")
    babble.wait_for(r"cut off after 8|not sent|leave no space")
    echoed = re.search(r"›([\s\S]*?)── model|›([\s\S]*?)conversation:", babble.text)
    assert echoed
    if n_lines > 20:
        size = sum(map(len, lines)) + n_lines - 1
        assert (
            echoed[1] or echoed[2]
        ).strip() == f"row␛ 0 … ({n_lines} lines, {size:,} characters)"
    else:
        assert "row␛ 19" in echoed[0]
    assert len(re.findall("row␛ 0", babble.text)) == 1


def test_a_long_message_that_is_refused_stays_below_the_reason(
    gguf_model: Path, tmp_path: Path
) -> None:
    flags = ("-m", gguf_model, "--context", "64", "--max-tokens", "8")
    with Terminal(*flags, home=tmp_path, size=(80, 14)) as chat:
        chat.wait_for(READY)
        chat.paste("\r".join(f"a line of precious text, number {n}" for n in range(18)))
        chat.wait_for(r"number 17\n")
        chat.type("\r")
        chat.wait_for(r"number 17\n+ conversation: .*tokens")
        chat.type("!")
        chat.wait_for(r"number 16\n  a line of precious text, number 17!\n+ .*does not fit")


def test_history_is_searched_and_comes_back_in_the_next_session(
    gguf_model: Path, tmp_path: Path
) -> None:
    with Terminal("-m", gguf_model, home=tmp_path) as first:
        first.wait_for(READY)
        first.ask("/system remember me", "system: remember me")
        first.ask("/top-k 7", "top-k is 7")
        first.type(CTRL_D)
        first.wait_for_end()
    with Terminal("-m", gguf_model, home=tmp_path) as second:
        second.wait_for(READY)
        second.type(UP)
        second.wait_for(r"› /top-k 7")
        second.type(CTRL_C)
        second.wait_for_quiet()
        second.type(CTRL_R)
        second.wait_for(r"I-search")
        second.type("remem")
        second.wait_for(r"/system remember me")
        second.type("\r")
        second.type("\r")
        second.wait_for(r"system: remember me")


def test_control_g_opens_the_editor_and_its_text_comes_back(
    gguf_model: Path, tmp_path: Path
) -> None:
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nprintf "one\\ntwo from the editor" > "$1"\n')
    editor.chmod(0o755)
    with Terminal("-m", gguf_model, home=tmp_path, EDITOR=str(editor), VISUAL="") as terminal:
        terminal.wait_for(READY)
        terminal.type("draft" + CTRL_G)
        terminal.wait_for(r"› one\n  two from the editor")
        assert "cut off" not in terminal.text


def test_control_l_clears_the_screen_and_keeps_what_is_typed(babble: Terminal) -> None:
    babble.type("half a thought" + CTRL_L)
    babble.wait_for(r"(?s)\A› half a thought")
    assert "llama-chat 0.1.0" not in babble.shown


def test_a_menu_describes_the_commands_that_match_the_typed_text(babble: Terminal) -> None:
    babble.type("/te")
    babble.wait_for(r"temperature\s+Randomness")
    babble.wait_for(r"template\s+Show or choose")
    babble.type("m" + TAB)
    babble.wait_for(r"› /temperature")
    babble.type(TAB)
    babble.wait_for(r"› /template")


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("/overflow dr", "/overflow drop-oldest"),
        ("/set overf", "/set overflow"),
        ("/set markdown ne", "/set markdown never"),
        ("/help vers", "/help versions"),
        ("/copy c", "/copy code"),
        ("/template chat", "/template chatml"),
    ],
)
def test_tab_completes_the_argument_of_a_command(
    typed: str, completed: str, babble: Terminal
) -> None:
    babble.type(typed + TAB)
    babble.wait_for(rf"› {re.escape(completed)}")


def test_tab_completes_paths_conversations_models_and_numbers(
    gguf_model: Path, tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "ünïque file.txt").write_text("hello")
    model = tmp_path / ".local/share/llama-chat/models/my-model/weights.gguf"
    model.parent.mkdir(parents=True)
    model.symlink_to(gguf_model)
    with Terminal(
        "-m", gguf_model, "--temperature", "0", "--max-tokens", "4", home=tmp_path
    ) as terminal:
        terminal.wait_for(READY)
        terminal.ask("hello", "cut off|ended")
        terminal.ask("/save a name", "saved as a name")
        terminal.type(f"/file {notes}/ün" + TAB)
        terminal.wait_for(r"ünïque file\.txt")
        terminal.type(CTRL_C + "/load a n" + TAB)
        terminal.wait_for(r"› /load a name")
        terminal.type(CTRL_C + "/model my" + TAB)
        terminal.wait_for(r"› /model my-model")
        terminal.type(CTRL_C + "/branch ")
        terminal.wait_for(r"-\s+the one before")
        terminal.type(CTRL_C + "/edit ")
        terminal.wait_for(r"1\s+hello")


def test_completion_of_a_hostile_name_draws_no_control_characters(
    gguf_model: Path, tmp_path: Path
) -> None:
    prompts = tmp_path / ".config/llama-chat/prompts"
    prompts.mkdir(parents=True)
    (prompts / "evil.toml").write_text('description = "\\u001b]0;owned\\u0007"\nsystem = "x"\n')
    with Terminal("-m", gguf_model, home=tmp_path) as terminal:
        terminal.wait_for(READY)
        terminal.type("/prompt ev")
        terminal.wait_for(r"evil\s+\S*\]0;owned")
        assert b"\x1b]0;" not in terminal.raw


def test_the_right_arrow_accepts_a_suggestion_from_history(babble: Terminal) -> None:
    babble.ask("/top-k 7", "top-k is 7")
    babble.type("/top-k")
    babble.wait_for(r"› /top-k 7\s*$|› /top-k 7\n")
    babble.type("\x1b[C\r")
    babble.wait_for(r"(?s)top-k is 7.*top-k is 7")


def test_typed_keys_of_an_unfinished_paste_end_marker_do_no_harm(babble: Terminal) -> None:
    babble.paste("before \x1b[201~ after")
    babble.wait_for(r"› before")
    babble.type("\r")
    babble.wait_for(r"cut off")
    assert b"\x1b]" not in babble.raw.replace(QUESTION, b"")


def test_keys_typed_while_text_is_written_above_are_typed_after_it(tmp_path: Path) -> None:
    released = tmp_path / "released"
    command = [sys.executable, "-m", "tests.play_input"]
    with Terminal(released, home=tmp_path, command=command) as terminal:
        terminal.wait_for("writing")
        terminal.line("hello")
        released.touch()
        assert terminal.wait_for_end() == 0
        assert "sent: 'hello'" in terminal.text
        assert terminal.text.count("hello") == 2  # in the input, and as printed


def test_a_menu_comes_up_for_what_is_typed_while_another_is_listed(tmp_path: Path) -> None:
    held = tmp_path / "held"
    command = [sys.executable, "-m", "tests.play_menu"]
    with Terminal(held, home=tmp_path, command=command) as terminal:
        terminal.wait_for("toolbar")
        terminal.type("/slow")
        terminal.wait_until(held.exists)
        terminal.type(CTRL_C + "/b")
        terminal.wait_for("› /b\n")
        held.unlink()
        terminal.wait_for("branch +listed")
