"""Colours: none where none are wanted, and none that a theme may hide."""

import json
import re
from pathlib import Path

import pytest

from harness.terminal import CTRL_C, CTRL_R, READY, Terminal, row
from llama_chat.terminal.theme import Background, substitutes
from tests.markdown_output import formatted

REPLY = """\
# Title

`code`, **bold** and [a link](https://e.org)

> - quoted

| a | b |
|---|---|
| 1 | 2 |

```python
class A:
    def f(self): return "text", 1  # comment
```
"""


def use_all_colors(terminal: Terminal, home: Path) -> None:
    """Use everything that has colours, up to a suggestion that is on the screen."""
    dialog = [{"role": "user", "content": "x"}, {"role": "assistant", "content": REPLY}]
    (home / "dialog.json").write_text(json.dumps(dialog))
    terminal.wait_for(READY)
    terminal.ask(f"/load {home}/dialog.json", "return")
    terminal.ask("hello there", "\n\n(?=›)")
    terminal.ask("/why 1", "\n\n(?=›)")
    terminal.paste("long\r" * 21)
    terminal.wait_for("(long\n.*){21}")
    terminal.type("\r")
    terminal.wait_for(r"› long … \(22 lines, 105 characters\)[\s\S]*\n\n›")
    terminal.ask("/nonsense", "no such command")
    terminal.type(CTRL_C)
    terminal.type("/te")
    terminal.wait_for("temperature +Randomness")
    terminal.type(CTRL_R + "the")
    terminal.wait_for("I-search")
    terminal.type(CTRL_C)
    terminal.wait_for(r"›.*/te.*\n")
    terminal.type(CTRL_C + CTRL_C)
    terminal.wait_for(r"Ctrl-C again.*\n›")
    terminal.type("no\xa0break")
    terminal.wait_for("› no.break")
    terminal.type(CTRL_C)
    terminal.wait_for(r"›\n\s*random")
    terminal.type("hello")
    terminal.wait_for(r"Ctrl-C again[\s\S]*› hello there\n")


def colors(raw: bytes) -> set[int]:
    """Return the codes of all colours that were written."""
    codes: set[int] = set()
    for sequence in re.findall(rb"\x1b\[([0-9;]*)m", raw):
        numbers = [int(number or 0) for number in sequence.split(b";")]
        codes |= {n for n in numbers if 30 <= n <= 38 or 40 <= n <= 48 or 90 <= n <= 107}
    return codes


@pytest.mark.parametrize("way", ["--color", "NO_COLOR", "--theme"])
def test_without_colours_there_are_none_and_a_suggestion_is_underlined(
    way: str, gguf_model: Path, tmp_path: Path
) -> None:
    more = {"--color": ["--color", "never"], "--theme": ["--theme", "none"]}.get(way, [])
    no_color = "1" if way == "NO_COLOR" else ""
    flags: list[str | Path] = ["-m", gguf_model, "--max-tokens", "4", "--temperature", "0", *more]
    with Terminal(*flags, home=tmp_path, TERM="xterm-256color", NO_COLOR=no_color) as terminal:
        use_all_colors(terminal, tmp_path)
        rows = [terminal.screen.buffer[y] for y in range(terminal.screen.lines)]
        *_, line = (cells for cells in rows if row(cells) == "› hello there")
        assert colors(terminal.raw) == set()
    assert [line[x].underscore for x in range(2, 13)] == [False] * 5 + [True] * 6
    assert b"\x1b[1m" in terminal.raw


def test_no_colour_is_one_that_some_theme_hides(gguf_model: Path, tmp_path: Path) -> None:
    """Such as bright black and yellow with Solarized."""
    flags = ("-m", gguf_model, "--max-tokens", "4", "--temperature", "0", "--theme", "dark")
    with Terminal(*flags, home=tmp_path, TERM="xterm-256color") as terminal:
        use_all_colors(terminal, tmp_path)
        used = colors(terminal.raw)
    assert used & {32, 35, 36, 94}
    assert not used & {33, 43, 90, 93, 100, 103, 38, 48}
    assert re.search(rb"\x1b\[0;2m there", terminal.raw)


def test_themes(monkeypatch: pytest.MonkeyPatch) -> None:
    def used(theme: str) -> set[int]:
        styles = substitutes(theme, Background())
        return colors(formatted(REPLY, color=True, substitutes=styles).encode())

    assert 94 in used("dark")
    assert used("light") & {34, 36, 94} == {34}
    for colorfgbg, theme in (
        ("15;0", "dark"),
        ("0;15", "light"),
        ("0;default;7", "light"),
        ("12;8", "dark"),
    ):
        monkeypatch.setenv("COLORFGBG", colorfgbg)
        assert used("auto") == used(theme)
    for unknown in ("", "default;default", "15;x"):
        monkeypatch.setenv("COLORFGBG", unknown)
        assert not used("auto") & {34, 94}
