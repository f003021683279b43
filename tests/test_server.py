"""The server is OpenAI-compatible, with many, slow, wrong and vanished clients."""

import http.client
import json
import socket
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.program import run
from llama_chat.server import client
from tests.servers import Server, running_server

if TYPE_CHECKING:
    from openai import OpenAI

FIELDS = (
    *("messages", "prompt", "role", "content", "max_tokens", "stop", "n", "stream"),
    *("temperature", "seed", "logprobs", "response_format", "type", "text"),
)
SEQUENCES = ("running_sequences", "waiting_sequences")
HELLO = [{"role": "user", "content": "the cat"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, gguf_model: Path) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("server")
    with running_server(home, gguf_model, "--template", "plain", "--temperature", "0") as running:
        yield running


@pytest.fixture(scope="module")
def api(server: Server) -> "OpenAI":
    import openai  # slow, and for this file alone

    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)


def metrics(server: Server) -> dict[str, int]:
    status, body = request(server, "GET", "/metrics")
    assert status == 200
    lines = [line.split() for line in body.decode().splitlines() if line[0] != "#"]
    return {name.removeprefix("llama_chat_"): int(value) for name, value in lines}


def request(
    server: Server, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    headers = {"Content-Type": "application/json"} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    found = response.status, response.read()
    connection.close()
    return found


def post(server: Server, path: str, body: object, **headers: str) -> tuple[int, Any]:
    status, data = request(server, "POST", path, json.dumps(body).encode(), **headers)
    return status, json.loads(data)


def test_a_chat_is_answered_as_ask_answers(server: Server, api: Any, gguf_model: Path) -> None:
    reply = api.chat.completions.create(model="random", messages=HELLO, max_tokens=8)
    flags = ("--template", "plain", "--temperature", "0", "--max-tokens", "8", "-q", "--json")
    alone = run("ask", "the cat", "-m", gguf_model, *flags, home=gguf_model.parent)
    wanted = json.loads(alone.out)
    assert reply.choices[0].message.content == wanted["text"]
    assert reply.choices[0].finish_reason == wanted["finish_reason"] == "length"
    assert reply.usage.prompt_tokens == wanted["prompt_tokens"]
    assert reply.usage.completion_tokens == 8


def test_the_model_has_its_own_name_and_that_it_was_started_by(
    server: Server, api: Any, gguf_model: Path
) -> None:
    [listed] = api.models.list().data
    assert listed.id == "random"
    for name in ("random", str(gguf_model)):
        assert api.models.retrieve(name) == listed
        reply = api.chat.completions.create(model=name, messages=HELLO, max_tokens=2)
        assert reply.model == listed.id
    for path in ("/v1/models/gpt-9", "/v1/models/"):
        status, body = request(server, "GET", path)
        assert (status, json.loads(body)["error"]["code"]) == (404, "model_not_found")


def test_a_stream_has_the_text_of_the_whole(api: Any) -> None:
    options: dict[str, Any] = {"model": "random", "messages": HELLO, "max_tokens": 12}
    whole = api.chat.completions.create(**options)
    chunks = list(
        api.chat.completions.create(**options, stream=True, stream_options={"include_usage": True})
    )
    assert chunks[-1].usage == whole.usage or chunks[-1].usage.completion_tokens == 12
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks[:-1]]
    assert "".join(texts) == whole.choices[0].message.content
    assert len(texts) > 5
    assert chunks[-2].choices[0].finish_reason == "length"


def test_a_stream_has_the_log_probabilities_of_all_tokens(api: Any) -> None:
    options: dict[str, Any] = {"model": "random", "prompt": "the", "max_tokens": 12, "logprobs": 1}
    text = api.completions.create(**options).choices[0].text
    options["stop"] = text[2:-2] + "?"  # held back from the third character on
    whole = api.completions.create(**options).choices[0]
    chunks = [chunk.choices[0] for chunk in api.completions.create(**options, stream=True)]
    told = [each.logprobs for each in chunks if each.logprobs]
    assert whole.text == text
    assert "".join(each.text for each in chunks) == text
    tokens = [token for each in told for token in each.tokens]
    logprobs = [logprob for each in told for logprob in each.token_logprobs]
    assert (tokens, logprobs) == (whole.logprobs.tokens, whole.logprobs.token_logprobs)
    offsets = [offset for each in told for offset in each.text_offset]
    assert offsets == whole.logprobs.text_offset
    assert offsets[0] == 0
    for token, offset in zip(tokens, offsets, strict=True):
        if "\ufffd" not in token:  # one of the bytes of a character
            assert text[offset:].startswith(token)


