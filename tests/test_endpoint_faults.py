"""A server that fails costs one clear line, and nothing that was said."""

import json
import shutil
import ssl
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path

import pytest

from harness.fault_server import (
    DONE,
    Act,
    FaultServer,
    Script,
    answer,
    drip,
    event,
    fault_server,
    head,
    part,
    refusal,
    stream,
    whole,
)
from llama_chat.endpoint import answers, client
from llama_chat.endpoint.event_stream import MAX_EVENT_BYTES
from llama_chat.loading.endpoints import plan_endpoint
from llama_chat.settings.settings import Settings
from tests.endpoints import KEY, assert_one_line, send, session

CHUNKED = b"HTTP/1.1 200 X\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
TEXT = part("Hello")
END = part(None, "stop")
LOST = "in the middle of the answer"
WRONG = "cannot be read"


@dataclass(frozen=True)
class Fault:
    """An answer of a server, and what must come of it."""

    name: str
    script: Script
    status: int
    part: str
    kept: str = ""
    """Text that is kept, if any came."""


def failing(name: str, script: Script, part: str, status: int = 1, kept: str = "") -> Fault:
    return Fault(name, script, status, part, kept)


def pieces(**content: object) -> bytes:
    return event({"choices": [{"index": 0, "delta": content}]})


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


REFUSED = [
    failing("400", refusal(400, "bad"), r"status 400 \(bad\)"),
    failing("400 page", [head(400, "text/html"), b"<html>no</html>"], "status 400: "),
    failing("400 text", [head(400, "text/plain"), b"plain words"], r"\(plain words\)"),
    failing("401", refusal(401, "bad key"), r"another key \(bad key\).*LLAMA_CHAT_API_KEY"),
    failing("401 with the key", refusal(401, f"wrong: {KEY}!"), "wrong: …!"),
    failing("401 empty", whole(b"", 401), "another key: set"),
    failing("403", refusal(403), "does not allow"),
    failing("404", refusal(404, "no model x"), "no such model or route", 2),
    failing("404 page", [head(404, "text/html"), b"<h1>"], "no such model or route: ", 2),
    failing("413", refusal(413, "large"), "413"),
    failing("422 detail", whole({"detail": [{"msg": "bad"}]}, 422), "bad"),
    failing("429", refusal(429), "too often.*later"),
    failing("429 long", refusal(429, Retry_After="3600"), "try again in 3600 seconds"),
    failing("429 nonsense", refusal(429, Retry_After="soon"), "try again later"),
    failing("429 endless", refusal(429, Retry_After="9" * 400), "try again later"),
    failing("429 negative", refusal(429, Retry_After="-5"), "try again later"),
    failing("500", refusal(500, "boom"), r"status 500 \(boom\)"),
    failing("500 cut body", [head(500, length=99), b'{"error'], "status 500"),
    failing("500 list", whole([1, 2], 500), "500"),
    failing("500 null", whole(None, 500), "500"),
    failing("500 nested", whole(b"[" * 10**5, 500), "500"),
    failing("500 huge", whole({"error": "x" * 10**6}, 500), "status 500"),
    failing("500 with the key", refusal(500, "x " * 95 + KEY), "500 .x x.*…"),
    failing("500 with the key in escapes", whole(json.dumps({"error": KEY}).replace(
        "s", "\\u0073").encode(), 500), "500 "),
    failing("500 controls", refusal(500, "a\x1b[2J\nb\x00\x07"), "500 .a.*b"),
    failing("503", refusal(503, "loading"), r"503 \(loading\)"),
    failing("599", refusal(599), "599"),
    failing("long", refusal(400, "x", "context_length_exceeded"), "does not fit", 4),
    failing("long by words", refusal(400, "maximum context length is 9"), "does not fit", 4),
    failing("redirect", [head(302, Location="/v1/x")], "redirects to http://127"),
    failing("to nowhere", [head(307, Location="http://[")], "redirects to "),
    failing("in a circle", [head(307, Location="/v1/chat/completions")], "again and again"),
]  # fmt: skip

