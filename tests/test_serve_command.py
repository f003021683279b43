"""``llama-chat serve``: its start, its end, and the commands that use it."""

import errno
import fcntl
import http.client
import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from email.message import Message
from pathlib import Path
from typing import Any

import pytest

from harness.process import cold
from harness.program import Program, Result, assert_clean_error, run
from llama_chat.errors import UsageError
from llama_chat.server import client
from llama_chat.server.access import parse_origin
from llama_chat.server.sockets import Holder, SocketFile, holder_of, listening_on_port
from tests.servers import Server, running_server
from tests.test_server import HELLO, metrics, post, request

_LONG_TEXT = {"type": "string", "minLength": 400}
LONG = {"type": "json_schema", "json_schema": {"name": "x", "schema": _LONG_TEXT}}
"""Form of an answer that does not end before the next request."""

FLAGS = ("--temperature", "0", "--max-tokens", "6", "-v")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def server(home: Path, gguf_model: Path) -> Iterator[Server]:
    with running_server(home, gguf_model) as running:
        yield running


def ask(server: Server, home: Path, model: Path, *flags: str) -> Result:
    arguments = ("ask", "the cat", "-m", str(model), *FLAGS, *flags)
    return run(*arguments, home=home, XDG_RUNTIME_DIR=server.runtime)


def test_a_running_server_answers_as_the_model_here_does(
    server: Server, home: Path, gguf_model: Path
) -> None:
    warm, here = ask(server, home, gguf_model), ask(server, home, gguf_model, "--no-server")
    assert "answered by the server" in warm.err
    assert "answered by the server" not in here.err
    assert warm.out == here.out != ""
    assert "cut off after 6 tokens" in warm.err
    (home / "a.txt").write_text("the hat")
    arguments = ("complete", home / "a.txt", "-m", gguf_model, *FLAGS, "--echo")
    warm = run(*arguments, home=home, XDG_RUNTIME_DIR=server.runtime)
    assert "answered by the server" in warm.err
    assert warm.out == run(*arguments, "--no-server", home=home).out


SCHEMA = '{"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}'

TIMES = ("ttft_s", "prefill_tok_s", "decode_tok_s", "cached_tokens")


@pytest.mark.parametrize(
    "flags",
    [
        ("--logprobs", "2"),
        ("--temperature", "1", "--stop", "q"),
        ("--json-schema", SCHEMA, "--max-tokens", "40"),
        ("--regex", "(ab)+c", "--max-tokens", "40"),
    ],
    ids=str,
)
def test_the_json_of_the_server_is_that_of_the_command(
    flags: tuple[str, ...], server: Server, home: Path, gguf_model: Path
) -> None:
    text, prompt = home / "a.txt", home / "p.toml"
    text.write_text("the hat")
    prompt.write_text('system = "the house"\n[[examples]]\nuser = "a"\nassistant = "b"\n')
    for command in (
        ("ask", "the cat", "--prompt", prompt),
        ("complete", text),
        ("complete", "--chat", text),
    ):
        arguments = (*command, "-m", gguf_model, *FLAGS, "--seed", "5", "--json", *flags)
        warm = run(*arguments, home=home, XDG_RUNTIME_DIR=server.runtime)
        assert "answered by the server" in warm.err
        here = run(*arguments, "--no-server", home=home)
        found, wanted = ({**json.loads(done.out), **dict.fromkeys(TIMES)} for done in (warm, here))
        assert found == wanted
        assert found["receipt"]["ids"]
        assert (warm.status, here.status) == (0, 0)


def test_a_client_of_the_server_imports_no_torch(
    server: Server, home: Path, gguf_model: Path
) -> None:
    flags = ["the cat", "-m", str(gguf_model), "-q", "--max-tokens", "3"]
    code = (
        "import sys; from llama_chat.cli.app import run; "
        f"of_lines = run(['ask', '--lines', *{flags}]); "
        f"of_choices = run(['ask', '--choices', 'a,b', *{flags}]); "
        "assert 'httpx2' in sys.modules; del sys.modules['httpx2']; "
        f"status = run(['ask', *{flags}]); "
        "found = [name for name in ('torch', 'numpy', 'httpx2') if name in sys.modules]; "
        "print(found, of_lines, of_choices, status)"
    )
    command = (sys.executable, "-c", code)
    with cold(), Program(home=home, command=command, XDG_RUNTIME_DIR=server.runtime) as process:
        out, err = process.communicate(b"the hat\n")
    assert out.decode().endswith("[] 0 0 0\n"), (out, err)


