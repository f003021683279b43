"""Command lines: what is refused with one line and its status, and which value counts."""

import json
import os
import pty
from pathlib import Path

import pytest

from harness.program import Program, assert_clean_error, run
from llama_chat.library import starter
from tests.imports import statuses_and_torch
from tests.test_pipes import shell


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


def test_a_terminal_where_a_text_is_needed_is_an_error_not_a_wait(home: Path) -> None:
    ours, theirs = pty.openpty()
    for arguments in (["ask"], ["complete", "-"], ["tokenize"]):
        with Program(*arguments, home=home, stdin=os.ttyname(theirs)) as child:
            _, err = child.communicate(seconds=30)
        assert child.returncode == 2
        assert err.decode().count("\n") == 1
    os.close(ours)
    os.close(theirs)


def test_without_a_model_a_pipe_is_told_how_to_get_one(home: Path) -> None:
    result = run("ask", "hi", home=home, stdin=b"")
    assert_clean_error(result, 3, "none is configured", f"llama-chat pull {starter.DEFAULT}")


def test_help_and_usage_errors_import_no_torch(home: Path) -> None:
    cases = [
        (["--help"], 0),
        (["complete", "--help"], 0),
        (["--version"], 0),
        (["--nope"], 2),
        (["complete"], 2),
        (["ask", "x", "--temperature", "9999"], 2),
        (["complete", "no_such_prompt"], 2),
        (["ask", "x"], 3),
    ]
    found = statuses_and_torch([arguments for arguments, _ in cases], home)
    for (_, status), line in zip(cases, found, strict=True):
        assert line == f"{status} False"


