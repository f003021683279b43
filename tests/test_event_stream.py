"""Event streams as servers write them, in parts of any size."""

import pytest

from harness.fault_server import DONE, Act, Script, event, fault_server, part, stream
from llama_chat.endpoint.event_stream import EventStream
from tests.endpoints import assert_one_line, send, session

TEXT = (
    b"\xef\xbb\xbf: hi\ndata: a\ndata:b\n\n"
    b"event: error\nid: 7\ndata: c\n\n\ndata: d\n\ndata: [DONE]\n"
)
EVENTS = [("", "a\nb"), ("error", "c"), ("", "d"), ("", "[DONE]")]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=repr)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_lines_end_in_any_of_the_ways_of_the_standard(end: bytes, size: int) -> None:
    data, events = TEXT.replace(b"\n", end), EventStream()
    parts = [data[i : i + size] for i in range(0, len(data), size)]
    found = [(each.name, each.data) for part in parts for each in events.feed(part)]
    assert found == EVENTS


@pytest.mark.parametrize(
    "script",
    [
        [*stream(part("Hello", "stop"), DONE[:-1]), Act.HOLD],
        [*stream(part("Hello"), part(None, "length"), b"data: [DONE]\r\n"), Act.HOLD],
    ],
)
def test_an_answer_ends_with_its_mark_though_the_connection_does_not(script: Script) -> None:
    with fault_server(script) as server:
        found = send(session(server, silence_s=600.0))
        assert (found.error, found.text) == (None, "Hello")
        assert server.gone.wait(30)


def test_a_complete_answer_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llama_chat.endpoint.client._AFTER_END_S", 0.2)
    usage = event({"usage": {"prompt_tokens": 1, "completion_tokens": 2}})
    with fault_server([*stream(part("Hello", "stop"), usage), Act.HOLD]) as server:
        found = send(session(server, silence_s=600.0))
        assert (found.error, found.text) == (None, "Hello")
        assert found.finish is not None
        assert found.finish.usage.counted_by == "server"


@pytest.mark.parametrize("data", [b'{"message": "boom"}', b"boom", b'{"error": "boom"}'])
def test_an_event_that_is_an_error_is_one(data: bytes) -> None:
    with fault_server(stream(b"event: error\n" + event(data), DONE)) as server:
        found = send(session(server))
        assert found.error is not None
        assert_one_line(found.error, r"failed \(boom\)")


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ((r"a\ud83d", r"\ude00b"), "a\U0001f600b"),
        ((r"a\ud83d", "", r"\ude00"), "a\U0001f600"),
        ((r"a\ud83d", "b"), "a\ufffdb"),
        ((r"a\ud83d",), "a\ufffd"),
        ((r"\ude00", r"\ud83d\ud83d", r"\ude00"), "\ufffd\ufffd\U0001f600"),
    ],
)
def test_a_character_may_come_in_two_parts(parts: tuple[str, ...], text: str) -> None:
    pieces = [
        event(b'{"choices": [{"delta": {"content": "%s"}}]}' % each.encode()) for each in parts
    ]
    with fault_server(stream(*pieces, part(None, "stop"), DONE)) as server:
        found = send(session(server))
        assert (found.error, found.text) == (None, text)
