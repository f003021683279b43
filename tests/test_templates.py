"""Our templates against the published ones, rendered by transformers."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import pre_tokenizers
from tokenizers.models import BPE

from llama_chat.chat.conversation import Conversation, Message, Role
from llama_chat.chat.local_session import LocalSession
from llama_chat.chat.templates import TEMPLATE_NAMES, choose_template, template_class
from llama_chat.checkpoints.template_source import TemplateSource
from llama_chat.errors import UsageError
from llama_chat.generation.backend import TorchBackend
from llama_chat.generation.engine import Engine
from llama_chat.loading.formats import make_tokenizer
from llama_chat.settings.sampling import Sampling
from llama_chat.tokenizers.base import Tokenizer
from llama_chat.tokenizers.sentencepiece import read_model
from llama_chat.tokenizers.vocabulary import Prefix
from tests.model_files import (
    CONTROL_TOKENS,
    MERGES,
    SMALL,
    TOKENS,
    byte_tokenizer,
    byte_vocabulary,
    sentencepiece_model,
)
from tests.models import random_model
from tests.template_kit import dialogs, fast_pieces, template_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

JINJA = {
    "llama2": template_text("llama-2"),
    "chatml": template_text("chatml"),
    "zephyr": template_text("zephyr"),
    "llama3": template_text("llama-3"),
    "mistral": template_text("mistral-v1"),
    "mistral v0.3": template_text("mistral-v0.3"),
    # Vicuna was published without a template; this one follows its program.
    "vicuna": (
        "{% for message in messages %}{% if message['role'] == 'system' %}"
        "{{ message['content'] + ' ' }}{% elif message['role'] == 'user' %}"
        "{{ 'USER: ' + message['content'] + ' ' }}{% elif message['role'] == 'assistant' %}"
        "{{ 'ASSISTANT: ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    ),
}
NAMES = list(JINJA)
_LLAMA_3 = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]


def llama_3_tokenizer() -> Tokenizer:
    """Make a byte-level tokenizer of a few merges, with the control tokens of Llama 3."""
    tokens = [*_LLAMA_3, *TOKENS[len(CONTROL_TOKENS) :]]
    vocabulary = byte_vocabulary(tokens, n_control=len(_LLAMA_3))
    return make_tokenizer(replace(vocabulary, bos_id=0, eos_id=3, add_bos=True))


def pieces(path: Path, *, legacy: bool) -> Tokenizer:
    """Open a SentencePiece model as of a folder that says ``legacy``."""
    prefix: Prefix = "every" if legacy else "first"
    return make_tokenizer(replace(read_model(path), prefix=prefix))


def fast_bytes(tokenizer: Tokenizer, bos: str | None, eos: str) -> "PreTrainedTokenizerFast":
    """Make the same byte-level tokenizer for transformers."""
    from transformers import PreTrainedTokenizerFast

    pieces = map(tokenizer.piece, range(tokenizer.vocab_size))
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    merges = [merge.partition(" ") for merge in MERGES]
    pairs = [(left, right) for left, _, right in merges]
    backend = Backend(BPE(vocab=vocabulary, merges=pairs))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.add_special_tokens(list(tokenizer.control_ids))
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=eos)


def fast(path: Path, *, legacy: bool) -> "PreTrainedTokenizerFast":
    """Make a SentencePiece vocabulary for transformers."""
    from transformers import PreTrainedTokenizerFast

    backend = fast_pieces(path, legacy=legacy)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module")
def kit(
    shared_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Tokenizer, "PreTrainedTokenizerFast"]]:
    """A function from a published template's name to our tokenizer and that of transformers."""
    meta = shared_data / "llama2" / "tokenizer.model"
    v3 = tmp_path_factory.mktemp("v3") / "tokenizer.model"
    v3.write_bytes(sentencepiece_model(control_symbols=("[INST]", "[/INST]")))
    ours, byte, llama_3 = pieces(meta, legacy=True), byte_tokenizer(), llama_3_tokenizer()
    later = pieces(meta, legacy=False)
    every, first = fast(meta, legacy=True), fast(meta, legacy=False)
    made: dict[str, tuple[Tokenizer, PreTrainedTokenizerFast]] = {
        "llama2": (ours, every),
        "chatml": (byte, fast_bytes(byte, None, "<|im_end|>")),
        "zephyr": (ours, every),
        "llama3": (llama_3, fast_bytes(llama_3, "<|begin_of_text|>", "<|eot_id|>")),
        "mistral": (later, first),
        "mistral v0.3": (pieces(v3, legacy=False), fast(v3, legacy=False)),
        "vicuna": (later, first),
    }
    return made.__getitem__


Kit = Callable[[str], tuple[Tokenizer, "PreTrainedTokenizerFast"]]


def reference(
    name: str, tokenizer: "PreTrainedTokenizerFast", messages: list[Message]
) -> list[int]:
    """Render the published template with transformers."""
    text: str = tokenizer.apply_chat_template(
        [{"role": message.role, "content": message.content} for message in messages],
        chat_template=JINJA[name],
        add_generation_prompt=messages[-1].role == "user",
        tokenize=False,
    )
    # Vicuna's program leaves BOS to the tokenizer.
    ids: list[int] = tokenizer.encode(text, add_special_tokens=name == "vicuna")
    return ids