@pytest.mark.parametrize(
    ("arguments", "status", "parts"),
    [
        (["complete", "-", "--context", "999999999"], 2, ["made for 512 tokens"]),
        (["complete", "-", "--context", "16"], 4, ["103 tokens", "context of 16"]),
        (["ask", "-", "--context", "64"], 4, ["tokens leave no space", "context of 64"]),
        (["complete", "-", "--device", "cuda:7"], 2, ["--device 'cuda:7'", "none"]),
        (["complete", "-", "--device", "abacus"], 2, ["no such device"]),
        (["complete", "-", "--quantize", "int3"], 2, ["one of auto, none, stored, int8, int4"]),
        (["complete", "-", "-"], 2, ["stdin: named twice"]),
        (["complete", "-", "--temperature", "-1"], 2, ["give a number from 0 to 10"]),
        (["complete", "-", "--max-tokens", "0"], 2, ["give a whole number from 1"]),
        (
            ["complete", "-", "--top-q", "1"],
            2,
            ["--top-q: llama-chat complete has no such", "--top-p?"],
        ),
        (["ask", "x", "--temprature", "1"], 2, ["has no such option: did you mean --temperature?"]),
        (["ask", "x", "--json", "--logprobs", "11"], 2, ["--logprobs: '11'", "from 0 to 10"]),
        (["inspect", "--bandwidth", "fast"], 2, ["--bandwidth: 'fast' does not fit", "a number"]),
        (["serve", "8080"], 2, ["'8080' does not fit: give one of start, status, stop"]),
        (["complte", "-"], 2, ["complte"]),
        (["serve", "--bogus"], 2, ["serve has no such option", "see llama-chat serve --help"]),
        (["serve", "--port", "65537"], 2, ["--port: '65537' does not fit", "from 0 to 65535"]),
        (["models", "rm"], 2, ["Missing argument 'NAME'", "see llama-chat models rm --help"]),
        (["ask", "x", "--keep-warm", "soon"], 2, ["--keep-warm", "a time such as 90s, 10m"]),
        (["ask", "x", "--prompt", "zero_shot/quantum_entanglement"], 2, ["it is raw text"]),
        (["ask", "--lines", "--prompt", "zero_shot/quantum_entanglement"], 2, ["is raw text"]),
        (["complete"], 2, ["FILE"]),
        (["Why is the sky blue?"], 2, ["command 'Why is", "no such", 'llama-chat ask "…"']),
        (["-q", "--seed", "1", "be\nbrief"], 2, ["command 'be brief'", 'llama-chat ask "…"']),
        (["why", "is", "it", "blue", "-q"], 2, ["command 'why'", 'llama-chat ask "…"']),
        (["why"], 2, ["command 'why'", "see llama-chat --help", 'or llama-chat ask "…"']),
        (["chta"], 2, ["command 'chta'", "did you mean chat?"]),
        (["ask", "why", "is", "it"], 2, ["question: it is 3 words", 'llama-chat ask "…"']),
        (["ask", "-q", "so why", "?", "--json"], 2, ["2 words", 'llama-chat ask "…"']),
        (["ask", " "], 2, ["question: it is empty"]),
        (["chat"], 2, ["needs a terminal"]),
        (["ask", "x", "--template", "llama2"], 2, ["the tokenizer of this model has no <s>"]),
        (["ask", "x", "--prompt", "nowhere"], 2, ["no prompt of that name", "known are few_shot/"]),
        (["complete", "/tmp/french.toml"], 2, ["no such file", "that name: check the path"]),
        (["complete", "notes.txt"], 2, ["no such file", "that name: check the path"]),
        (["complete", "./nowhere"], 2, ["no such file", "that name: check the path"]),
        (["complete", "~/my/prompt.md"], 2, ["no such file", "that name: check the path"]),
        (["complete", "quantum_entaglement.txt"], 2, ["did you mean zero_shot/quantum_entan"]),
        (["tokenize", "--dialog", "/dev/null"], 2, ["not a file"]),
        (["bench", "--prompt-tokens", "9999"], 2, ["the context is 512"]),
        (["inspect", "/nowhere"], 2, ["--model: '/nowhere' is given too"]),
        (["check", "/nowhere"], 2, ["--model: '/nowhere' is given too"]),
        (["--json", "ask", "x"], 2, ["--json: it is in front of ask: write llama-chat ask --json"]),
        (["--dry-run", "complete", "-"], 2, ["--dry-run: it is in front of complete"]),
        (["--resume", "one", "ask", "x"], 2, ["--resume: it is in front of ask"]),
        (["complete", "-", "--prompt", "one"], 2, ["--prompt: the files are the prompts"]),
        (["complete", "-", "--system", "Hi."], 2, ["--system: a raw text has no system message"]),
        (["complete", "Once upon a time"], 2, ["no such file: pipe a text itself to"]),
        (["complete", "."], 2, ["prompt '.': it is a folder"]),
        (["tokenize", "a.txt", "--dialog", "b.json"], 2, ["--dialog: 'a.txt' is given too"]),
        (["ask", "x", "--normalize", "length"], 2, ["--normalize: there are no choices"]),
        (["pull", "smollm2-135m", "--revision", "main"], 2, ["--revision: a starter model has"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_bad_command_lines_get_one_line_and_their_status(
    arguments: list[str], status: int, parts: list[str], home: Path, gguf_model: Path
) -> None:
    result = run("-m", gguf_model, *arguments, home=home, stdin=b"word " * 20 + b"end")
    assert_clean_error(result, status, *parts)


def test_names_of_models_that_are_not_here_get_one_line(home: Path) -> None:
    for name in ("/nowhere", "~nobody-of-this-name"):
        assert_clean_error(run("inspect", name, home=home), 3, "neither a path nor a known name")
    advice = "or download it with: llama-chat pull meta/llama-7b"
    known = ("--model-paths", home)
    assert_clean_error(run("inspect", "meta/llama-7b", *known, home=home), 3, advice)


def test_closed_and_empty_stdin_are_reported(home: Path, gguf_model: Path) -> None:
    done = shell(f"llama-chat ask -m {gguf_model} <&-", home)
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
    assert_clean_error(run("ask", home=home, stdin=b"\n\n"), 2, "it is empty")
    assert_clean_error(run("ask", home=home, stdin=b"a\xff"), 2, "byte 1 is not UTF-8")


def test_a_prompt_file_sets_what_no_flag_does(home: Path, gguf_model: Path) -> None:
    (home / "p.toml").write_text('system = "x"\nmax_tokens = 3\n[[examples]]\nuser = "the"\n')
    (home / "c.toml").write_text("max_tokens = 7")
    flags = ("complete", home / "p.toml", "-m", gguf_model, "--config", home / "c.toml", "--json")
    assert json.loads(run(*flags, home=home).out)["completion_tokens"] <= 3
    given = json.loads(run(*flags, "--max-tokens", "1", home=home).out)
    assert given["completion_tokens"] <= 1
