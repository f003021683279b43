"""Conversations through a template that Jinja renders: only what is new is read."""

from dataclasses import replace
from datetime import datetime
from functools import lru_cache
from pathlib import Path

import pytest

from harness.terminal import READY, Terminal
from llama_chat.chat.conversation import Conversation, Message
from llama_chat.chat.local_session import LocalSession
from llama_chat.chat.templates.jinja import JinjaTemplate
from llama_chat.errors import PromptTooLongError, UsageError
from llama_chat.generation.backend import TorchBackend
from llama_chat.generation.engine import Engine
from llama_chat.generation.events import Finish
from llama_chat.settings.sampling import Sampling
from llama_chat.tokenizers.base import Tokenizer
from tests.model_files import SMALL, byte_tokenizer, write_gguf
from tests.models import random_model
from tests.template_kit import MODELS, template_text, twins

REWRITING = {"codellama-70b", "llama-3-asking", "phi-3-small", "r1-distill", "yandexgpt"}
"""Templates that write the end of a conversation otherwise once it goes on."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokenizers")


@lru_cache(maxsize=2)
def kit(name: str, folder: Path) -> tuple[JinjaTemplate, Tokenizer]:
    """Make the template of a model, and its tokenizer."""
    tokenizer, _ = twins(name, folder)
    named = {"bos_token": MODELS[name].bos, "eos_token": MODELS[name].eos}
    tokens = {key: token for key, token in named.items() if token is not None}
    return JinjaTemplate(tokenizer, template_text(name), tokens), tokenizer


@pytest.mark.parametrize("name", MODELS)
def test_turns_only_append(folder: Path, name: str) -> None:
    template, tokenizer = kit(name, folder)
    reply_ids = tuple(tokenizer.encode("the inn"))
    question = [Message("user", "Hello"), Message("assistant", "Hi"), Message("user", "?")]
    asked = template.render(question)
    assert template.render([*question, Message("assistant", "", ())], open_reply=True) == asked
    reply = Message("assistant", "the inn", reply_ids)
    assert template.render([*question, reply], open_reply=True) == [*asked, *reply_ids]
    ended = template.render([*question, reply])
    following = template.render([*question, reply, Message("user", "More")])
    if name not in REWRITING:
        assert ended[: len(asked) + len(reply_ids)] == [*asked, *reply_ids]
        assert following[: len(ended)] == ended
    for text in ("Paris", "naïve 日本語"):
        begun = template.render([*question, Message("assistant", text)], open_reply=True)
        assert tokenizer.decode(begun).endswith(text)
        if name not in REWRITING:
            assert begun == [*asked, *template.encode_reply(text)]


def new_session(name: str, folder: Path, system: str = "") -> LocalSession:
    """Begin a conversation with a random model."""
    template, tokenizer = kit(name, folder)
    model = random_model(replace(SMALL, vocab_size=tokenizer.vocab_size))
    engine = Engine(TorchBackend(model), tokenizer)
    conversation = Conversation(system)
    return LocalSession(engine, template, Sampling(seed=1), conversation=conversation, max_tokens=5)


@pytest.mark.parametrize("name", ["llama-3.2", "mistral-nemo", "olmo", "openchat", "phi-4", "yi"])
def test_a_turn_reads_only_what_is_new(folder: Path, name: str) -> None:
    session = new_session(name, folder)
    for text in ("Hello", "What is the capital?", "  \nAnd now?"):
        before = len(session.engine.cache.ids)
        *_, finish = session.send(text)
        assert isinstance(finish, Finish)
        assert finish.usage.cached_tokens >= before - 1
        assert session.ids == list(session.engine.cache.ids)
        assert [i for row in session.context_rows() for i in row.ids] == session.ids
    *_, _ = session.retry()
    assert session.ids == list(session.engine.cache.ids)


def test_a_template_that_rewrites_a_turn_costs_what_differs(folder: Path) -> None:
    session = new_session("r1-distill", folder)
    tokenizer, template = session.engine.tokenizer, session.template
    *_, _ = session.send("Hello")
    reply = session.conversation.head
    assert reply is not None
    reply.text = "It was the inn.</think>\n\nThe inn."
    reply.ids = tuple(tokenizer.encode(reply.text))
    session.prefill_next()
    assert session.ids == list(session.engine.cache.ids)
    assert "It was" not in tokenizer.decode(session.ids)
    assert tokenizer.decode(session.ids).endswith("The inn.")
    going_on = template.render([*session.conversation.messages()], open_reply=True)
    assert tuple(going_on[-len(reply.ids) :]) == reply.ids  # verbatim, as long as it goes on


REFUSING = """{%- if messages[0].role == 'system' %}
{{- raise_exception('System role not supported') }}
{%- endif %}
{%- for m in messages %}
{{- '<|im_start|>' + m.role + '\n' + m.content | trim + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{% endif %}"""


def test_a_template_may_refuse_a_conversation(folder: Path) -> None:
    tokenizer = byte_tokenizer()
    engine = Engine(TorchBackend(random_model(SMALL)), tokenizer)
    template = JinjaTemplate(tokenizer, REFUSING, {})
    session = LocalSession(
        engine, template, Sampling(seed=1), conversation=Conversation("S"), max_tokens=3
    )
    assert session.context_use("typed").n_dropped == 0
    session.prefill_next()
    with pytest.raises(UsageError, match="System role not supported: name another"):
        next(session.send("Hello"))
    assert not session.conversation.all
    session.conversation.system = ""
    *_, _ = session.send("Hello")
    assert session.context_use("typed").n_tokens > 10
    answered = session.conversation.path()
    session.conversation.system = "S"
    with pytest.raises(UsageError, match="System role not supported"):
        next(session.retry())
    assert session.conversation.path() == answered


def test_a_chat_with_such_a_template(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    write_gguf(model, metadata={"tokenizer__chat_template": REFUSING})
    flags = ("-m", model, "--temperature", "0", "--max-tokens", "4", "--system", "S")
    with Terminal(*flags, home=tmp_path) as terminal:
        terminal.wait_for(READY)
        assert "template jinja" in terminal.text
        terminal.refuse("Hello", "System role not supported")
        terminal.ask("/system off", "no system message")
        terminal.ask("Hello", r"\n")
        terminal.ask("/context", r"2 +assistant +\d+ +\d+[\s\S]*\d+ of 512 tokens")


def test_a_message_longer_than_any_context_is_refused_by_its_length(folder: Path) -> None:
    session = new_session("phi-4", folder)
    for length in (2**13, 2**21 + 1):
        with pytest.raises(PromptTooLongError):
            next(session.send("a" * length))
        assert session.context_use("a" * length).n_dropped is None
    assert not session.conversation.all


def test_another_of_the_templates_of_a_model_in_a_chat(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    write_gguf(model, metadata={"tokenizer__chat_template__rag": "{{ messages[-1].content }}"})
    with Terminal("-m", model, "--max-tokens", "2", home=tmp_path) as terminal:
        terminal.wait_for(READY)
        terminal.ask("/template", "template is chatml")
        terminal.refuse("/template-name nope", "none of that name: choose one .* default, rag")
        terminal.ask("/template-name rag", "rag")
        terminal.ask("/template", "template is jinja")
        terminal.ask("/template chatml", "template is chatml")


def test_a_guess_in_a_chat_is_said_once(meta_model: Path, tmp_path: Path) -> None:
    with Terminal("-m", meta_model, home=tmp_path) as terminal:
        terminal.wait_for(READY)
        assert terminal.text.count("the model has none, llama2 is guessed") == 1
        terminal.ask("/template auto", "template is llama2")
        assert terminal.text.count("the model has none, llama2 is guessed") == 1


def test_a_template_that_writes_the_time_writes_the_same_for_a_minute() -> None:
    tokenizer = byte_tokenizer()
    text = "{{ strftime_now('%Y-%m-%dT%H:%M:%S.%f') }}"
    before = datetime.now().replace(second=0, microsecond=0)
    template = JinjaTemplate(tokenizer, text, {})
    told = [tokenizer.decode(template.render([Message("user", "Hi")])) for _ in range(3)]
    assert len({*told}) < len(told)  # a minute may end in between
    assert all(before <= datetime.fromisoformat(each) <= datetime.now() for each in told)