def test_each_of_several_prompts_is_counted_once(api: Any) -> None:
    options: dict[str, Any] = {"model": "random", "max_tokens": 3}
    prompts = ("the cat", "the", "a longer one")
    alone = [api.completions.create(prompt=each, **options).usage for each in prompts]
    usage = api.completions.create(prompt=list(prompts), n=2, **options).usage
    assert usage.prompt_tokens == sum(each.prompt_tokens for each in alone)
    assert usage.completion_tokens == 2 * sum(each.completion_tokens for each in alone)
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_completions_have_logprobs_choices_seeds_and_echo(api: Any) -> None:
    done = api.completions.create(
        model="random",
        prompt="the",
        max_tokens=4,
        n=3,
        seed=5,
        temperature=1,
        logprobs=2,
    )
    assert [choice.index for choice in done.choices] == [0, 1, 2]
    assert len({choice.text for choice in done.choices}) == 3
    logprobs = done.choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == 4
    assert all(len(each) <= 2 for each in logprobs.top_logprobs)
    again = api.completions.create(
        model="random", prompt="the", max_tokens=4, seed=6, temperature=1, echo=True
    )
    assert again.choices[0].text == "the" + done.choices[1].text


def test_ids_are_continued_as_their_text_is(api: Any, server: Server) -> None:
    _, found = post(server, "/v1/tokenize", {"text": "the cat"})
    options: dict[str, Any] = {"model": "random", "max_tokens": 6, "echo": True}
    text = api.completions.create(prompt="the cat", **options).choices[0].text
    ids = found["tokens"]
    assert api.completions.create(prompt=ids, **options).choices[0].text.endswith(text)
    both = api.completions.create(prompt=[ids, ids[:-1]], **options).choices
    assert both[0].text.endswith(text)
    wrong: list[object] = [[], [10**9], [-1], [[]], [1, [2]], [True], [0.5], [1] * 600]
    for prompt in wrong:
        status, answer = post(server, "/v1/completions", {"prompt": prompt})
        assert status == 400, answer


def test_a_reply_meets_a_schema(api: Any) -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer", "maximum": 9}, "w": {"enum": ["a", "b"]}},
        "required": ["n", "w"],
        "additionalProperties": False,
    }
    reply = api.chat.completions.create(
        model="random",
        messages=HELLO,
        max_tokens=60,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
    )
    jsonschema.validate(json.loads(reply.choices[0].message.content), schema)


def test_a_dialog_that_is_sent_again_is_cached(server: Server) -> None:
    messages = [{"role": "system", "content": "be brief " * 6}, *HELLO]
    body: dict[str, Any] = {"messages": messages, "max_tokens": 6}
    _, first = post(server, "/v1/chat/completions", body)
    reply = first["choices"][0]["message"]["content"]
    body["messages"] += [
        {"role": "assistant", "content": reply},
        {"role": "user", "content": "why"},
    ]
    _, second = post(server, "/v1/chat/completions", body)
    cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached >= first["usage"]["prompt_tokens"] - 9


