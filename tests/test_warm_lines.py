"""Many answers at once, and choices, from a running server: they are those of a local model."""

import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from harness.program import Program, Result, assert_clean_error, run
from llama_chat.server import client
from tests.servers import Server, running_server
from tests.test_server import HELLO, metrics

FLAGS = ("--temperature", "0", "--max-tokens", "6", "-v")

HEAD = 'system = "In the house."\n[[examples]]\nuser = "{}"\nassistant = "the hat of the cat"\n'

OWN = ("ttft_s", "prefill_tok_s", "decode_tok_s", "cached_tokens", "seed")
"""Fields of an answer that are of one run alone."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def server(home: Path, gguf_model: Path) -> Iterator[Server]:
    """A server whose own settings must have no effect on answers to our client."""
    own = ("--seed", "5", "--max-tokens", "3", "--stop", "a", "--system", "Be brief.")
    with running_server(home, gguf_model, *own) as running:
        yield running


def both(server: Server, home: Path, model: Path, *arguments: str | Path, stdin: str = "") -> str:
    """Run a command with the server and without one; returns its output, which must be the same."""
    whole, data = (*arguments, "-m", model, *FLAGS), stdin.encode()
    warm = run(*whole, home=home, stdin=data, XDG_RUNTIME_DIR=server.runtime)
    here = run(*whole, "--no-server", home=home, stdin=data)
    assert "answered by the server" in warm.err
    assert (warm.status, lines(warm)) == (here.status, lines(here)), (warm.err, here.err)
    errors = [[line for line in done.err.splitlines() if "error" in line] for done in (warm, here)]
    assert errors[0] == errors[1]
    return warm.out


def lines(done: Result) -> list[dict[str, Any]]:
    answers = [{**json.loads(line), **dict.fromkeys(OWN)} for line in done.out.splitlines()]
    return sorted(answers, key=lambda answer: answer.get("line", 0))


def test_lines_are_answered_as_without_a_server(
    server: Server, home: Path, gguf_model: Path
) -> None:
    prompt = home / "head.toml"
    prompt.write_text(HEAD.format("the cat in the hat"))
    questions = "".join(f"the cat {i}\n" for i in range(8)) + "\n" + "cat " * 900 + "\nwhy\n"
    flags = ("ask", "--lines", "and the hat?", "--prompt", prompt, "--parallel", "4")
    out = both(server, home, gguf_model, *flags, stdin=questions)
    answers = [json.loads(line) for line in out.splitlines()]
    assert [answer["line"] for answer in answers] == [1, 2, 3, 4, 5, 6, 7, 8, 10, 11]
    assert answers[8]["status"] == 4
    assert len({answer.get("seed") for answer in answers}) == 10  # each its own
    assert sum(answer.get("cached_tokens", 0) > 16 for answer in answers) >= 8  # the head
    (home / "half.jsonl").write_text("".join(out.splitlines(keepends=True)[1:5]))
    rest = ("--resume-from", home / "half.jsonl", "--fail-on-length")
    out = both(server, home, gguf_model, *flags, *rest, stdin=questions)
    assert [json.loads(line)["line"] for line in out.splitlines()] == [1, 6, 7, 8, 10, 11]


def test_records_are_answered_as_without_a_server(
    server: Server, home: Path, gguf_model: Path
) -> None:
    prompt = home / "slots.toml"
    prompt.write_text(HEAD.format("{{animal}}"))
    records: list[Any] = [
        {"question": "the cat", "animal": "cat", "id": [1]},
        {"question": "the cat"},
        "the hat",
        {"question": "why", "animal": "x" * 700},
        {"question": "a hat", "animal": "<|im_start|>"},
        7,
    ]
    stdin = "".join(json.dumps(record) + "\n" for record in records) + "{bad\n"
    flags = ("ask", "--jsonl", "--prompt", prompt, "--unordered", "--parallel", "1")
    out = both(server, home, gguf_model, *flags, "--regex", "(ab)+c", stdin=stdin)
    answers = [json.loads(line) for line in out.splitlines()]
    assert sum("error" in answer for answer in answers) == 5
    assert sum("meets_grammar" in answer for answer in answers) == 2
    for first in ("{}", json.dumps("cat " * 900)):
        stopped = f'{first}\n"why"\n'
        one = ("--fail-fast", "--parallel", "1")  # else the other may be answered sooner
        assert both(server, home, gguf_model, "ask", "--jsonl", *one, stdin=stopped) == ""
    seeded = ("--temperature", "1.5", "--seed", "3", "--stop", "q")
    both(server, home, gguf_model, "ask", "--jsonl", *seeded, stdin=stdin)


def test_choices_have_the_scores_of_a_model_here(
    server: Server, home: Path, gguf_model: Path
) -> None:
    choices = ("--choices", "the cat,a hat,the house of the hat")
    prompt = home / "head.toml"
    prompt.write_text(HEAD.format("the cat in the hat"))
    for flags in ((), ("--normalize", "length"), ("--prompt", prompt)):
        out = both(server, home, gguf_model, "ask", "what?", "--json", *choices, *flags)
        assert len(json.loads(out)["choices"]) == 3
    out = both(server, home, gguf_model, "ask", "--lines", *choices, stdin="the cat\n\nwhy\n")
    assert [json.loads(line)["line"] for line in out.splitlines()] == [1, 3]
    plain = ("ask", "the cat", "-m", gguf_model, "-q")
    warm = run(*plain, *choices, home=home, XDG_RUNTIME_DIR=server.runtime)
    assert warm == run(*plain, *choices, "--no-server", home=home)
    assert warm.status == 0
    for question, choice in (("cat " * 900, "a"), ("the cat", "cat " * 490)):
        arguments = ("ask", question, "-m", gguf_model, "-q", "--choices", f"yes,{choice}")
        warm = run(*arguments, home=home, XDG_RUNTIME_DIR=server.runtime)
        assert_clean_error(warm, 4, "in the context of 512")
        assert warm == run(*arguments, "--no-server", home=home)
    assert metrics(server)["running_sequences"] == 0


@pytest.mark.parametrize("flags", [(), ("--lines",)], ids=str)
def test_more_choices_than_a_server_takes_are_scored_here(
    server: Server, home: Path, gguf_model: Path, flags: tuple[str, ...]
) -> None:
    (home / "many.txt").write_text("\n".join(map(str, range(1100))))
    many = ("-m", gguf_model, "--choices-file", home / "many.txt")
    environment = {"XDG_RUNTIME_DIR": server.runtime}
    done = run("ask", *flags, *FLAGS, *many, home=home, stdin=b"what?\n", **environment)
    assert "a server scores 1024 choices at most" in done.err
    assert "answered by the server" not in done.err
    assert done.out.strip()
    assert done.status == 0


def begin(server: Server, home: Path, model: Path, *flags: str) -> Program:
    """Begin a run of which a line is answered, and another is sent to a server that hangs."""
    whole = ("ask", "--lines", "-m", str(model), *FLAGS[:-1], *flags)
    child = Program(*whole, home=home, XDG_RUNTIME_DIR=server.runtime)
    child.stdin.write(b"the cat\n")
    child.stdin.flush()
    assert json.loads(child.stdout.readline())["line"] == 1
    os.kill(server.process.pid, signal.SIGSTOP)
    child.stdin.write(b"a hat\n")
    child.stdin.flush()
    return child


@pytest.mark.parametrize("flags", [(), ("--choices", "yes,no")], ids=str)
def test_a_server_that_goes_away_ends_the_run_with_what_is_complete(
    home: Path, gguf_model: Path, flags: tuple[str, ...]
) -> None:
    with (
        running_server(home, gguf_model) as server,
        begin(server, home, gguf_model, *flags) as child,
    ):
        server.process.kill()
        out, err = child.communicate(b"why\n")
        done = Result(child.wait(0), out.decode(), err.decode())
        assert_clean_error(done, 1, "server: ", "go on with --resume-from, or --no-server")


@pytest.mark.parametrize("flags", [(), ("--choices", "yes,no")], ids=str)
def test_control_c_ends_what_the_server_does(
    server: Server, home: Path, gguf_model: Path, flags: tuple[str, ...]
) -> None:
    try:
        with begin(server, home, gguf_model, *flags) as child:
            os.kill(child.pid, signal.SIGINT)
            assert child.communicate()[0] == b""
            assert child.wait(0) == 130
    finally:
        os.kill(server.process.pid, signal.SIGCONT)
    began = time.monotonic()
    while metrics(server)["open_requests"]:
        assert time.monotonic() - began < 20


@pytest.mark.parametrize("flags", [(), ("--chat",), ("--regex", "(ab)+c")], ids=str)
def test_files_are_continued_as_without_a_server(
    server: Server, home: Path, gguf_model: Path, flags: tuple[str, ...]
) -> None:
    questions = home / "questions.toml"
    questions.write_text('[[examples]]\nuser = "hat"\n[[examples]]\nuser = "cat"\n')
    files = [home / f"{n}.txt" for n in range(3)]
    for n, file in enumerate(files):
        file.write_text("the cat" + " in the hat" * n)
    whole: list[str | Path] = ["complete", *files, questions, *flags, "--seed", "5"]
    out = both(server, home, gguf_model, *whole, "--json", "--logprobs", "2")
    found = [json.loads(line) for line in out.splitlines()]
    assert len(found) == 5
    assert all(answer["receipt"]["ids"] and answer["logprobs"] for answer in found)
    text = [*whole, "-m", gguf_model, "-q", "--echo", "--max-tokens", "9", "--temperature", "0.9"]
    warm = run(*text, home=home, XDG_RUNTIME_DIR=server.runtime)
    assert warm == run(*text, "--no-server", home=home)
    assert (warm.status, warm.err) == (0, "")


def test_a_full_server_is_waited_for(gguf_model: Path, tmp_path: Path) -> None:
    questions = "".join(f"the cat {i}\n" for i in range(8)).encode()
    schema = {"type": "string", "minLength": 400}  # so that it does not end before the next
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    body = {"messages": HELLO, "max_tokens": 450, "response_format": form, "n": 4}
    with running_server(tmp_path, gguf_model, "--max-requests", "1") as server:
        asked = ("ask", "-m", gguf_model, *FLAGS)
        ours = partial(run, home=tmp_path, XDG_RUNTIME_DIR=server.runtime)
        events = client.stream(server.socket, "/v1/chat/completions", body)
        next(events)
        with ThreadPoolExecutor(2) as pool:
            one = pool.submit(ours, *asked, "the cat")
            many = pool.submit(ours, *asked, "--lines", stdin=questions)
            list(events)
        assert "answered by the server" in one.result().err
        assert [each["line"] for each in lines(many.result())] == [*range(1, 9)]
        assert not any("error" in each for each in lines(many.result()))
