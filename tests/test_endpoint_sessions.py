"""A conversation with a server is the one that a local model would hold."""

import time
from collections.abc import Iterator
from typing import Any

import pytest

from harness.fault_server import (
    DONE,
    Act,
    FaultServer,
    answer,
    event,
    fault_server,
    head,
    part,
    refusal,
    stream,
)
from llama_chat.chat.conversation import Attachment, Conversation, Example
from llama_chat.chat.encoding_remote_session import EncodingRemoteSession
from llama_chat.chat.records import ModelTag, keep_valid_ids
from llama_chat.chat.templates.chatml import ChatMLTemplate
from llama_chat.endpoint.answers import SeenTokens
from llama_chat.endpoint.served_model import ConcurrentRequests
from llama_chat.errors import LlamaChatError, PromptTooLongError, UsageError
from llama_chat.generation.events import Hooks
from llama_chat.settings.settings import Settings
from llama_chat.tokenizers.base import Tokenizer
from tests.endpoints import KEY, assert_one_line, outcome, send, served, session
from tests.sessions import TOKENIZER

TEXT = part("Hello")


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with fault_server(answer("Hel", "lo")) as running:
        yield running


def logprobs(token: str, **others: float) -> dict[str, object]:
    top = [{"token": each, "logprob": p} for each, p in others.items()]
    return {"logprobs": {"content": [{"token": token, "logprob": -0.5, "top_logprobs": top}]}}


def roles(request: Any) -> list[tuple[str, str]]:
    return [(each["role"], each["content"]) for each in request.body["messages"]]


def test_the_server_gets_the_dialog_and_the_settings(server: FaultServer) -> None:
    conversation = Conversation("ignored", [Example("a", "b")])
    talk = session(server, conversation=conversation)
    talk.configure(Settings(system="Be brief.", stop=("X",), max_tokens=9, seed=4, top_k=5))
    list(talk.send("one", attachments=[Attachment("text", "f.txt")]))
    list(talk.send("two"))
    first, second = server.received
    shown = [("system", "Be brief."), ("user", "a"), ("assistant", "b")]
    shown += [("user", "f.txt:\ntext\n\none")]
    assert roles(first) == shown
    assert roles(second) == [*shown, ("assistant", "Hello"), ("user", "two")]
    body = first.body
    assert (body["model"], body["stream"], body["stop"], body["max_tokens"]) == (
        *("m", True, ["X"]),
        9,
    )
    assert (body["temperature"], body["top_p"], body["seed"], body["top_k"]) == (0.6, 0.9, 4, 5)
    assert "min_p" not in body
    assert first.headers["authorization"] == f"Bearer {KEY}"


def test_retries_are_versions_and_a_cut_reply_is_continued(server: FaultServer) -> None:
    talk = session(server)
    server.scripts = [stream(TEXT), answer(" world"), answer("Bye")]
    assert send(talk).error is not None
    reply = talk.conversation.head
    assert reply is not None
    list(talk.continue_reply())
    assert (reply.text, reply.interrupted) == ("Hello world", False)
    assert roles(server.received[1]) == [("user", "hello"), ("assistant", "Hello")]
    assert server.received[1].body["continue_final_message"] is True
    list(talk.retry())
    assert [each.text for each in talk.conversation.versions()] == ["Hello world", "Bye"]
    assert roles(server.received[2]) == [("user", "hello")]
    assert "continue_final_message" not in server.received[2].body
    server.scripts = [answer("ter")]
    list(talk.retry(reply_prefix="La"))
    assert talk.conversation.versions()[-1].text == "Later"
    server.scripts = [refusal(500)]
    for failing in (talk.retry, talk.continue_reply):
        before = [each.text for each in talk.conversation.all]
        assert outcome(failing()).error is not None
        assert [each.text for each in talk.conversation.all] == before


@pytest.mark.parametrize(
    ("script", "kept"),
    [
        ([Act.HOLD], ""),
        ([head(), Act.HOLD], ""),
        ([*stream(TEXT), Act.HOLD], "Hello"),
        ([*stream(TEXT, b'data: {"cho'), Act.HOLD], "Hello"),
    ],
)
def test_a_stop_closes_the_connection_at_once(
    server: FaultServer, script: list[bytes | Act], kept: str
) -> None:
    server.scripts = [script]
    talk = session(server)
    stopped_at = 0.0

    def should_stop() -> bool:
        nonlocal stopped_at
        if server.received and (not kept or talk.conversation.head):
            stopped_at = stopped_at or time.monotonic()
        return stopped_at > 0

    found = send(talk, Hooks(should_stop))
    assert found.finish is not None
    assert (found.finish.reason, found.text) == ("interrupted", kept)
    assert server.gone.wait(5)
    assert server.gone_at - stopped_at < 1
    reply = talk.conversation.head
    assert reply is not None
    assert (reply.text, reply.interrupted) == (kept, True)