CONNECTIONS = [
    failing("closed", [], "no answer"),
    failing("reset", [Act.RESET], "no answer"),
    failing("half a head", [b"HTTP/1.1 200 X\r\nContent-"], "no answer"),
    failing("no HTTP", [b"SSH-2.0-OpenSSH\r\n"], "no answer"),
    failing("endless head", [b"HTTP/1.1 200 X\r\nA: " + b"a" * 2**18], "no answer"),
    failing("wrong length", [head(length=10) + b"\r\n", Act.RESET], "lost"),
    failing("no body", [head()], "ended early"),
    failing("cut after a comment", stream(b": hi\n\n"), "ended early"),
    failing("cut in an event", stream(TEXT, b'data: {"choi'), LOST, kept="Hello"),
    failing("cut before what is no key", stream(part(f"it is {KEY[:4]}")), LOST, kept="it is sk-s"),
    failing("cut between", stream(TEXT), LOST, kept="Hello"),
    failing("reset between", [*stream(TEXT), 0.05, Act.RESET], LOST, kept="Hello"),
    failing(
        "cut in a character",
        stream(TEXT, part("é").replace(b"\\u00e9", b"\xc3")[:30]),
        LOST,
        kept="Hello",
    ),
    failing("cut chunk", [CHUNKED + b"ff\r\n" + TEXT], LOST, kept="Hello"),
    failing("bad chunk", [CHUNKED + b"zz\r\n" + TEXT + b"\r\n"], "lost"),
    failing("endless chunk size", [CHUNKED + b"1" * 2**17], "lost"),
    failing("zipped", [head(Content_Encoding="gzip"), b"\x1f\x8b"], "compressed"),
]

