"""Our templates against the published ones, rendered by transformers."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from llama_chat.chat.conversation import Conversation, Message, Role
from llama_chat.chat.session import ChatSession
from llama_chat.chat.templates import TEMPLATE_NAMES, choose_template, recognise, template_class
from llama_chat.errors import UsageError
from llama_chat.generation.backend import TorchBackend
from llama_chat.generation.engine import Engine
from llama_chat.loading.formats import make_tokenizer
from llama_chat.settings.definitions import Sampling
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
from tests.published_templates import JINJA

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

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


def fast_pieces(path: Path, *, legacy: bool) -> "PreTrainedTokenizerFast":
    """Make a SentencePiece vocabulary for transformers, as a published ``tokenizer.json`` has it.

    A ``legacy`` one puts a space in front of every text between control tokens; the others only at
    the start.
    """
    from transformers import PreTrainedTokenizerFast
    from transformers.tokenization_utils_base import generate_merges

    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    n_pieces = model.vocab_size()
    vocabulary = {model.id_to_piece(i): i for i in range(n_pieces)}
    scores = {model.id_to_piece(i): model.get_score(i) for i in range(n_pieces)}
    control = [
        model.id_to_piece(i) for i in range(n_pieces) if model.is_control(i) or model.is_unknown(i)
    ]
    merges = generate_merges(vocabulary, scores, control)
    backend = Backend(
        BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    if legacy:
        backend.normalizer = normalizers.Sequence(
            [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        )
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.add_special_tokens([AddedToken(name, normalized=False) for name in control])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", model.bos_id())]
    )
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
    every, first = fast_pieces(meta, legacy=True), fast_pieces(meta, legacy=False)
    made: dict[str, tuple[Tokenizer, PreTrainedTokenizerFast]] = {
        "llama2": (ours, every),
        "chatml": (byte, fast_bytes(byte, None, "<|im_end|>")),
        "zephyr": (ours, every),
        "llama3": (llama_3, fast_bytes(llama_3, "<|begin_of_text|>", "<|eot_id|>")),
        "mistral": (later, first),
        "mistral v0.3": (pieces(v3, legacy=False), fast_pieces(v3, legacy=False)),
        "vicuna": (later, first),
    }
    return made.__getitem__


Kit = Callable[[str], tuple[Tokenizer, "PreTrainedTokenizerFast"]]

SYSTEMS = ["You are terse.", "Répondez « oui ».\n", "Two\nlines, 日本語", " padded "]
CONTENTS = [
    "Hello",
    "What is the capital of France?",
    "  padded on both sides \t",
    "naïve 日本語 😀👩‍👩‍👧‍👦 é",
    "\nfirst line\n\n  second line\n",
    "",
    " ",
    "1234 + 5678 = ?",
    "x = [1, 2]\nfor i in x:\n\tprint(i)",
    "I like the theatre. It's in the inn, isn't it?",
    ".",
]


def dialogs() -> list[list[Message]]:
    """Make dialogs of 1 to 7 messages, with and without a system message."""
    found: list[list[Message]] = []
    for round_number in range(3):
        for with_system in (False, True):
            for length in range(1 + with_system, 8):
                start = 5 * len(found) + round_number
                messages = [Message("system", SYSTEMS[len(found) % 4])] if with_system else []
                messages += [
                    Message(("user", "assistant")[i % 2], CONTENTS[(start + i) % len(CONTENTS)])
                    for i in range(length - with_system)
                ]
                found.append(messages)
    return found


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
    session = ChatSession(
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


@settings(max_examples=40, deadline=None)
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


@pytest.mark.parametrize("name", NAMES)
def test_a_published_template_is_recognised_by_its_text(kit: Kit, name: str) -> None:
    ours, _ = kit(name)
    assert recognise(JINJA[name], ours) == name.split()[0]
    assert choose_template("auto", JINJA[name], ours).name == name.split()[0]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama2", "llama2"),
        ("chatml", "chatml"),
        ("llama3", "llama3"),
        ("mistral v0.3", "mistral"),
    ],
)
def test_without_a_template_the_control_tokens_decide(kit: Kit, name: str, expected: str) -> None:
    ours, _ = kit(name)
    assert recognise(None, ours) == expected


STRANGE = {
    "<|user|>": [
        # Phi 3 and Tulu have the tags of Zephyr and other ends.
        "{{ '<|user|>\\n' + message['content'] + '<|end|>\\n<|assistant|>\\n' + eos_token }}",
        "{{ '<|user|>\\n' + message['content'] + '\\n' }}{{ '<|assistant|>\\n' + eos_token }}",
    ],
    "<start_of_turn>": ["{{ '<start_of_turn>user\\n' + message['content'] + '<end_of_turn>' }}"],
    "[SYSTEM_PROMPT]": ["{{ '[SYSTEM_PROMPT] ' + system + '[INST] ' + message['content'] }}"],
    "": ["", "{{ 'User: ' + message['content'] }}", "{{ 1 / 0 }}"],
}


@pytest.mark.parametrize("marker", STRANGE)
def test_a_template_that_is_not_known_is_refused_by_its_marker(kit: Kit, marker: str) -> None:
    ours, _ = kit("llama2")
    for text in STRANGE[marker]:
        with pytest.raises(UsageError) as caught:
            choose_template("auto", text, ours)
        line = str(caught.value)
        assert (f"with {marker}, is not known" if marker else "model is not known") in line
        assert "--template: " + ", ".join(TEMPLATE_NAMES) in line
        assert choose_template("zephyr", text, ours).name == "zephyr"


def test_a_template_is_refused_where_its_control_tokens_are_missing(kit: Kit) -> None:
    ours, _ = kit("llama2")
    with pytest.raises(UsageError, match=r"has no <\|begin_of_text\|>"):
        choose_template("llama3", None, ours)


def test_every_template_is_in_the_module_of_its_name(kit: Kit) -> None:
    ours, _ = kit("llama2")
    assert {name: template_class(name).name for name in TEMPLATE_NAMES} == {
        name: name for name in TEMPLATE_NAMES
    }
    with pytest.raises(UsageError, match="there is none of that name: did you mean llama2"):
        choose_template("lama2", None, ours)
