"""A conversation that is longer than the screen is shown in the user's pager."""

import json
import re
from pathlib import Path

import pytest

from harness.terminal import CTRL_C, Terminal

SHORT, LONG = "`one`", "\n".join(f"line {n} **bold**" for n in range(60))


def opened(home: Path, model: Path, reply: str, *flags: str, **env: str) -> Terminal:
    """Open a chat with a conversation of two messages."""
    dialog = [{"role": "user", "content": "go on"}, {"role": "assistant", "content": reply}]
    (home / "dialog.json").write_text(json.dumps(dialog))
    terminal = Terminal("-m", model, "--no-save", *flags, home=home, size=(100, 30), **env)
    terminal.wait_for(r"template \w+\n[›>]")
    terminal.line(f"/load {home}/dialog.json")
    terminal.wait_for(r"read again as text\s+[›>]")
    return terminal


def test_what_is_longer_than_the_screen_is_paged(gguf_model: Path, tmp_path: Path) -> None:
    with opened(tmp_path, gguf_model, LONG, PAGER="less", LESS="-i") as terminal:
        terminal.line("/history")
        terminal.wait_for(r"› go on\n[\s\S]*line 20 bold[\s\S]*\n:$")
        assert "line 40" not in terminal.shown
        terminal.type(CTRL_C)

        def is_at_end() -> bool:
            terminal.type("G")  # again: less forgets keys that it has not read when interrupted
            return bool(re.search(r"line 59 bold\n.*END", terminal.text))

        terminal.wait_until(is_at_end)
        assert "1m" not in terminal.shown  # less shows bold text as such
        terminal.type("q")
        terminal.wait_for(r"line 59 bold\n\s*›\n")
        terminal.ask("hello", r"\n\n(?=›)")
        terminal.line("/history")
        terminal.wait_for(r"› go on\n[\s\S]*\n:$")
        terminal.vanish(3)


@pytest.mark.parametrize(
    ("reply", "pager", "plain"),
    [
        (SHORT, "true", False),
        (LONG, "", False),
        (LONG, "cat", False),
        (LONG, "/nowhere/less", False),
        (LONG, "less '", False),
        (LONG, "false", False),
        (LONG, "less", True),
    ],
)
def test_what_need_not_or_cannot_be_paged_is_written(
    reply: str, pager: str, plain: bool, gguf_model: Path, tmp_path: Path
) -> None:
    flags = ["--plain"] if plain else []
    with opened(tmp_path, gguf_model, reply, *flags, PAGER=pager) as terminal:
        terminal.line("/history")
        end = "line 59 .?.?bold" if reply == LONG else "one"
        terminal.wait_for(rf"[›>] /history\n[›>] go on\n[\s\S]*{end}[\s\S]*\n\n[›>]")


def test_a_pager_may_have_arguments(gguf_model: Path, tmp_path: Path) -> None:
    pager = f"sh -c 'cat >{tmp_path}/paged'"
    with opened(tmp_path, gguf_model, LONG, PAGER=pager, LC_ALL="C") as terminal:
        terminal.line("/history")
        terminal.wait_for(r"› /history\n\n›\n")
        paged = (tmp_path / "paged").read_text()
    assert all(f"line {n} " in paged for n in range(60))