def test_another_model_or_setting_is_loaded_here(
    server: Server, home: Path, gguf_model: Path
) -> None:
    done = ask(server, home, gguf_model, "--context", "128")
    assert done.status == 0
    assert "another model or other settings" in done.err


def test_errors_of_the_server_are_those_of_the_command(
    server: Server, home: Path, gguf_model: Path
) -> None:
    for text in ("cat " * 900, "cat " * 90_000):
        arguments = ("ask", text, "-m", gguf_model, "-q")
        warm, here = (
            run(*arguments, *flags, home=home, XDG_RUNTIME_DIR=server.runtime)
            for flags in ((), ("--no-server",))
        )
        assert_clean_error(warm, 4, "context of 512")
        assert warm == here
    flags = ("--lines", "-m", str(gguf_model), "-q")
    whole = run("ask", *flags, home=home, stdin=b"x" * 2**24, XDG_RUNTIME_DIR=server.runtime)
    assert json.loads(whole.out)["status"] == 4


def test_status_and_a_second_server(server: Server, home: Path, gguf_model: Path) -> None:
    shown = run("serve", "status", home=home, XDG_RUNTIME_DIR=server.runtime)
    assert json.loads(shown.out)["model"] == "random"
    second = run("serve", "-m", gguf_model, home=home, XDG_RUNTIME_DIR=server.runtime)
    assert_clean_error(second, 2, "a server is running there already")


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (("--port", "{taken}"), "port {taken} of 127.0.0.1: address already in use"),
        (("--port", "0", "--host", "{long}"), "xx: not a name of a machine"),
        (("--port", "0", "--host", "a..b"), "--host a..b: not a name of a machine"),
        (("--socket", "/tmp/{long}"), "xx': file name too long: choose another with --socket"),
    ],
    ids=str,
)
def test_an_address_that_cannot_be_had_is_told_before_the_model_is_read(
    home: Path, tmp_path: Path, flags: tuple[str, ...], part: str
) -> None:
    model = tmp_path / "cut.gguf"
    model.write_bytes(b"GGUF")  # an error of its own, if it is read
    with socket.create_server(("127.0.0.1", 0)) as taken:
        names = {"taken": str(taken.getsockname()[1]), "long": "x" * 110}
        flags = tuple(flag.format(**names) for flag in flags)
        flags += ("--api-key", "key")
        done = run("serve", "-m", model, *flags, home=home, XDG_RUNTIME_DIR=str(tmp_path))
    assert_clean_error(done, 2, part.format(**names))


def test_too_few_open_files_are_told_before_the_model_is_read(home: Path) -> None:
    serve = (sys.executable, "-m", "llama_chat", "serve", "-m", "missing.gguf")
    command = ("sh", "-c", 'ulimit -n 10; exec "$@"', "sh", *serve)
    with Program(home=home, command=command) as process:
        out, err = process.communicate()
    done = Result(process.wait(10), out.decode(), err.decode())
    assert_clean_error(done, 2, "ulimit -n 10: too few open files", "raise it to 64")


def test_an_address_in_brackets_is_one_of_ipv6() -> None:
    with listening_on_port("[::1]", 0) as listener:
        assert listener.getsockname()[0] == "::1"


def test_a_socket_of_a_dead_server_is_taken_over(home: Path, gguf_model: Path) -> None:
    with running_server(home, gguf_model) as first:
        first.process.kill()
        first.process.wait(10)
        assert first.socket.exists()
        missing = run("serve", "status", home=home, XDG_RUNTIME_DIR=first.runtime)
        assert_clean_error(missing, 1, "none is running")
        arguments = ("serve", "-m", str(gguf_model))
        with Program(*arguments, home=home, XDG_RUNTIME_DIR=first.runtime) as process:
            assert b"answers on" in process.stderr.readline()
            assert client.health(first.socket) is not None
            stopped = run("serve", "stop", home=home, XDG_RUNTIME_DIR=first.runtime)
            assert stopped.status == 0
            assert process.poll() == 0
        assert not first.socket.exists()


