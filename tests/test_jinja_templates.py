"""Published templates that Jinja renders, against transformers."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_chat.chat.conversation import Message, Role
from llama_chat.chat.templates.jinja import JinjaTemplate
from llama_chat.errors import UsageError
from llama_chat.generation.kv_cache import common_prefix
from llama_chat.tokenizers.base import Tokenizer
from tests.template_kit import MODELS, dialogs, special_tokens, template_text, twins

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PROSE = ["Explain {}, please.", "{}", "\n{}\n", "{} {}", "say{}it", "{}\nassistant\nYes"]
"""Contents with a marker that a person typed."""


@dataclass(frozen=True, slots=True)
class Kit:
    """The template of a model, our tokenizer, and that of transformers."""

    name: str
    template: JinjaTemplate
    ours: Tokenizer
    theirs: "PreTrainedTokenizerFast"


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Kit]:
    """A function that makes the kit of a model; each has a process, so few are kept."""
    folder = tmp_path_factory.mktemp("tokenizers")

    @lru_cache(maxsize=8)
    def new(name: str) -> Kit:
        ours, theirs = twins(name, folder)
        named = {"bos_token": MODELS[name].bos, "eos_token": MODELS[name].eos}
        tokens = {key: token for key, token in named.items() if token is not None}
        return Kit(name, JinjaTemplate(ours, template_text(name), tokens), ours, theirs)

    return new


@pytest.fixture(scope="module", params=MODELS)
def kit(make: Callable[[str], Kit], request: pytest.FixtureRequest) -> Kit:
    """The kit of each model in turn."""
    return make(request.param)


def reference(
    name: str, tokenizer: "PreTrainedTokenizerFast", messages: list[Message]
) -> list[int] | None:
    """Apply the template with transformers; None if the template refuses the conversation."""
    try:
        ids: list[int] = tokenizer.apply_chat_template(
            [{"role": message.role, "content": message.content} for message in messages],
            chat_template=template_text(name),
            add_generation_prompt=messages[-1].role == "user",
            return_dict=False,
        )
    except jinja2.TemplateError:
        return None
    return ids


def rendered(template: JinjaTemplate, messages: list[Message]) -> list[int] | None:
    try:
        return template.render(messages)
    except UsageError:
        return None


def test_ids_are_those_of_transformers(kit: Kit) -> None:
    name, template, theirs = kit.name, kit.template, kit.theirs
    found = [(rendered(template, each), reference(name, theirs, each)) for each in dialogs()]
    assert all(ours == expected for ours, expected in found)
    assert len(found) >= 40
    assert sum(ours is not None for ours, _ in found) >= 20


def test_ids_differ_where_a_person_types_a_special_token_and_only_there(kit: Kit) -> None:
    name, template, tokenizer, theirs = kit.name, kit.template, kit.ours, kit.theirs
    special = {tokenizer.control_ids[token] for token in special_tokens(name)}
    compared = 0
    for i, marker in enumerate(special_tokens(name)):
        for j, prose in enumerate(PROSE):
            content = prose.format(marker, marker)
            said = [content, "Yes", "Then?"] if (i + j) % 2 else ["Well?", content, "Then?"]
            roles: list[Role] = ["user", "assistant", "user"]
            messages = [Message(role, text) for role, text in zip(roles, said, strict=True)]
            ours, expected = rendered(template, messages), reference(name, theirs, messages)
            assert ours is not None
            assert expected is not None
            begin = common_prefix(ours, expected)
            end = common_prefix(ours[begin:][::-1], expected[begin:][::-1])
            typed = ours[begin : len(ours) - end]
            if ours == expected:  # the template leaves out what is before a marker in a reply
                assert (name, marker) == ("r1-distill", "</think>")
                continue
            assert tokenizer.control_ids[marker] in expected[begin : len(expected) - end]
            assert special.isdisjoint(typed)
            assert marker in tokenizer.decode(typed)
            assert tokenizer.decode(typed).strip() in content
            compared += 1
    assert compared >= 6


VARIOUS = ["llama-2-default", "llama-3.2", "mistral-nemo", "phi-4", "r1-distill", "solar", "zephyr"]


@settings(max_examples=150)
@given(data=st.data())
def test_no_text_becomes_a_control_token(make: Callable[[str], Kit], data: st.DataObject) -> None:
    kit = make(data.draw(st.sampled_from(VARIOUS)))
    template, tokenizer = kit.template, kit.ours
    special = special_tokens(kit.name)
    texts = [*special, *template.tags, *(token[:-2] for token in special), "user", "assistant"]
    odd = ["", " ", "\n", "é", "<", "|>", "\ue000", "\U000f0041", "\U00100000", "\U0010ffff"]
    text = st.lists(st.sampled_from([*texts, *odd]), max_size=8).map("".join)
    control = set(tokenizer.control_ids.values()) - {tokenizer.control_ids.get("<unk>")}

    def controls(*said: str) -> list[int] | None:
        roles: list[Role] = ["user", "assistant", "user"]
        messages = [Message(role, each) for role, each in zip(roles, said, strict=True)]
        ids = rendered(template, messages)
        return None if ids is None else [token_id for token_id in ids if token_id in control]

    typed = [data.draw(text) for _ in range(3)]
    assert controls(*typed) == controls("U", "A", "end")
