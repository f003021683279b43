"""Colours that suit the background which the terminal reports."""

import json
from pathlib import Path

import pytest

from harness.program import COMMAND
from harness.terminal import READY, Terminal
from tests.test_colors import colors

QUESTION = b"\x1b]11;?\x1b\\"
LIGHT = "\x1b]11;rgb:fdfd/f6f6/e3e3\x1b\\"
REPLY = "```python\nclass Albert: pass\n```"
DIALOG = [{"role": "user", "content": "x"}, {"role": "assistant", "content": REPLY}]


def shown_colors(terminal: Terminal) -> set[int]:
    """Return the colours of a reply with code that is shown now."""
    before = len(terminal.raw)
    terminal.ask("/history", r"Albert[\s\S]*?\n\n(?=›)")
    return colors(terminal.raw[before:])


@pytest.fixture
def chat(gguf_model: Path, tmp_path: Path) -> Terminal:
    """Open a chat that has a reply with colours."""
    (tmp_path / "dialog.json").write_text(json.dumps(DIALOG))
    return Terminal("-m", gguf_model, "--max-tokens", "4", home=tmp_path)


def test_a_terminal_is_asked_once_and_its_answer_is_never_typed(
    chat: Terminal, tmp_path: Path
) -> None:
    with chat as terminal:
        terminal.wait_for(READY)
        terminal.ask(f"/load {tmp_path}/dialog.json", "Albert")
        assert not shown_colors(terminal) & {34, 94}
        terminal.type("/his" + LIGHT + "tory\r")
        terminal.wait_for(r"(› /history\n› x\n[^›]*\n\n){2}›")
        assert shown_colors(terminal) & {34, 94} == {34}
        for answer, color in (
            ("\x1b]11;rgb:00/2b/36\x07", 94),
            ("\x1b]11;rgba:FFFF/FFFF/DDDD/FFFF\x07", 34),
            ("\x1b]11;rgb:0/0/0\x1b\\", 94),
        ):
            terminal.type(answer[:9])
            terminal.type(answer[9:])
            assert shown_colors(terminal) & {34, 94} == {color}
        terminal.line("hello")
        terminal.type(LIGHT)  # late, while the reply streams
        terminal.wait_for(r"› hello\n[\s\S]*\n\n›\n")
        assert shown_colors(terminal) & {34, 94} == {34}
        for theme in ("dark", "auto"):
            terminal.ask(f"/theme {theme}", f"theme is {theme}")
        assert shown_colors(terminal) & {34, 94} == {34}
        assert terminal.raw.count(QUESTION) == 1
        assert "rgb" not in terminal.text
        terminal.type("\x1b]x\x1b]11\r")  # Alt and a bracket, which begin the answer, too
        terminal.wait_for(r"› \]x\]11\n")


@pytest.mark.parametrize(
    ("flags", "env"),
    [
        ([], {"COLORFGBG": "15;0"}),
        ([], {"NO_COLOR": "1"}),
        ([], {"TERM": "linux"}),
        (["--theme=light"], {}),
        (["--theme=none"], {}),
        (["--plain"], {}),
    ],
    ids=str,
)
def test_a_terminal_is_not_asked_in_vain(
    flags: list[str], env: dict[str, str], gguf_model: Path, tmp_path: Path
) -> None:
    arguments = ("-m", str(gguf_model), *flags)
    with Terminal(*arguments, home=tmp_path, size=(160, 40), command=COMMAND, **env) as terminal:
        terminal.wait_for(r"template \w+\n[›>]")
        assert QUESTION not in terminal.raw
