"""Completion in real shells, and the program's answers to the scripts in them."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.program import COMMAND, environment, run
from harness.terminal import Terminal
from llama_chat.cli.app import COMMANDS
from llama_chat.library import starter
from llama_chat.settings.definitions import SETTINGS
from tests.conftest import ROOT

PROTOCOLS = ("bash", "zsh", "fish")
SHELLS = [
    pytest.param(
        name, marks=pytest.mark.skipif(shutil.which(name) is None, reason=f"{name} is not here")
    )
    for name in PROTOCOLS
]
WITHOUT_FILES = {"bash": "--norc", "zsh": "-f", "fish": "--no-config"}
"""Flag with which a shell reads no startup files of the user."""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with a model, a prompt file, and ``llama-chat`` in ``bin``."""
    model = tmp_path / ".local/share/llama-chat/models/mellow-7b"
    model.mkdir(parents=True)
    for file in ("params.json", "consolidated.00.pth"):
        (model / file).touch()
    blobs, manifests = tmp_path / ".ollama/models/blobs", tmp_path / ".ollama/models/manifests"
    for folder in (blobs, manifests / "host/library/tiny"):
        folder.mkdir(parents=True)
    digest = "0" * 64
    (blobs / f"sha256-{digest}").write_bytes(b"GGUF")
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}"}
    (manifests / "host/library/tiny/Q8_0").write_text(json.dumps({"layers": [layer]}))
    prompt(tmp_path, "mine/haiku.toml", "Three lines about anything.")
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/llama-chat"
    program.write_text(f'#!/bin/sh\nexec {shlex.join(COMMAND)} "$@"\n')
    program.chmod(0o755)
    (tmp_path / "work/meadows").mkdir(parents=True)
    (tmp_path / "work/notes.txt").touch()
    return tmp_path


def prompt(home: Path, name: str, description: str) -> None:
    """Write a prompt file of the user."""
    path = home / ".config/llama-chat/prompts" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    # A JSON string is a basic string of TOML, but for DEL, which only TOML escapes.
    quoted = json.dumps(description, ensure_ascii=False).replace("\x7f", "\\u007f")
    path.write_text(f'description = {quoted}\nsystem = "x"\n')


def in_shell(home: Path) -> dict[str, str]:
    """Return the variables with which a shell finds the program."""
    return {"PATH": f"{home}/bin:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}


def suggestions(shell: str, line: str, home: Path, **env: str) -> dict[str, str]:
    """Return the words offered at the end of ``line`` in ``shell``, with their meanings."""
    env = {"_LLAMA_CHAT_COMPLETE": f"complete_{shell}"} | env
    if shell == "bash":
        words = line.split(" ")
        env |= {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)}
    else:
        env |= {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    done = run(home=home, folder=str(home / "work"), stdin=None, **env)
    assert (done.status, done.err) == (0, ""), done
    out = done.out.strip("\n")
    if shell == "zsh":
        return dict(
            re.findall(r'^(?:_arguments \'\*: :\(\()?"(.*?)"(?::"(.*?)")?(?:$|\))', out, re.M)
        )
    rows = [row.partition("\t") for row in out.splitlines()]
    return {word: meaning for word, _, meaning in rows}


@pytest.mark.parametrize("shell", PROTOCOLS)
@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("llama-chat comp", {"complete": "Continue the text of prompt files"}),
        ("llama-chat config ", {"show": "", "path": "", "init": "", "edit": "Edit the settings"}),
        ("llama-chat ask --top", {"--top-p": "Keep the most likely", "--top-k": "Keep only the N"}),
        ("llama-chat --overflow s", {"stop": "refuse the message"}),
        ("llama-chat ask --dtype float3", {"float32": "4 bytes per weight"}),
        ("llama-chat bench --device c", {"cpu": "the processor", "cuda": "the first GPU"}),
        ("llama-chat pull sm", {starter.DEFAULT: "SmolLM2-135M-Instruct, 98 MB, Apache-2.0"}),
        ("llama-chat -m mel", {"mellow-7b": "0 bytes, Meta, own"}),
        ("llama-chat inspect me", {"mellow-7b": "", "meadows/": ""}),
        ("llama-chat complete mine/", {"mine/haiku": "Three lines about anything."}),
        ("llama-chat complete x.txt tran", {"translate_to_french": "English words and phrases"}),
        ("llama-chat --prompt few_shot/t", {"few_shot/translate_to_french": "English words"}),
        ("llama-chat --version comp", {"complete": ""}),
        ("llama-chat -m meadows/", {}),
        ("llama-chat tokenize no", {}),
        ("llama-chat --config no", {}),
        ("llama-chat --seed ", {}),
    ],
)
def test_names_and_values_are_offered_with_their_meanings(
    shell: str, line: str, wanted: dict[str, str], home: Path
) -> None:
    offered = suggestions(shell, line, home)
    assert set(offered) == set(wanted)
    if shell != "bash":
        for word, meaning in wanted.items():
            assert meaning in offered[word]


def test_every_choice_is_offered_with_its_meaning(home: Path) -> None:
    for setting in SETTINGS.values():
        if setting.kind == "choice":
            offered = suggestions("fish", f"llama-chat {setting.flag} ", home)
            assert set(offered) == set(setting.values)
            assert all(offered.values()), offered


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_every_option_of_every_command_is_offered_on_its_own_line(shell: str, home: Path) -> None:

    for name in ["", *COMMANDS, "config show", "config edit"]:
        offered = suggestions(shell, f"llama-chat {name} --".replace("  ", " "), home, COLUMNS="20")
        assert "--help" in offered
        assert all(word.startswith("--") and meaning for word, meaning in offered.items())