SHAPES = [
    failing("page", [head(kind="text/html"), b"<html>"], "answers with text/html"),
    failing("odd kind", [head(kind="\x1b[2Jx/y")], "answers with|no answer"),
    failing("no JSON", stream(event(b"{oops"), DONE), WRONG),
    failing("no JSON after text", stream(TEXT, event(b"{oops"), DONE), LOST, kept="Hello"),
    failing("deep", stream(event(b"[" * 10**5)), WRONG),
    failing("number", stream(event(7)), "no JSON object"),
    failing("null", stream(event(None)), "no JSON object"),
    failing("choices a text", stream(event({"choices": "x"})), "not a list of objects"),
    failing("choices of numbers", stream(event({"choices": [1]})), "choices"),
    failing("content a number", stream(part(5)), "text is not a string"),
    failing("content a list", stream(TEXT, part(["x"])), LOST, kept="Hello"),
    failing("delta a text", stream(event({"choices": [{"delta": "x"}]})), "delta"),
    failing("reason a number", stream(part("x", 5)), "finish_reason"),
    failing("error", stream(event({"error": {"message": "boom"}})), r"failed \(boom\)"),
    failing("error a text", stream(event({"error": f"{KEY} \x1b[1m"})), "failed"),
    failing("error after text", stream(TEXT, event({"error": {"message": "oom"}})),
            r"\(oom\), in the middle", kept="Hello"),
    failing("long in the stream",
            stream(event({"error": {"message": "x", "code": "context_length_exceeded"}})),
            "does not fit", 4),
    failing("only the end", stream(DONE), "nothing in it"),
    failing("a tool", stream(part(None, "tool_calls"), DONE), "calls a tool in place"),
    failing("a tool, whole", whole({"choices": [{"message": {"content": None, "tool_calls": [{}]},
            "finish_reason": "tool_calls"}]}), "calls a tool in place"),
    failing("no choices", stream(event({"choices": []}), DONE), "nothing in it"),
    failing("endless line", stream(b"data: " + b"x" * (MAX_EVENT_BYTES + 1)), "larger than"),
    failing("endless event", stream(b"data: x\n" * (MAX_EVENT_BYTES // 2)), "larger than"),
    failing("whole, no JSON", whole(b"{oops"), WRONG),
    failing("whole, a list", whole([]), "no JSON object"),
    failing("whole, nothing", whole({}), "nothing in it"),
]  # fmt: skip

FAULTS = [*REFUSED, *CONNECTIONS, *SHAPES]


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with fault_server() as running:
        yield running


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
def test_a_fault_is_one_line_and_what_came_is_kept(server: FaultServer, fault: Fault) -> None:
    server.scripts = [fault.script]
    talk = session(server)
    found = send(talk)
    assert found.error is not None
    assert_one_line(found.error, fault.part, f"127.0.0.1:{server.port}")
    assert found.error.status == fault.status
    assert found.text == fault.kept
    reply = talk.conversation.head
    if not fault.kept:
        assert (reply, list(talk.conversation.all)) == (None, [])
    else:
        assert reply is not None
        assert (reply.text, reply.interrupted) == (fault.kept, True)
    assert all(message.content.find(KEY) < 0 for message in talk.conversation.all)


@pytest.mark.parametrize(
    ("script", "text"),
    [
        (answer("Hel", "lo"), "Hello"),
        (stream(part("a"), part("b"), END, DONE), "ab"),
        (stream(part("a"), part(None, "stop")), "a"),  # without an end
        (stream(part("a", "stop"), b"data: {oops\n\n"), "a"),
        ([*stream(part("a", "stop")), Act.RESET], "a"),
        (stream(part("a", "eos"), DONE), "a"),
        (stream(b"\xef\xbb\xbf" + part("a").replace(b"\n", b"\r\n"), END, DONE), "a"),
        (stream(b": ping\n\nevent: x\nid: 1\n" + part("a"), END, DONE), "a"),
        (stream(b'data: {"choices":\ndata: [{"delta":{"content":"a"}}]}\n\n', END, DONE), "a"),
        (stream(event({}), event({"choices": None}), part("a"), END, DONE), "a"),
        (stream(pieces(role="x"), pieces(content=None), pieces(content="a"), END, DONE), "a"),
        (stream(pieces(refusal="I may not"), END, DONE), "I may not"),
        (stream(event({"choices": [{"index": 1, "delta": 0}]}), part("a"), END, DONE), "a"),
        (stream(event({"choices": [{"text": "a"}]}), END, DONE), "a"),
        (stream(part("a").replace(b"a", b"\xff", 1)[:0] + event(
            b'{"choices":[{"delta":{"content":"a\xff"}}]}'), END, DONE), "a\ufffd"),
        (stream(event(b'{"choices":[{"delta":{"content":"\\ud83d"}}]}'), END, DONE), "\ufffd"),
        (whole({"choices": [{"message": {"content": "whole"}, "finish_reason": "stop"}]}), "whole"),
        ([CHUNKED, *map(chunk, (TEXT, END, DONE, b""))], "Hello"),
        (list(drip(head() + TEXT + END + DONE, 0.0)), "Hello"),
        (stream(part(f"a{KEY[:9]}"), part(f"{KEY[9:]}b{KEY[:4]}"), END, DONE), "a…bsk-s"),
    ],
)  # fmt: skip
def test_odd_answers_that_mean_something_are_answers(
    server: FaultServer, script: Script, text: str
) -> None:
    server.scripts = [script]
    talk = session(server)
    found = send(talk)
    assert (found.error, found.text) == (None, text)
    reply = talk.conversation.head
    assert reply is not None
    assert (reply.text, reply.interrupted) == (text, False)


def test_an_answer_that_ends_without_a_reason_counts_as_interrupted(server: FaultServer) -> None:
    notes: list[str] = []
    talk = session(server, notify=notes.append)
    for script in (stream(TEXT, DONE), whole({"choices": [{"text": "Hello"}]})):
        server.scripts = [script]
        found = send(talk)
        assert found.finish is not None
        assert (found.text, found.finish.reason) == ("Hello", "interrupted")
        reply = talk.conversation.head
        assert reply is not None
        assert reply.interrupted
    assert notes == ["the server ended the answer without saying why"] * 2


def test_a_tool_that_is_called_after_a_text_is_told(server: FaultServer) -> None:
    notes: list[str] = []
    server.scripts = [stream(TEXT, part(None, "tool_calls"), DONE)]
    found = send(session(server, notify=notes.append))
    assert (found.error, found.text) == (None, "Hello")
    assert notes == ["the server called a tool, which is left out"]


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        ({"prompt_tokens": 7, "completion_tokens": 2}, (7, 0, 2, "server")),
        (
            {
                "prompt_tokens": 7,
                "completion_tokens": 2,
                "prompt_tokens_details": {"cached_tokens": 10**9},
            },
            (7, 7, 2, "server"),
        ),
        ({"prompt_tokens": -7, "completion_tokens": 2}, (0, 0, 2, "chunks")),
        ({"prompt_tokens": 10**30, "completion_tokens": 2}, (0, 0, 2, "chunks")),
        ({"prompt_tokens": 7.5, "completion_tokens": True}, (0, 0, 2, "chunks")),
        ({"prompt_tokens": 7}, (0, 0, 2, "chunks")),
        ("many", (0, 0, 2, "chunks")),
    ],
)
def test_counts_of_a_server_are_taken_if_they_can_be(
    server: FaultServer, usage: object, counts: tuple[object, ...]
) -> None:
    server.scripts = [answer("Hel", "lo", usage=usage)]
    finish = send(session(server)).finish
    assert finish is not None
    found = finish.usage
    prompt, cached, written = found.prompt_tokens, found.cached_tokens, found.completion_tokens
    assert (prompt, cached, written, found.counted_by) == counts


@pytest.mark.parametrize(
    ("script", "kept"),
    [
        ([Act.HOLD], ""),
        ([head(), Act.HOLD], ""),
        ([*stream(TEXT), Act.HOLD], "Hello"),
        (list(drip(head(), 0.02)), ""),
        ([head(), *drip(b": ping\n\n" * 40, 0.01)], ""),
        ([*stream(TEXT), *drip(b": ping\n\n" * 40, 0.01)], "Hello"),
    ],
)
def test_a_server_that_is_silent_or_drips_is_not_waited_for(
    server: FaultServer, script: Script, kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.scripts = [script]
    talk = session(server, 0.15)
    monkeypatch.setattr(talk.model.client, "timeouts", client.Timeouts(0.05, 0.15))
    found = send(talk)
    assert found.error is not None
    assert_one_line(found.error, "silent for 0.15 s")
    assert found.text == kept


def test_answers_have_an_end(server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "MAX_TEXT", 2**20)
    monkeypatch.setattr(client, "MAX_ANSWER_BYTES", 2**22)
    server.scripts = [stream(*[part("x" * 2**18)] * 20)]
    found = send(session(server))
    assert found.error is not None
    assert_one_line(found.error, "longer than 1 MiB", LOST)
    assert len(found.text) <= 2**20
    server.scripts = [stream(*[b": " + b"x" * 2**18 + b"\n\n"] * 20)]
    found = send(session(server))
    assert found.error is not None
    assert_one_line(found.error, "larger than 4 MiB")


def test_a_request_is_sent_again_only_where_that_is_safe(server: FaultServer) -> None:
    until = formatdate(time.time() - 5, usegmt=True)
    server.scripts = [
        refusal(429, Retry_After="0"),
        refusal(503, Retry_After="0.02"),
        refusal(503, Retry_After=until),
        answer("Hello"),
    ]
    assert send(session(server)).text == "Hello"
    assert len(server.received) == 4
    assert len({json.dumps(each.body) for each in server.received}) == 1
    for script in (refusal(500, Retry_After="0"), stream(TEXT), [Act.RESET], refusal(429)):
        server.scripts, server.received = [script], []
        assert send(session(server)).error is not None
        assert len(server.received) == 1
    server.scripts, server.received = [refusal(503, Retry_After="0")], []
    assert send(session(server)).error is not None
    assert len(server.received) == 4


def test_the_key_goes_to_its_own_server_alone(server: FaultServer) -> None:
    with fault_server(answer("stolen")) as other:
        for status in (301, 302, 303, 307, 308):
            place = f"{other.url}/v1/chat/completions?{KEY}"
            server.scripts = [[head(status, Location=place)]]
            found = send(session(server))
            assert found.error is not None
            assert_one_line(found.error, "redirects to http://127.0.0.1", "itself")
        assert (other.received, other.authorized) == ([], set())
    server.received = []
    server.scripts = [[head(307, Location="/v2/chat")], answer("Hello")]
    assert send(session(server)).text == "Hello"
    assert [each.path for each in server.received] == ["/v1/chat/completions", "/v2/chat"]
    assert server.authorized == {f"Bearer {KEY}"}


def test_a_key_as_short_as_a_word_leaves_errors_as_they_are(server: FaultServer) -> None:
    server.scripts = [refusal(401, "no key is known to end in on")]
    talk = session(server)
    talk.model.client.key = "no"
    found = send(talk)
    assert found.error is not None
    assert "(no key is known to end in on)" in str(found.error)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_a_certificate_must_be_trusted(
    server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = ("-keyout", tmp_path / "key.pem", "-out", tmp_path / "cert.pem")
    kind = ("-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    names = ("-subj", "/CN=x", "-addext", "subjectAltName=IP:127.0.0.1")
    subprocess.run(["openssl", "req", *kind, *names, *files], check=True, capture_output=True)
    server.scripts = [answer("Hello")]
    server.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.tls.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    client._trust.cache_clear()
    found = send(session(server))
    assert found.error is not None
    assert_one_line(found.error, "no secure connection .*certificate", "SSL_CERT_FILE")
    assert (server.received, server.authorized) == ([], set())
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
    client._trust.cache_clear()
    assert send(session(server)).text == "Hello"
    client._trust.cache_clear()


def test_a_key_that_others_could_read_earns_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_CHAT_API_KEY", KEY)
    [line] = plan_endpoint("http://192.0.2.1:80", Settings(), None).warnings
    assert "without encryption: use https" in line
    assert KEY not in line
    for url in ("https://192.0.2.1", "http://127.0.0.1:9", "http://localhost", "unix:/x"):
        assert plan_endpoint(url, Settings(), None).warnings == ()
    monkeypatch.delenv("LLAMA_CHAT_API_KEY")
    assert plan_endpoint("http://192.0.2.1:80", Settings(), None).warnings == ()