def test_running_answers_end_before_the_server_does(home: Path, gguf_model: Path) -> None:
    with running_server(home, gguf_model, "--grace", "30s") as server:
        body = {"messages": HELLO, "max_tokens": 400}
        events = client.stream(server.socket, "/v1/chat/completions", body)
        next(events)
        os.kill(int(client.health(server.socket)["pid"]), signal.SIGTERM)  # type: ignore[index]
        chunks = list(events)
        assert chunks[-1]["choices"][0]["finish_reason"] in ("length", "stop")
        assert server.process.wait(10) == 0
        assert not server.socket.exists()


def test_what_outlasts_the_grace_gets_an_error(home: Path, gguf_model: Path) -> None:
    with running_server(home, gguf_model, "--grace", "0.01s", "--parallel", "1") as server:
        body = {"messages": HELLO, "max_tokens": 450, "response_format": LONG, "n": 16}
        events = client.stream(server.socket, "/v1/chat/completions", body)
        next(events)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(post, server, "/v1/chat/completions", {"messages": HELLO})
            while metrics(server)["open_requests"] < 2:
                pass
            os.kill(int(client.health(server.socket)["pid"]), signal.SIGTERM)  # type: ignore[index]
            *_, last = events
            status, answer = waiting.result(30)
        assert (status, answer["error"]["type"]) == (503, "server_error")
        assert last == answer
        with pytest.raises(client.LostServer, match="shutting down"):
            list(client.events_of(last))
        assert server.process.wait(10) == 0


def test_a_server_ends_when_it_is_idle(home: Path, gguf_model: Path) -> None:
    with running_server(home, gguf_model, "--idle", "0.2s") as server:
        assert server.process.wait(20) == 0


KEY = "Bearer secret"


@pytest.fixture(scope="module")
def guarded(home: Path, gguf_model: Path) -> Iterator[Server]:
    """A server for other machines and a web page, which need a key."""
    flags = ("--host", "0.0.0.0", "--api-key", "secret", "--cors", "HTTP://Page:80/")
    with running_server(home, gguf_model, *flags) as running:
        yield running


def test_a_key_is_needed_for_other_addresses_and_checked(
    guarded: Server, home: Path, gguf_model: Path
) -> None:
    refused = run("serve", "-m", gguf_model, "--host", "0.0.0.0", home=home)
    assert_clean_error(refused, 2, "others can reach that address")
    assert request(guarded, "GET", "/health")[0] == 401
    assert request(guarded, "GET", "/v1/models", Authorization="Bearer secret2")[0] == 401
    assert request(guarded, "GET", "/v1/models", Authorization=KEY)[0] == 200
    assert client.health(guarded.socket) is not None  # its owner needs none


def test_a_key_is_one_that_clients_can_send(home: Path, gguf_model: Path) -> None:
    for key, why in (("", "it is empty"), (" ", "it is empty"), ("clé", "cannot be sent")):
        done = run("serve", "-m", gguf_model, "--api-key", key, home=home)
        assert_clean_error(done, 2, "--api-key: ", why)
    with running_server(home, gguf_model, "--api-key", " a-secret\n") as server:
        for sent, status in (("a-secret", 200), ("a-secre", 401), ("clé", 401)):
            found = request(server, "GET", "/v1/models", Authorization=f"Bearer {sent}")
            assert found[0] == status


def test_a_web_page_that_is_let_in_can_ask_before_it_sends_the_key(guarded: Server) -> None:
    page = {"Origin": "http://page"}
    allowed, status = headers(guarded, "OPTIONS", **page)
    assert (status, allowed["Access-Control-Allow-Origin"]) == (204, "http://page")
    assert "authorization" in allowed["Access-Control-Allow-Headers"]
    asked = "authorization,content-type,x-stainless-lang"
    allowed, status = headers(
        guarded, "OPTIONS", **page, **{"Access-Control-Request-Headers": asked}
    )
    assert (status, allowed["Access-Control-Allow-Headers"]) == (204, asked)
    allowed, status = headers(guarded, "GET", **page)
    assert (status, allowed["Access-Control-Allow-Origin"]) == (401, "http://page")
    assert headers(guarded, "GET", Authorization=KEY, **page)[1] == 200
    assert headers(guarded, "OPTIONS", Origin="http://evil")[1] == 403
    assert headers(guarded, "OPTIONS")[1] == 401


def test_what_is_no_origin_of_a_web_page_is_refused(home: Path, gguf_model: Path) -> None:
    for text in ("*", "", "null", "page", "http://", "http://page/chat", "http://*.page"):
        done = run("serve", "-m", gguf_model, "--cors", text, home=home)
        assert_clean_error(done, 2, f"--cors {text!r}: not the origin of a web page")
    assert parse_origin("app://Obsidian.md") == "app://obsidian.md"
    assert parse_origin("https://[::1]:443") == "https://[::1]"


