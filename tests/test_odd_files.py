"""Pipes, devices, sockets and closed folders where a settings or prompt file is expected."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread

import pytest

from harness.program import Program, assert_clean_error, run
from harness.terminal import Terminal
from llama_chat.chat.prompt_files import list_prompts
from tests.conftest import ROOT
from tests.permissions import without_powers
from tests.test_pipes import shell


def make_socket(path: Path) -> None:
    """Make a socket at a path that may be longer than one can be bound to."""
    with TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as one:
        one.bind(f"{folder}/s")
        Path(folder, "s").rename(path)


MAKE: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a socket": make_socket,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a terminal": lambda path: path.symlink_to("/dev/tty"),
    "a folder": Path.mkdir,
    "a link to itself": lambda path: path.symlink_to(path),
}
WAYS = {
    "settings": ("config", "show", "--config"),
    "prompt": ("complete",),
    "system": ("ask", "hi", "--prompt"),
    "text": ("tokenize",),
    "dialog": ("tokenize", "--dialog"),
}
"""Ways in which the user names a file."""


@pytest.mark.parametrize("kind", [kind for kind in MAKE if kind != "a pipe"])
def test_what_is_no_file_is_refused_wherever_it_is_named(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.toml"
    MAKE[kind](path)
    for way in WAYS.values():
        result = run(*way, path, home=tmp_path, stdin=None)
        assert_clean_error(result, 2, repr(str(path))[:60])  # a long one is shortened


@pytest.mark.parametrize("kind", MAKE)
def test_in_the_usual_places_only_files_are_read(kind: str, tmp_path: Path) -> None:
    ours = tmp_path / ".config/llama-chat"
    (ours / "prompts").mkdir(parents=True)
    for name in ("one.toml", "two.txt"):
        MAKE[kind](ours / "prompts" / name)
    for name in ("one", "two.txt"):
        assert_clean_error(run("complete", name, home=tmp_path), 2, "no prompt of that name")
    (ours / "config.toml").touch()
    assert run("config", "show", home=tmp_path).status == 0
    (ours / "config.toml").unlink()
    MAKE[kind](ours / "config.toml")
    if kind != "a link to itself":  # which Python reports as missing
        assert_clean_error(run("config", "show", home=tmp_path), 2, "config.toml': ")


@pytest.mark.parametrize("kind", MAKE)
def test_odd_things_are_in_no_list(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    folder = tmp_path / "llama-chat/prompts"
    folder.mkdir(parents=True)
    before = list_prompts()
    for name in ("one.toml", "two.txt"):
        MAKE[kind](folder / name)
    assert list_prompts() == before


def test_process_substitution_is_read_like_a_file(tmp_path: Path) -> None:
    toml = 'system = "x"\\n[[examples]]\\nuser = "the"\\n'
    files = f"--config <(echo 'model = \"nowhere\"') complete <(echo text) <(printf '{toml}')"
    done = shell(f"llama-chat {files}", tmp_path)
    assert done.stderr.decode().startswith("llama-chat: error: model 'nowhere': ")
    done = shell("LLAMA_CHAT_CONFIG=<(echo top_k = 8) llama-chat config show --json", tmp_path)
    assert json.loads(done.stdout)["top_k"]["value"] == 8, done.stderr


@pytest.mark.parametrize("way", WAYS)
def test_a_pipe_that_never_ends_is_read_up_to_a_bound(way: str, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.toml"
    os.mkfifo(pipe)

    def write() -> None:
        with suppress(BrokenPipeError), pipe.open("wb") as file:
            while True:
                file.write(b"# text\n" * 10_000)

    writer = Thread(target=write)
    writer.start()
    assert_clean_error(run(*WAYS[way], pipe, home=tmp_path, stdin=None), 2, "larger than")
    writer.join()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_pipe_that_nobody_writes_waits_for_a_signal_alone(
    way: str, number: int, status: int, tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with (
        Program(*WAYS[way], pipe, home=tmp_path, stdin=os.devnull) as child,
        pipe.open("wb"),  # waits for a reader: from now on the program waits for a text
    ):
        child.kill(number)
        out, err = child.communicate(seconds=20)
    assert (child.returncode, out, err) == (status, b"", b"")


def test_a_chat_waits_for_no_pipe(babble: Terminal, tmp_path: Path) -> None:
    """Ctrl-C does not raise there, so a wait for a writer could not be ended."""
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    for command in ("/file", "/load", "/prompt"):
        babble.refuse(f"{command} {pipe}", "pipe.json': not a file")
    babble.ask("hello", r"cut off after \d+ tokens")


def test_a_chat_goes_on_after_a_home_that_nobody_has(babble: Terminal) -> None:
    for command in ("/file ~nobody-here/a", "/load ~nobody-here/a.json", "/prompt ~nobody-here/a"):
        babble.refuse(command, "~nobody-here/a")
    babble.refuse("/export ~nobody-here/a.md", "no such file or directory")
    babble.ask("hello", r"cut off after \d+ tokens")


COMMANDS = """
import json, sys
from pathlib import Path
from llama_chat.cli.app import run
ours = Path.home() / ".config/llama-chat"
for closed, *arguments in json.loads(sys.argv[1]):
    mode = (ours / closed).stat().st_mode
    (ours / closed).chmod(int(sys.argv[2], 8))
    print("status", run(arguments), file=sys.stderr)
    (ours / closed).chmod(mode)
"""
HAIKU = "prompts/mine/haiku.toml"
CLOSED: list[tuple[str, tuple[str, ...], str]] = [
    (".", ("config", "show"), "config.toml': permission denied"),
    ("prompts", ("complete", "mine/haiku"), "prompt 'mine/haiku': permission denied"),
    ("prompts/mine", ("complete", "mine/haiku"), "prompt 'mine/haiku': permission denied"),
    ("prompts/mine", ("complete", "haiku"), "no prompt of that name"),
    ("prompts/mine", ("complete", "nosuch"), "no prompt of that name"),
]
"""Closed folder, a command that looks into it, and what is said."""


@pytest.mark.parametrize("mode", ["0", "400"])
def test_files_and_folders_without_permission_are_one_line(mode: str, tmp_path: Path) -> None:
    ours = tmp_path / ".config/llama-chat"
    (ours / "prompts/mine").mkdir(parents=True)
    (ours / "config.toml").touch()
    (ours / HAIKU).write_text('system = "x"\n')
    cases = list(CLOSED)
    if mode == "0":
        cases += [
            ("config.toml", ("config", "show"), "config.toml': permission denied"),
            (HAIKU, ("complete", "haiku"), "haiku.toml': permission denied"),
        ]
    commands = json.dumps([(closed, *arguments) for closed, arguments, _ in cases])
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, commands, mode],
        cwd=ROOT,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "HOME": str(tmp_path)},
        preexec_fn=without_powers,
        check=True,
    )
    lines = iter(done.stderr.splitlines())
    for closed, _, why in cases:
        assert why in next(lines), closed
        assert next(lines) == "status 2", closed
