"""Output is written, or its loss is one line and a status: also that of help and lists."""

import os
import subprocess
from pathlib import Path

import pytest

from harness.process import Process
from harness.program import COMMAND, TIMEOUT_S, assert_clean_error, environment, run
from tests.conftest import ROOT

WRITING = {
    "help": ("--help",),
    "version": ("--version",),
    "help of a command": ("ask", "--help"),
    "help of a group": ("models", "--help"),
    "help of its command": ("config", "show", "-h"),
    "settings": ("config", "show"),
    "settings as JSON": ("config", "show", "--json"),
    "a path": ("config", "path"),
    "models": ("models", "--json"),
    "conversations": ("sessions", "--json"),
}
"""Commands that need no model to write to stdout."""


def run_into(
    stdout: int | None, arguments: tuple[str, ...], home: Path, **env: str
) -> tuple[int, str]:
    """Run the program with ``stdout``, or without one."""
    ours, theirs = os.pipe()
    null = os.open(os.devnull, os.O_RDONLY)
    streams = {0: null, 2: theirs} | ({} if stdout is None else {1: stdout})
    process = Process([*COMMAND, *arguments], environment(home, **env), streams)
    for descriptor in (theirs, null):
        os.close(descriptor)
    with os.fdopen(ours, "rb") as err:
        return process.wait(TIMEOUT_S), err.read().decode()


def broken_pipe() -> int:
    """Return the end of a pipe that nobody reads."""
    ours, theirs = os.pipe()
    os.close(ours)
    return theirs


@pytest.mark.parametrize("what", WRITING)
def test_lost_output_is_one_line_or_a_closed_pipe(what: str, tmp_path: Path) -> None:
    pipe, full = broken_pipe(), os.open("/dev/full", os.O_WRONLY)
    assert run_into(pipe, WRITING[what], tmp_path) == (141, "")
    status, err = run_into(full, WRITING[what], tmp_path)
    assert (status, err.count("\n")) == (6, 1)
    assert err.startswith("llama-chat: error: stdout: no space left on device: ")
    status, err = run_into(None, WRITING[what], tmp_path)
    assert (status, err.count("\n")) == (1, 1)
    assert err.startswith("llama-chat: error: stdout: closed: ")
    os.close(pipe)
    os.close(full)


@pytest.mark.parametrize("arguments", [("--nope",), ("nope",), ("ask", "--top-p", "2", "hi")])
def test_a_usage_error_has_its_status_wherever_the_streams_go(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    pipe, full = broken_pipe(), os.open("/dev/full", os.O_WRONLY)
    for out in (pipe, full, None):
        status, err = run_into(out, arguments, tmp_path)
        assert (status, err.count("\n")) == (2, 1)
        assert err.startswith("llama-chat: error: ")
    null = os.open(os.devnull, os.O_RDONLY)
    written, stdout = os.pipe()
    for streams in ({2: pipe}, {2: full}, {}, {1: stdout}, {1: stdout, 2: pipe}):
        process = Process([*COMMAND, *arguments], environment(tmp_path), {0: null, **streams})
        assert process.wait(TIMEOUT_S) == 2
    for descriptor in (pipe, full, null, stdout):
        os.close(descriptor)
    with os.fdopen(written, "rb") as lost:
        assert lost.read() == b""


def test_a_command_that_writes_nothing_needs_no_stdout(tmp_path: Path) -> None:
    assert run_into(None, ("config", "init"), tmp_path)[0] == 0
    assert (tmp_path / ".config/llama-chat/config.toml").is_file()


def in_login_shell(arguments: str, home: Path, shell: str) -> "subprocess.CompletedProcess[str]":
    """Run the program below a login shell that is, for all it can tell, ``shell``."""
    program = " ".join(COMMAND)
    return subprocess.run(
        ["-sh", "-c", f"{program} {arguments}; exit $?"],
        executable="/bin/sh",
        cwd=ROOT,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env=environment(home, SHELL=shell),
        check=False,
    )


@pytest.mark.parametrize("flag", ["--show-completion", "--install-completion"])
@pytest.mark.parametrize("shell", ["/bin/nonsense", "/bin/tcsh", ""])
def test_completion_for_a_shell_that_is_not_known_is_one_line(
    flag: str, shell: str, tmp_path: Path
) -> None:
    done = in_login_shell(flag, tmp_path, shell)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"llama-chat: error: {flag}: ")
    assert "bash, zsh or fish" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_completion_for_a_known_shell_is_written_or_lost_in_one_line(tmp_path: Path) -> None:
    done = in_login_shell("--show-completion", tmp_path, "/bin/bash")
    assert (done.returncode, done.stderr) == (0, "")
    assert "complete -o default" in done.stdout
    done = in_login_shell("--show-completion >/dev/full", tmp_path, "/bin/zsh")
    assert (done.returncode, done.stderr.count("\n")) == (6, 1)
    (tmp_path / ".config").touch()  # in place of the folder
    done = in_login_shell("--install-completion", tmp_path, "/bin/fish")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (6, "", 1)
    assert "not a directory" in done.stderr


@pytest.mark.parametrize(
    "env",
    [
        {"_LLAMA_CHAT_COMPLETE": "complete_nonsense"},
        {"_LLAMA_CHAT_COMPLETE": "nonsense"},
        {"_LLAMA_CHAT_COMPLETE": "draw_bash"},
        {"_LLAMA_CHAT_COMPLETE": "complete_bash"},
        {"_LLAMA_CHAT_COMPLETE": "complete_bash", "COMP_WORDS": "llama-chat", "COMP_CWORD": "x"},
    ],
)
def test_a_request_for_completion_that_makes_no_sense_is_one_line(
    env: dict[str, str], tmp_path: Path
) -> None:
    assert_clean_error(run(home=tmp_path, stdin=None, **env), 2, "completion", "--show-completion")


def test_completion_into_a_closed_pipe_or_a_full_disk_has_their_statuses(tmp_path: Path) -> None:
    env = {"_LLAMA_CHAT_COMPLETE": "complete_fish", "_TYPER_COMPLETE_ARGS": "llama-chat --"}
    env["_TYPER_COMPLETE_FISH_ACTION"] = "get-args"
    pipe, full = broken_pipe(), os.open("/dev/full", os.O_WRONLY)
    assert run_into(pipe, (), tmp_path, **env) == (141, "")
    assert run_into(full, (), tmp_path, **env)[0] == 6
    os.close(pipe)
    os.close(full)


def test_an_answer_into_a_full_disk_is_lost_in_one_line(gguf_model: Path, tmp_path: Path) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    for arguments in (("ask", "hi"), ("ask", "hi", "--json"), ("inspect",), ("bench", "--json")):
        quick = ("--rounds", "1", "--prompt-tokens", "2", "--new-tokens", "2")
        more = quick if arguments[0] == "bench" else ("--max-tokens", "2")
        status, err = run_into(full, ("-m", str(gguf_model), "-q", *arguments, *more), tmp_path)
        assert (status, err.count("\n")) == (6, 1)
    os.close(full)