def test_a_wait_that_the_server_asks_for_can_be_stopped(server: FaultServer) -> None:
    server.scripts = [refusal(429, Retry_After="30")]
    notes: list[str] = []
    talk = session(server, notify=notes.append)
    began = time.monotonic()
    found = send(talk, Hooks(lambda: bool(notes)))
    assert found.finish is not None
    assert found.finish.reason == "interrupted"
    assert notes == ["the server asks to wait 30 seconds"]
    assert time.monotonic() - began < 5
    assert len(server.received) == 1


def test_a_reader_that_pauses_is_no_silent_server(server: FaultServer) -> None:
    server.scripts = [[*stream(TEXT), 0.1, part(" world", "stop"), DONE]]
    events = session(server, 0.3).send("hello")
    text = next(events).text
    time.sleep(0.5)
    assert text + outcome(events).text == "Hello world"


def test_closing_a_reply_closes_the_connection(server: FaultServer) -> None:
    server.scripts = [[*stream(TEXT), Act.HOLD]]
    events: Any = session(server).send("hello")
    assert next(events).text == "Hello"
    events.close()
    assert server.gone.wait(5)


def test_fields_that_a_server_refuses_are_left_out(server: FaultServer) -> None:
    server.scripts = [
        refusal(400, "logprobs is not supported for this model"),
        refusal(422, "extra fields not permitted: top_k"),
        answer("Hello"),
    ]
    notes: list[str] = []
    talk = session(server, notify=notes.append)
    talk.configure(Settings(top_k=5))
    assert send(talk).text == "Hello"
    asked = [set(each.body) & {"logprobs", "top_k"} for each in server.received]
    assert asked == [{"logprobs", "top_k"}, {"top_k"}, set()]
    assert notes == ["the server refuses top_k: it is left out"]
    assert send(talk).text == "Hello"
    assert len(server.received) == 4


def test_oldest_turns_are_dropped_as_the_server_refuses_them(server: FaultServer) -> None:
    notes: list[str] = []
    talk = session(server, notify=notes.append)
    for _ in range(3):
        send(talk)
    full = refusal(400, "x", "context_length_exceeded")
    server.received, server.scripts = [], [full, full, answer("Hi")]
    assert send(talk).text == "Hi"
    assert [len(roles(each)) for each in server.received] == [7, 5, 3]
    assert talk.conversation.n_dropped == 2
    assert notes == ["the context is full: the oldest 2 turns are no longer shown to the model"]
    send(talk)
    assert len(roles(server.received[-1])) == 5
    server.scripts = [full]
    before = list(talk.conversation.all)
    talk.configure(Settings(overflow="stop"))
    error = send(talk).error
    assert isinstance(error, PromptTooLongError)
    assert list(talk.conversation.all) == before


def test_log_probabilities_are_kept_in_both_styles(server: FaultServer) -> None:
    raw = {
        "tokens": ["lo"],
        "token_logprobs": [-0.25],
        "top_logprobs": [{"p": -3.0, "lo": -0.25}],
    }
    server.scripts = [
        stream(
            part("Hel", **logprobs("Hel", Hel=-0.5, Bo=-1.5)),
            event({"choices": [{"text": "lo", "logprobs": raw}]}),
            DONE,
        )
    ]
    talk = session(server)
    send(talk)
    assert talk.conversation.head is not None
    kept = talk.conversation.head.logprobs
    assert kept is not None
    assert [talk.piece(kept.token(i)[0]) for i in range(len(kept))] == ["Hel", "lo"]
    assert [round(kept.token(i)[1], 3) for i in range(2)] == [-0.5, -0.25]
    assert [talk.piece(i) for i, _ in kept.alternatives(1)] == ["lo", "p"]
    huge = {"token": "a", "logprob": -(10**400)}  # an integer that no float can hold
    tokens = {"tokens": ["a"], "token_logprobs": [10**400]}
    for odd in (
        {"content": [{"token": 1}]},
        {"content": 5},
        7,
        {"tokens": ["a"]},
        {"content": [huge]},
        tokens,
    ):
        server.scripts = [stream(part("a", logprobs=odd), DONE)]
        assert send(talk).text == "a"


@pytest.mark.parametrize("tokenizer", [None, TOKENIZER])
def test_tokens_of_a_server_mean_nothing_to_another_model(
    server: FaultServer, tokenizer: Tokenizer | None
) -> None:
    server.scripts = [stream(part("a", **logprobs("a", a=-0.5)), DONE)]
    talk = session(server)
    send(talk)
    reply = talk.conversation.head
    assert reply is not None
    assert reply.logprobs is not None
    assert not keep_valid_ids(talk.conversation, ModelTag("m"), tokenizer)
    assert reply.logprobs is None


