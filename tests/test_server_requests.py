"""Requests to the server: null is the default, unsupported fields are refused, errors name them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.schemas import optional
from tests.servers import Server, running_server
from tests.test_server import HELLO, metrics, post

CHAT: dict[str, Any] = {"messages": HELLO}
COMPLETION: dict[str, Any] = {"prompt": "the cat"}
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["n"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, gguf_model: Path) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("server")
    flags = ("--template", "plain", "--temperature", "0", "--max-tokens", "4")
    with running_server(home, gguf_model, *flags) as running:
        yield running


def ask(server: Server, body: dict[str, Any]) -> tuple[int, Any]:
    """Post a body to the route that it is for."""
    return post(server, "/v1/chat/completions" if "messages" in body else "/v1/completions", body)


CALL = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function"}]}
TOLD = {"role": "tool", "tool_call_id": "1", "content": "x"}


def choices(answer: Any) -> list[Any]:
    found: list[Any] = answer["choices"]
    return found


NULLABLE = (
    *("frequency_penalty", "logit_bias", "logprobs", "max_tokens", "n", "presence_penalty", "seed"),
    *("stop", "stream", "stream_options", "temperature", "top_p"),
)
"""Fields that OpenAI documents as nullable, of both routes."""


@pytest.mark.parametrize(
    ("body", "names"),
    [
        (CHAT, (*NULLABLE, "max_completion_tokens", "modalities", "top_logprobs")),
        (COMPLETION, (*NULLABLE, "best_of", "echo", "suffix")),
    ],
    ids=["chat", "completion"],
)
def test_null_is_the_default(server: Server, body: dict[str, Any], names: tuple[str, ...]) -> None:
    status, answer = ask(server, body | dict.fromkeys(names))
    assert status == 200, answer
    assert choices(answer) == choices(ask(server, body)[1])


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (CHAT | {"logit_bias": {"50256": -100}}, "logit_bias"),
        (COMPLETION | {"logit_bias": {"50256": -100}}, "logit_bias"),
        (CHAT | {"presence_penalty": 1}, "presence_penalty"),
        (CHAT | {"tools": [{"type": "function"}], "tool_choice": "required"}, "tool_choice"),
        (CHAT | {"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        (CHAT | {"function_call": {"name": "f"}}, "function_call"),
        (CHAT | {"modalities": ["text", "audio"]}, "modalities"),
        (COMPLETION | {"best_of": 2}, "best_of"),
        (COMPLETION | {"best_of": 3, "n": 2}, "best_of"),
        (COMPLETION | {"suffix": " sat"}, "suffix"),
        (COMPLETION | {"echo": True, "logprobs": 0}, "logprobs"),
        (CHAT | {"top_logprobs": 2}, "top_logprobs"),
        (CHAT | {"max_tokens": 2.5}, "max_tokens"),
        (CHAT | {"max_tokens": "2"}, "max_tokens"),
        (CHAT | {"seed": 2**63}, "seed"),
    ],
    ids=str,
)
def test_what_cannot_be_kept_is_refused(server: Server, body: dict[str, Any], field: str) -> None:
    status, answer = ask(server, body)
    assert status == 400, answer
    assert answer["error"]["param"] == field
    assert field in answer["error"]["message"]


@pytest.mark.parametrize(
    "body",
    [
        CHAT | {"tools": [{"type": "function"}], "tool_choice": "auto", "logit_bias": {}},
        CHAT | {"tools": [], "tool_choice": "none", "function_call": "auto"},
        CHAT | {"modalities": ["text"], "user": "me", "metadata": {"a": "b"}, "store": True},
        CHAT | {"top_logprobs": 0, "logprobs": False},
        COMPLETION | {"best_of": 1, "suffix": "", "echo": False, "logprobs": 1},
        COMPLETION | {"n": 2, "best_of": 2, "response_format": {"type": "text"}},
    ],
    ids=str,
)
def test_what_changes_nothing_is_ignored(server: Server, body: dict[str, Any]) -> None:
    status, answer = ask(server, body)
    assert status == 200, answer


@pytest.mark.parametrize(
    ("body", "same"),
    [
        (CHAT | {"max_tokens": 2.0, "n": 2.0}, CHAT | {"max_tokens": 2, "n": 2}),
        (CHAT | {"max_completion_tokens": 3.0}, CHAT | {"max_completion_tokens": 3}),
        (COMPLETION | {"logprobs": 1.0, "seed": 5.0}, COMPLETION | {"logprobs": 1, "seed": 5}),
        (CHAT | {"seed": -1, "temperature": 1}, CHAT | {"seed": 2**63 - 1, "temperature": 1}),
    ],
    ids=str,
)
def test_numbers_may_be_written_as_other_clients_do(
    server: Server, body: dict[str, Any], same: dict[str, Any]
) -> None:
    status, answer = ask(server, body)
    assert status == 200, answer
    assert choices(answer) == choices(ask(server, same)[1])


def test_a_completion_meets_a_schema_too(server: Server) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    _, answer = ask(server, COMPLETION | {"response_format": form, "max_tokens": 60})
    jsonschema.validate(json.loads(choices(answer)[0]["text"]), SCHEMA)


@pytest.mark.parametrize(
    ("body", "param", "part"),
    [
        (COMPLETION | {"prompt": ["a"] * 17}, "prompt", "at most 16 items"),
        (COMPLETION | {"prompt": [[1]] * 17}, "prompt", "at most 16 items"),
        (COMPLETION | {"prompt": [-1]}, "prompt", "greater than or equal to 0"),
        (COMPLETION | {"prompt": [[1, -1]]}, "prompt", "greater than or equal to 0"),
        (COMPLETION | {"prompt": None}, "prompt", "valid string"),
        (COMPLETION | {"prompt": ["a", 1]}, "prompt", "valid string"),
        ({"messages": [{"role": "user", "content": None}]}, "messages", "valid string"),
        ({"messages": [{"role": "user", "content": [{"text": 1}]}]}, "messages", "type"),
        ({"messages": [*HELLO, CALL]}, "messages", "tools are not supported"),
        ({"messages": [*HELLO, TOLD]}, "messages", "tools are not supported"),
        (CHAT | {"temperature": 11}, "temperature", "less than or equal to 10"),
        (CHAT | {"model": "gpt-9"}, "model", "gpt-9"),
    ],
    ids=str,
)
def test_an_error_says_which_field_is_wrong_and_why(
    server: Server, body: dict[str, Any], param: str, part: str
) -> None:
    _, answer = ask(server, body)
    error = answer["error"]
    assert (error["param"], part in error["message"]) == (param, True), error
    assert "constrained" not in error["message"]


def test_a_schema_that_becomes_too_complex_is_an_error_of_its_author(server: Server) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": optional(600)}}
    for stream in (False, True):
        status, answer = ask(server, CHAT | {"response_format": form, "stream": stream})
        assert (status, answer["error"]["type"]) == (400, "invalid_request_error")


def test_errors_of_clients_are_no_failures_of_the_server(server: Server) -> None:
    before = metrics(server)
    for body in (CHAT | {"max_tokens": 1}, {"prompt": "cat " * 2000}, {"prompt": [10**9]}):
        ask(server, body)
    after = metrics(server)
    assert after["requests_total"] == before["requests_total"] + 3
    assert after["failed_total"] == before["failed_total"]


def test_the_type_of_a_body_may_have_capitals(server: Server) -> None:
    kinds = ("Application/JSON", "application/json; charset=utf-8", "APPLICATION/JSON ;a=b")
    for kind in kinds:
        assert post(server, "/v1/chat/completions", CHAT, Content_Type=kind)[0] == 200
    assert post(server, "/v1/chat/completions", CHAT, Content_Type="text/json")[0] == 415
