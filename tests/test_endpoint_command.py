"""The program with a server in place of a model: our own, one that fails, and a foreign one."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.fault_server import (
    Act,
    FaultServer,
    answer,
    fault_server,
    part,
    refusal,
    stream,
    whole,
)
from harness.program import FORBIDDEN, Program, Result, assert_clean_error, run
from harness.terminal import CTRL_C, CTRL_D, Terminal
from tests.endpoints import KEY
from tests.imports import statuses_and_torch
from tests.servers import Server, running_server

READY = r"template the server's\n›"
PEER = ("llama_cpp", "fastapi", "sse_starlette", "starlette_context", "pydantic_settings")
HELD = [*stream(part("Hello\x1b[2J\x07\n\nIt waits. Now")), Act.HOLD]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def ours(home: Path, gguf_model: Path) -> Iterator[Server]:
    with running_server(home, gguf_model, "--temperature", "0") as running:
        yield running


@pytest.fixture
def faulty() -> Iterator[FaultServer]:
    with fault_server(answer("Hel", "lo")) as running:
        yield running


def ask(url: str, home: Path, *flags: str | Path, stdin: bytes | None = None) -> Result:
    arguments = ("ask", "the cat", "--endpoint", url, "--temperature", "0", *flags)
    return run(*arguments, home=home, stdin=stdin, LLAMA_CHAT_API_KEY=KEY)


def test_our_own_server_answers_as_the_model_does(
    ours: Server, home: Path, gguf_model: Path
) -> None:
    flags = ("--max-tokens", "6", "-q")
    here = run(
        "ask", "the cat", "-m", gguf_model, *flags, "--temperature", "0", "--json", home=home
    )
    wanted = json.loads(here.out)
    assert ask(ours.url, home, *flags).out.strip() == wanted["text"].strip()
    assert ask(f"unix:{ours.socket}", home, *flags).out.strip() == wanted["text"].strip()
    there = json.loads(ask(ours.url, home, *flags, "--json", "--logprobs", "2").out)
    encoded = json.loads(ask(ours.url, home, *flags, "--json", "--template-here", gguf_model).out)
    for found in (there, encoded):
        for name in ("text", "finish_reason", "prompt_tokens", "completion_tokens"):
            assert found[name] == wanted[name]
        assert found["token_counts"] == "server"
        assert "receipt" not in found
    assert len(there["logprobs"][0]["top"]) == 2
    lines = ask(ours.url, home, *flags, "--lines", stdin=b"one\ntwo\n\nfour\n").out.splitlines()
    assert sorted(json.loads(line)["line"] for line in lines) == [1, 2, 4]
    (home / "a.txt").write_text("the hat")
    arguments = ("complete", home / "a.txt", home / "a.txt", *flags, "--temperature", "0", "--json")
    raw = run(*arguments, "--endpoint", ours.url, home=home)
    alone = run(*arguments, "-m", gguf_model, home=home)
    texts = [[json.loads(line)["text"] for line in each.out.splitlines()] for each in (raw, alone)]
    assert texts[0] == texts[1]
    assert len(texts[0]) == 2


def test_what_a_server_cannot_do_is_said_in_one_line(
    faulty: FaultServer, home: Path, gguf_model: Path
) -> None:
    url = faulty.url
    for flags, status, part_ in (
        (("--regex", "a+"), 2, "cannot be made to meet it"),
        (("--dry-run",), 2, "--template-here MODEL encodes it here"),
        (("--template", "llama2"), 2, "the server applies its own"),
        (("--choices", "a,b"), 2, "gives no log-probabilities"),
        (("-m", str(gguf_model)), 2, "--endpoint-model names a model there"),
        (("--endpoint", "https://h.example", "--offline"), 2, "offline is set"),
        (("--api-key-file", "/nowhere/key", "--endpoint", f"{url}/"), 0, ""),
    ):
        done = ask(url, home, *flags)
        if status:
            assert_clean_error(done, status, part_)
        else:
            assert (done.status, done.out) == (0, "Hello\n")
    given = ask(url, home, "--json", "--logprobs", "2")
    assert json.loads(given.out)["logprobs"] is None
    assert (
        given.err == "llama-chat: warning: --logprobs: the server gives none: use a local model\n"
    )
    assert_clean_error(run("bench", "--endpoint", url, home=home), 2, "this needs a local model")
    faulty.models = whole({"data": [{"id": "one"}, {"id": "t\x1b[2Jwo"}]})
    assert_clean_error(ask(url, home), 2, "several models", "one of one, t")
    faulty.models = refusal(404)
    assert_clean_error(ask(url, home), 2, "does not say what models it has")
    assert ask(url, home, "--endpoint-model", "x").out == "Hello\n"
    assert faulty.received[-1].body["model"] == "x"


def test_a_fault_keeps_what_came_and_the_key_is_nowhere(faulty: FaultServer, home: Path) -> None:
    faulty.scripts = [stream(part("Hello\x1b[2J"))]
    done = ask(faulty.url, home, "-v")
    assert (done.status, done.out) == (1, "Hello␛[2J\n")
    assert "llama-chat: error: endpoint" in done.err
    assert "in the middle of the answer: try again" in done.err
    faulty.scripts = [refusal(401, f"wrong key {KEY}")]
    refused = ask(faulty.url, home, "-v", "--json")
    assert_clean_error(refused, 1, "another key (wrong key …)", "LLAMA_CHAT_API_KEY")
    faulty.scripts = [refusal(401, "no"), answer("a"), stream(part("b"))]
    faulty.received.clear()
    many = ask(faulty.url, home, "--lines", "--parallel", "1", stdin=b"1\n2\n3\n")
    assert many.status == 1
    found = [json.loads(line) for line in many.out.splitlines()]
    assert [each.get("status") for each in found] == [1, None, 1]
    assert [each.get("text") for each in found] == [None, "a", "b"]
    cut = ask(faulty.url, home, "--json")
    assert (cut.status, json.loads(cut.out)["text"]) == (1, "b")
    assert "in the middle" in json.loads(cut.out)["error"]
    listed = run("config", "show", "--origin", home=home, LLAMA_CHAT_API_KEY=KEY)
    for each in (done, refused, many, listed):
        assert KEY not in each.out + each.err
        assert not any(word in each.err for word in FORBIDDEN)
    assert faulty.authorized == {f"Bearer {KEY}"}


def test_ctrl_c_ends_the_answer_here_and_there(faulty: FaultServer, home: Path) -> None:
    faulty.scripts = [HELD]
    with Program("ask", "hi", "--endpoint", faulty.url, home=home, stdin=os.devnull) as program:
        assert program.stdout.readline() == "Hello␛[2J␇\n".encode()
        began = time.monotonic()
        os.kill(program.pid, signal.SIGINT)
        assert program.wait(10) == 130
        assert faulty.gone.wait(5)
        assert faulty.gone_at - began < 1
        assert program.stderr.read() == b""


def test_a_chat_with_a_server_that_comes_and_goes(faulty: FaultServer, home: Path) -> None:
    faulty.scripts = [stream(part("Hello")), answer(" there"), HELD, refusal(429), answer("Bye")]
    flags = ("--endpoint", faulty.url, "--endpoint-timeout", "30")
    with Terminal(*flags, home=home, LLAMA_CHAT_API_KEY=KEY) as chat:
        chat.wait_for(READY)
        chat.line("hi")
        chat.wait_for(
            "in the middle of the answer: try again\n.*what came is kept: /continue goes on"
        )
        chat.line("/continue")
        chat.wait_for("there\n")
        assert faulty.received[1].body["messages"][-1] == {"role": "assistant", "content": "Hello"}
        chat.line("more")
        chat.wait_for("It waits")
        began = time.monotonic()
        chat.type(CTRL_C)
        chat.wait_for("stopped after")
        assert faulty.gone.wait(5)
        assert faulty.gone_at - began < 1
        chat.line("again")
        chat.wait_for("asked too often")
        chat.type(CTRL_C)
        chat.line("/tokens")
        chat.wait_for("the server encodes the messages")
        chat.line("/template llama2")
        chat.wait_for("the server applies its own")
        chat.line("/why")
        chat.wait_for("no probabilities of the last reply")
        chat.line("/model endpoint:http://me:hunter2@127.0.0.1:1")
        chat.wait_for("its URL has a name or a password")
        chat.line(f"/model endpoint:{faulty.url}/")
        chat.wait_for(r"(?s)the server's\n›.*the server's\n\n›")
        chat.line("/retry")
        chat.wait_for("Bye")
        chat.type(CTRL_D)
        chat.wait_for("saved: llama-chat --resume")
        assert KEY not in chat.text
    saved = [path.read_text() for path in home.rglob("*.jsonl")]
    assert any("Hello there" in text and "Bye" in text for text in saved)
    assert not any(KEY in text for text in saved)


def test_a_client_of_a_server_imports_no_torch(faulty: FaultServer, home: Path) -> None:
    commands = [["ask", "hi", "--endpoint", faulty.url], ["ask", "hi", "--endpoint", "x"]]
    assert statuses_and_torch(commands, home) == ["0 False", "2 False"]


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, PEER)),
    reason=f"{', '.join(PEER)} are not installed, of llama-cpp-python[server]",
)
def test_the_server_of_llama_cpp_answers(starter_model: Path, home: Path) -> None:
    command = (
        sys.executable,
        "-m",
        "llama_cpp.server",
        "--model",
        str(starter_model),
        "--port",
        "0",
    )
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            assert process.stderr is not None
            lines = (line.decode() for line in process.stderr)
            found = next(m for line in lines if (m := re.search(r"http://\S+:(\d+)", line)))
            url = f"http://127.0.0.1:{found[1]}"
            done = ask(url, home, "--max-tokens", "8")
            assert (done.status, done.err) == (0, "")
            assert done.out.strip()
        finally:
            process.kill()
