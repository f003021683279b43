"""``--help``: options in groups, arguments in the notation of Unix, whole summaries."""

import re
from pathlib import Path

import pytest

from harness.program import run
from llama_chat.cli.app import COMMANDS, GROUPS
from llama_chat.settings.definitions import SETTINGS

_COMMANDS = (
    *([name] for name in COMMANDS + GROUPS),
    *(["sessions", name] for name in ("list", "show", "rm", "check", "repair")),
    *(["config", name] for name in ("show", "path", "init", "edit")),
    ["models", "rm"],
)

_USAGES = {
    "ask": "[OPTIONS] [QUESTION]",
    "complete": "[OPTIONS] FILE...",
    "tokenize": "[OPTIONS] [FILE]",
    "convert": "[OPTIONS] MODEL OUT",
    "pull": "[OPTIONS] [NAME]",
    "serve": "[OPTIONS] [start|status|stop]",
    "sessions show": "[OPTIONS] NAME",
    "sessions check": "[OPTIONS] [NAME...]",
    "models": "[OPTIONS] COMMAND [ARGS]...",
}


def _help(*command: str, home: Path) -> str:
    return run(*command, "--help", home=home).out


@pytest.mark.parametrize("command", _COMMANDS, ids=" ".join)
def test_metavars_are_words_of_unix(command: list[str], tmp_path: Path) -> None:
    text = _help(*command, home=tmp_path)
    usage, name = text.partition("\n")[0], " ".join(command)
    assert usage.startswith(f"Usage: llama-chat {name} [OPTIONS]")
    if name in _USAGES:
        assert usage == f"Usage: llama-chat {name} {_USAGES[name]}"
    assert not re.search(r"\[\[|[{}…]", usage)
    assert not re.search(r"<\w+(\[\w+\])?( range)?>", text)  # a type of Python
    assert max(map(len, text.splitlines())) <= 80


def test_the_options_of_all_settings_are_under_the_headings_of_the_settings(tmp_path: Path) -> None:
    text = _help("ask", home=tmp_path)
    groups = dict.fromkeys(setting.group for setting in SETTINGS.values())
    headings = re.findall(r"^(\w+):$", text, re.MULTILINE)
    assert headings == ["Arguments", "Options", "Grammar", "Choices", *groups]
    sections = dict(zip(headings, re.split(r"^\w+:$", text, flags=re.MULTILINE)[1:], strict=True))
    for setting in SETTINGS.values():
        assert re.search(rf"^  .*{setting.flag}\b", sections[setting.group], re.MULTILINE)
    assert "--config PATH" in sections["Options"]
    assert "--help" in sections["Options"]


def test_a_few_settings_are_not_divided_into_groups(tmp_path: Path) -> None:
    text = _help("pull", home=tmp_path)
    assert re.findall(r"^(\w+):$", text, re.MULTILINE) == ["Arguments", "Options"]


def test_summaries_of_commands_are_whole_lines(tmp_path: Path) -> None:
    for command in ([], ["sessions"], ["models"], ["config"]):
        commands = _help(*command, home=tmp_path).partition("Commands:\n")[2]
        lines = commands.partition("\n\n")[0].splitlines()
        assert lines
        for line in lines:
            assert re.fullmatch(r"  \w+ +[A-Z].*[^.]\.", line), line


def test_brackets_in_texts_are_shown_as_they_are(tmp_path: Path) -> None:
    assert '{"ids": […], "pieces": […]}' in _help("tokenize", home=tmp_path)