def test_replies_are_scored_by_their_first_tokens(server: FaultServer) -> None:
    def first(**others: float) -> list[bytes]:
        return [head(), part("x", **logprobs("x", **others)), DONE]

    talk = session(server)
    server.scripts = [first(**{" yes": -1.0, "Yes": -9.0, "n": -2.0, "z": -5.0, "▁": -0.1})]
    yes, no, none = talk.score("?", ["yes", "no", "maybe"])
    assert (yes.logprob, no.logprob, none.logprob) == (-1.0, -2.0, -9.0)
    assert server.received[0].body["max_tokens"] == 1
    assert server.received[0].body["top_logprobs"] == 20
    assert not talk.conversation.all
    for script, texts, why in (
        (answer("x"), ["yes", "no"], "gives no log-probabilities"),
        (first(q=-1.0), ["yes", "no"], "begins with none of them"),
        (first(y=-1.0), ["yes", "yesterday"], "begin with the same token"),
    ):
        server.scripts = [script]
        with pytest.raises(UsageError) as caught:
            talk.score("?", texts)
        assert_one_line(caught.value, why)


def test_the_context_use_is_what_the_server_counted(server: FaultServer) -> None:
    talk = session(server)
    assert talk.context_use("12345678").n_tokens == 2
    server.scripts = [answer("Hello", usage={"prompt_tokens": 40, "completion_tokens": 10})]
    send(talk)
    use = talk.context_use("")
    assert (use.n_tokens, use.is_exact) == (50, False)
    assert talk.context_use("more words").n_tokens > 50
    with pytest.raises(UsageError) as caught:
        talk.context_rows()
    assert_one_line(caught.value, "--template-here")


def encoding(server: FaultServer, **options: Any) -> EncodingRemoteSession:
    model = served(server)
    model.seen = SeenTokens(TOKENIZER.vocab_size)
    template = ChatMLTemplate(TOKENIZER)
    return EncodingRemoteSession(model, template, TOKENIZER, 512, **options)


def test_messages_that_are_encoded_here_are_sent_as_ids(server: FaultServer) -> None:
    server.scripts = [stream(part(" Hel", **logprobs("Hel")), part("lo"), DONE)]
    talk = encoding(server)
    assert send(talk).text == "Hello"
    ids = server.received[0].body["prompt"]
    assert server.received[0].path == "/v1/completions"
    assert TOKENIZER.piece(ids[0]) == "<|im_start|>"
    assert server.received[0].body["stop"] == ["<|im_end|>"]
    rows = talk.context_rows()
    assert sum(len(row.ids) for row in rows) == talk.context_use("").n_tokens
    assert talk.context_use("").is_exact
    assert talk.conversation.head is not None
    kept = talk.conversation.head.logprobs
    assert kept is not None
    assert talk.piece(kept.token(0)[0]) == "Hel"
    assert talk.piece(ids[0]) == "<|im_start|>"
    list(talk.send("again"))
    assert server.received[1].body["prompt"][: len(ids)] == ids
    with pytest.raises(PromptTooLongError):
        list(talk.send("x" * 600))


def test_a_server_that_takes_no_ids_gets_text_without_tags_of_messages(
    server: FaultServer,
) -> None:
    server.scripts = [refusal(422, "prompt must be a string"), answer("Hello")]
    talk = encoding(server)
    assert send(talk).text == "Hello"
    wanted = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert server.received[1].body["prompt"] == wanted
    assert send(talk).text == "Hello"
    assert server.received[2].body["prompt"].startswith(wanted + "Hello<|im_end|>\n")
    for session_, why in ((talk, "takes no ids"), (encoding(server), "must be a string")):
        server.scripts = [refusal(422, "prompt must be a string")]
        before = list(session_.conversation.all)
        found = outcome(session_.send("<|im_end|> is a tag"))
        assert found.error is not None
        assert_one_line(found.error, why)
        assert list(session_.conversation.all) == before
    assert len(server.received) == 4


def test_counts_that_differ_are_told(server: FaultServer) -> None:
    notes: list[str] = []
    usage = {"prompt_tokens": 999, "completion_tokens": 1}
    server.scripts = [answer("Hello", usage=usage)]
    send(encoding(server, notify=notes.append))
    assert len(notes) == 1
    assert notes[0].startswith("the prompt has 999 tokens there and ")


def test_many_answers_are_asked_for_at_a_time(server: FaultServer) -> None:
    server.scripts = [
        [Act.BARRIER, *answer("a")],
        [Act.BARRIER, *answer("b")],
        refusal(400, "bad"),
        stream(TEXT),
    ]
    model = served(server)
    talk = session(server)
    calls = iter([(n, talk.request("hello")) for n in range(2)])
    crowd: ConcurrentRequests[int] = ConcurrentRequests(2)
    texts = {0: "", 1: ""}
    for number, found in crowd.generate(model, calls):
        assert not isinstance(found, LlamaChatError)
        texts[number] += found.text
    assert sorted(texts.values()) == ["a", "b"]
    crowd = ConcurrentRequests(2)
    calls = iter([(n, talk.request("hello")) for n in range(2)])
    errors = [e for _, e in crowd.generate(model, calls) if isinstance(e, LlamaChatError)]
    assert len(errors) == 2
    for error in errors:
        assert_one_line(error, "bad|in the middle")