@pytest.mark.parametrize(
    ("body", "status", "part"),
    [
        ({"messages": []}, 400, "messages"),
        ({"messages": HELLO, "temperature": -1}, 400, "temperature"),
        ({"messages": HELLO, "model": "gpt-9"}, 404, "gpt-9"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, 400, "begin with the user"),
        ({"messages": [*HELLO, {"role": "system", "content": "x"}]}, 400, "system"),
        ({"messages": [{"role": "user", "content": "cat " * 2000}]}, 400, "no space for a reply"),
        ({"messages": [{"role": "user", "content": "cat " * 90_000}]}, 400, "do not fit"),
        ({"messages": HELLO, "n": 1000}, 400, "n"),
        ({"messages": HELLO, "response_format": {"type": "json_schema"}}, 400, "json_schema"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "text"),
        ([], 400, "body"),
    ],
)
def test_a_wrong_request_gets_an_error_in_the_usual_shape(
    server: Server, body: object, status: int, part: str
) -> None:
    found, answer = post(server, "/v1/chat/completions", body)
    assert found == status
    assert part in answer["error"]["message"]
    assert set(answer["error"]) == {"message", "type", "param", "code"}


@settings(max_examples=60)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(FIELDS),
                inner,
                max_size=5,
            )
        ),
        max_leaves=12,
    )
    | st.binary(max_size=60)
)
def test_no_body_breaks_the_server(server: Server, body: object) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/tokenize"):
        status, _ = request(server, "POST", path, data)
        assert status in (200, 400, 404)


def test_what_does_not_come_from_here_gets_nothing(server: Server) -> None:
    assert request(server, "GET", "/v1/models", Host="evil.example")[0] == 403
    assert request(server, "GET", "/health", Host="127.0.0.1.evil.example:80")[0] == 403
    assert request(server, "GET", "/health", Origin="https://evil.example")[0] == 403
    body = json.dumps({"messages": HELLO}).encode()
    status, _ = request(server, "POST", "/v1/chat/completions", body, Content_Type="text/plain")
    assert status == 415
    assert request(server, "GET", "/health", Host=f"localhost:{server.port}")[0] == 200
    assert request(server, "GET", "/nothing")[0] == 404
    assert request(server, "DELETE", "/v1/models")[0] == 405
    with socket.create_connection(("127.0.0.1", server.port)) as raw:
        raw.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n")
        raw.sendall(b"Content-Type: application/json\r\nContent-Length: 99999999999\r\n\r\n")
        assert b" 413 " in raw.recv(1000)


def test_many_clients_at_once_are_all_answered(server: Server, api: Any) -> None:
    def answer(i: int) -> str:
        messages = [{"role": "user", "content": f"the cat {i % 4}"}]
        reply = api.chat.completions.create(model="random", messages=messages, max_tokens=10)
        text: str = reply.choices[0].message.content
        return text

    with ThreadPoolExecutor(32) as pool:
        texts = list(pool.map(answer, range(32)))
    assert [texts[i] == texts[i % 4] for i in range(32)] == [True] * 32


def test_clients_that_vanish_leave_nothing(server: Server) -> None:
    body = json.dumps({"messages": HELLO, "max_tokens": 400, "stream": True}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
    head += b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    whole = head + body
    before = metrics(server)

    def vanish(i: int) -> None:
        with socket.create_connection(("127.0.0.1", server.port)) as raw:
            raw.sendall(whole[: len(whole) if i % 3 else 20 * i])
            if i % 3 == 2:
                raw.recv(50 * i)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(vanish, range(30)))
    for _ in range(200):
        after = metrics(server)
        # A sequence ends after its request, at the next token.
        left = [after[name] for name in ("open_requests", *SEQUENCES)]
        if not any(left):
            break
        threading.Event().wait(0.05)
    assert left == [0, 0, 0]
    assert after["completion_tokens_total"] - before["completion_tokens_total"] < 30 * 400
    assert client.health(server.socket) is not None


def test_the_socket_file_is_its_owners(server: Server) -> None:
    assert stat.S_IMODE(server.socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(server.socket.parent.stat().st_mode) == 0o700


def test_text_of_a_client_is_never_a_control_token(server: Server) -> None:
    status, found = post(server, "/v1/tokenize", {"text": "<|im_start|>", "add_special": False})
    assert status == 200
    assert found["count"] > 1


@pytest.mark.parametrize("chunk", [{"choices": []}, {"choices": [{}]}, {}, [], None])
def test_what_is_no_part_of_an_answer_is_of_no_server_of_ours(chunk: Any) -> None:
    with pytest.raises(client.LostServer):
        list(client.events_of(chunk))