HOSTILE = [
    r"\$(touch pwned) \`touch pwned` $(touch pwned) `touch pwned`",
    r'\" $(touch pwned) <(touch pwned) ) ; touch pwned; ( "',
    "it's 5\" | & ; * ~ = : (",
    "[/INST] [b]bold[/b] \\[",
    "\x1b[31m \x9b31m \u202e",
]


@pytest.mark.parametrize("shell", SHELLS)
def test_descriptions_are_shown_and_never_run(shell: str, home: Path) -> None:
    for number, text in enumerate(HOSTILE):
        prompt(home, f"hostile{number}.toml", f"begin {text} end{number}")
    with start(shell, home) as terminal:
        source(shell, terminal)
        terminal.type("llama-chat --prompt hos\t\t\t")
        for number in range(len(HOSTILE)):
            terminal.wait_for(
                rf"hostile{number}\s" if shell == "bash" else rf"begin .* end{number}"
            )
        assert b"begin \x1b" not in terminal.raw
        assert "error" not in terminal.text
    assert not list(home.rglob("pwned"))


@pytest.mark.parametrize("shell", PROTOCOLS)
def test_names_that_need_quotes_are_not_offered(shell: str, home: Path) -> None:
    for name in ("$(touch pwned)", "a b", "it's", "-x", "`x`", "a;b", "a\\b", "a\nb", "a:b", "~a"):
        prompt(home, f"{name}.toml", "odd")
        (home / "work" / name).touch()
    offered = suggestions(shell, "llama-chat --prompt ", home)
    assert "odd" not in offered.values()
    assert {"mine/haiku", "notes.txt", "meadows/"} <= set(offered)
    assert all(re.fullmatch(r"[\w./-]+", word) for word in offered)


@pytest.mark.parametrize("shell", PROTOCOLS)
def test_completion_is_silent_with_a_broken_home_or_settings(shell: str, home: Path) -> None:
    (home / "file").write_text("top_p =")
    bad = str(home / "file")
    for place in (bad, "/nowhere", "relative", "/" + "x" * 5000):
        env = {"HOME": place, "LLAMA_CHAT_CONFIG": bad, "LLAMA_CHAT_TOP_P": "none"}
        assert set(suggestions(shell, "llama-chat comp", home, **env)) == {"complete"}
        assert suggestions(shell, "llama-chat -m mel", home, **env) == {}
        suggestions(shell, "llama-chat --prompt few", home, **env)


@pytest.mark.parametrize("shell", PROTOCOLS)
def test_the_script_is_printed_without_the_shell(shell: str, home: Path) -> None:
    env = environment(home, _LLAMA_CHAT_COMPLETE=f"source_{shell}")
    script = subprocess.check_output(COMMAND, env=env).decode()
    assert f"_LLAMA_CHAT_COMPLETE=complete_{shell}" in script


def test_torch_is_not_imported(home: Path) -> None:
    code = (
        "import atexit, os, sys; from llama_chat.cli.app import run\n"
        "atexit.register(lambda: 'torch' in sys.modules and os._exit(9))\n"
        "run([])"
    )
    env = {"_LLAMA_CHAT_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": "llama-chat --prompt "}
    done = subprocess.run([sys.executable, "-c", code], env=environment(home, **env), check=False)
    assert done.returncode == 0


# --- in the shells themselves --------------------------------------------------------------


def start(shell: str, home: Path, *flags: str) -> Terminal:
    """Start an interactive shell; without ``flags`` it reads no startup files of the user."""
    command = [shell, *(flags or (WITHOUT_FILES[shell],)), "-i"]
    terminal = Terminal(home=home, size=(100, 40), command=command, **in_shell(home))
    terminal.line(f"cd {shlex.quote(str(home))}/work; echo rea''dy")
    terminal.wait_for(r"(?m)^ready")
    return terminal


def source(shell: str, terminal: Terminal) -> None:
    """Source the script that ``--show-completion`` prints."""
    if shell == "zsh":
        terminal.line("autoload -Uz compinit; compinit -u")
    terminal.line("llama-chat --show-completion > ../script")
    terminal.line("source ../script; clear; echo sour''ced")
    terminal.wait_for(r"(?m)^sourced")


@pytest.mark.parametrize("shell", SHELLS)
def test_tab_completes_a_command_a_value_and_a_file(shell: str, home: Path) -> None:
    with start(shell, home) as terminal:
        source(shell, terminal)
        for typed, completed in (
            ("llama-chat comp\t", "llama-chat complete "),
            ("mine/\t", "llama-chat complete mine/haiku "),
            ("--over\tst\t", "llama-chat complete mine/haiku --overflow stop "),
            ("--model mel\t", "--overflow stop --model mellow-7b "),
            ("no\t", "--model mellow-7b notes.txt "),
        ):
            terminal.type(typed)
            terminal.wait_for(re.escape(completed.rstrip()))
        terminal.type("\x15llama-chat --model tin\t")
        terminal.wait_for(r"--model tiny:Q8_0")
        terminal.type("\x15llama-chat --model mea\t")
        terminal.wait_for(r"--model meadows/")
        terminal.type("\x15llama-chat --dtype \t\t")
        terminal.wait_for("float16" if shell == "bash" else "4 bytes per weight")
        assert "error" not in terminal.text


@pytest.mark.parametrize("shell", SHELLS)
def test_an_installed_completion_works_in_the_next_shell(shell: str, home: Path) -> None:
    with start(shell, home) as terminal:
        terminal.line("llama-chat --install-completion")
        terminal.wait_for(f"{shell} completion installed")
    with start(shell, home, "-i") as terminal:
        terminal.type("llama-chat conf\t\t")
        terminal.wait_for(r"llama-chat config")
        terminal.type("ini\t")
        terminal.wait_for(r"llama-chat config init")