@pytest.mark.parametrize("name", NAMES)
def test_ids_are_those_of_the_published_template(kit: Kit, name: str) -> None:
    ours, theirs = kit(name)
    template = template_class(name.split()[0])(ours)
    compared = 0
    for messages in dialogs():
        if name == "vicuna" and messages[0].content.startswith(" "):
            # The fast tokenizer leaves out the dummy prefix there. Vicuna has only the slow one,
            # which does not.
            continue
        assert template.render(messages) == reference(name, theirs, messages), messages
        compared += 1
    assert compared >= 30


def test_llama_2_follows_meta_where_its_template_follows_meta(kit: Kit, shared_data: Path) -> None:
    _, theirs = kit("llama2")
    for entry in json.loads((shared_data / "llama2" / "dialogs.json").read_text()):
        messages = [Message(turn["role"], turn["content"]) for turn in entry["dialog"]]
        assert reference("llama2", theirs, messages) == entry["ids"]


@pytest.mark.parametrize("name", [*NAMES, "plain"])
def test_turns_only_append(kit: Kit, name: str) -> None:
    ours, _ = kit("llama2" if name == "plain" else name)
    template = template_class(name.split()[0])(ours)
    reply_ids = tuple(ours.encode("the inn"))
    for system in ([], [Message("system", "S")]):
        question = [
            *system,
            Message("user", "Hello"),
            Message("assistant", "Hi"),
            Message("user", "?"),
        ]
        asked = template.render(question)
        assert template.render([*question, Message("assistant", "", ())], open_reply=True) == asked
        reply = Message("assistant", "the inn", reply_ids)
        going_on = template.render([*question, reply], open_reply=True)
        assert going_on == [*asked, *reply_ids]
        ended = template.render([*question, reply])
        following = template.render([*question, reply, Message("user", "More")])
        assert following[: len(ended)] == ended
        if name != "mistral v0.3" or not system:
            assert ended[: len(going_on)] == going_on


@pytest.mark.parametrize("name", ["llama3", "mistral v0.3"])
def test_the_cache_ends_where_the_next_message_begins(kit: Kit, name: str) -> None:
    ours, _ = kit(name)
    model = random_model(replace(SMALL, vocab_size=ours.vocab_size))
    template = template_class(name.split()[0])(ours)
    session = LocalSession(
        Engine(TorchBackend(model), ours),
        template,
        Sampling(seed=1),
        conversation=Conversation("S"),
    )
    session.max_tokens = 5
    end = ours.control_ids["<|eot_id|>" if name == "llama3" else "</s>"]
    for text in ("Hello", "What is the capital?"):
        for _event in session.send(text):
            pass
        assert session.ids == list(session.engine.cache.ids)
        assert session.ids[-1] == end
        rows = session.context_rows()
        assert [i for row in rows for i in row.ids] == session.ids


@pytest.mark.parametrize("name", [*NAMES, "plain"])
def test_a_prefilled_reply_has_the_ids_of_its_text(kit: Kit, name: str) -> None:
    ours, _ = kit("llama2" if name == "plain" else name)
    template = template_class(name.split()[0])(ours)
    question = Message("user", "Where?")
    for text in ("Paris", "naïve 日本語"):
        as_text = template.render([question, Message("assistant", text)], open_reply=True)
        assert as_text == [*template.render([question]), *template.encode_reply(text)]


@pytest.mark.parametrize("role", ["system", "user", "assistant"])
@pytest.mark.parametrize("name", NAMES)
def test_typed_tags_are_spelled(kit: Kit, name: str, role: Role) -> None:
    ours, theirs = kit(name)
    template = template_class(name.split()[0])(ours)
    for tag in template.tags:
        said = {"system": "S", "user": "U", "assistant": "A"} | {role: f"a {tag} b"}
        messages = [Message("system", said["system"]), Message("user", said["user"])]
        messages += [Message("assistant", said["assistant"]), Message("user", "end")]
        ids = template.render(messages)
        data = list(map(ours.token_bytes, ids))
        spelled = [character.encode() for character in tag]
        assert any(data[i : i + len(tag)] == spelled for i in range(len(data)))
        assert f"a {tag} b" in ours.decode(ids)
        assert template.find_tags(f"a {tag} b") == [tag]
        assert ids != reference(name, theirs, messages)


@settings(max_examples=40)
@given(data=st.data())
def test_no_text_becomes_a_control_token(kit: Kit, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(NAMES))
    ours, _ = kit(name)
    template = template_class(name.split()[0])(ours)
    fragments = st.sampled_from([*ours.control_ids, *template.tags, " ", "\n", "é", "a", "[", "<|"])
    text = st.lists(fragments, max_size=8).map("".join)
    typed = [data.draw(text) for _ in range(4)]
    roles: list[Role] = ["system", "user", "assistant", "user"]
    control = set(ours.control_ids.values()) - {ours.control_ids.get("<unk>")}

    def controls(contents: list[str]) -> list[int]:
        messages = [Message(role, said) for role, said in zip(roles, contents, strict=True)]
        return [i for i in template.render(messages) if i in control]

    assert controls(typed) == controls(["S", "U", "A", "end"])


def test_a_template_is_refused_where_its_control_tokens_are_missing(kit: Kit) -> None:
    ours, _ = kit("llama2")
    with pytest.raises(UsageError, match=r"has no <\|begin_of_text\|>"):
        choose_template("llama3", TemplateSource(), ours)


def test_every_template_is_in_the_module_of_its_name(kit: Kit) -> None:
    ours, _ = kit("llama2")
    assert {name: template_class(name).name for name in TEMPLATE_NAMES} == {
        name: name for name in TEMPLATE_NAMES
    }
    with pytest.raises(UsageError, match="there is none of that name: did you mean llama2"):
        choose_template("lama2", TemplateSource(), ours)