def headers(server: Server, method: str, **sent: str) -> tuple[Message, int]:
    """Return the headers and the status of the answer to a request for the models."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request(method, "/v1/models", headers=sent)
    response = connection.getresponse()
    response.read()
    connection.close()
    return response.headers, response.status


def test_other_machines_may_call_this_one_by_any_name_if_they_have_the_key(
    guarded: Server,
) -> None:
    for host in ("192.168.1.20:8080", "[2001:db8::5]:8080", "gpu.example"):
        assert request(guarded, "GET", "/health", Host=host)[0] == 401
        assert request(guarded, "GET", "/health", Host=host, Authorization=KEY)[0] == 200


def test_each_socket_has_a_lock_of_its_own(tmp_path: Path) -> None:
    names = ("qwen.7b", "qwen.14b", "qwen.lock")
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(SocketFile(tmp_path / name))
        with pytest.raises(UsageError, match="is running there already"):
            stack.enter_context(SocketFile(tmp_path / "qwen.7b"))


def test_a_lock_is_gone_with_its_server_and_can_be_taken_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    for _ in range(2):
        with SocketFile(path) as taken, taken.listening():
            assert holder_of(path) == Holder(os.getpid(), True)
        assert not list(tmp_path.iterdir())
        assert holder_of(path) is None


def test_a_lock_that_was_removed_while_it_was_waited_for_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, flock = SocketFile(tmp_path / "a.sock"), fcntl.flock

    def leave_first(descriptor: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        first.__exit__()
        flock(descriptor, operation)

    first.__enter__()
    monkeypatch.setattr(fcntl, "flock", leave_first)
    with (
        SocketFile(tmp_path / "a.sock"),
        pytest.raises(UsageError, match="is running there already"),
        SocketFile(tmp_path / "a.sock"),
    ):
        pass


def test_a_lock_that_fails_says_why_and_leaves_nothing_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    before = n_open()
    with pytest.raises(UsageError, match="no locks available: choose another with --socket"):
        SocketFile(tmp_path / "a.sock").__enter__()
    assert n_open() == before


def n_open() -> int:
    """Count the open files of this process."""
    return len(list(Path("/dev/fd").iterdir()))


def test_no_folder_is_made_for_a_socket_that_is_named(home: Path, gguf_model: Path) -> None:
    done = run("serve", "-m", gguf_model, "--socket", home / "none/a.sock", home=home)
    assert_clean_error(done, 2, "a.sock': no such file or directory: choose another")
    assert not (home / "none").exists()


def test_a_port_that_is_taken_leaves_nothing_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        before = n_open()
        with (
            pytest.raises(UsageError, match="address already in use") as caught,
            listening_on_port("127.0.0.1", taken.getsockname()[1]),
        ):
            pass
        assert n_open() == before
        assert caught


def test_an_address_that_this_machine_lacks_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(*_: object, **__: object) -> list[Any]:
        kind = socket.AF_INET, socket.SOCK_STREAM, 0, ""
        return [(*kind, (address, 0)) for address in ("192.0.2.1", "127.0.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", find)
    with listening_on_port("localhost", 0) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"


def test_a_full_server_says_so(home: Path, gguf_model: Path) -> None:
    with running_server(home, gguf_model, "--max-requests", "1") as server:
        body = {"messages": HELLO, "max_tokens": 450, "response_format": LONG, "n": 4}
        events = client.stream(server.socket, "/v1/chat/completions", body)
        next(events)
        status, answer = post(server, "/v1/chat/completions", {"messages": HELLO, "max_tokens": 1})
        assert status == 429
        assert answer["error"]["type"] == "rate_limit_error"
        list(events)


def test_a_server_of_files_that_were_changed_is_not_asked(
    home: Path, gguf_model: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model.gguf"
    shutil.copy(gguf_model, model)
    with running_server(home, model) as server:
        asked = ("ask", "the cat", "-m", model, *FLAGS)
        done = run(*asked, home=home, XDG_RUNTIME_DIR=server.runtime)
        assert "answered by the server" in done.err
        os.utime(model)
        done = run(*asked, home=home, XDG_RUNTIME_DIR=server.runtime)
        assert "files of the model that were changed since" in done.err
        assert done.status == 0
