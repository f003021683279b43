"""No special token of a vocabulary comes out of text, wherever it stands and however it got in."""

import itertools
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from llama_chat.chat import store
from llama_chat.chat.conversation import Attachment, Conversation, Example, Message
from llama_chat.chat.dialogs import parse_dialog
from llama_chat.chat.prompt_files import load_prompt
from llama_chat.chat.prompt_slots import fill
from llama_chat.chat.records import ModelTag, keep_valid_ids
from llama_chat.chat.templates import template_class
from llama_chat.cli.records import read_record
from llama_chat.library import starter
from llama_chat.loading.formats import load_tokenizer, open_checkpoint
from llama_chat.server.prompts import _messages
from llama_chat.server.schema import ChatMessage
from llama_chat.tokenizers.base import Tokenizer
from tests.conversations import saved
from tests.meta_folders import write_llama_3
from tests.model_files import piece_tokenizer

POSITIONS: tuple[Callable[[str], str], ...] = (
    "{}".format,
    "{} begins".format,
    "ends {}".format,
    "in the {} middle".format,
    "of a{}word".format,
    "twice {0}{0}".format,
    "a line\n{}\nof its own".format,
    "```\n{}\n```".format,
    "é{}😀".format,
    "({}): \t{}.".replace("{}", "{0}").format,
)

Way = Callable[[str, Tokenizer], list[Message]]
"""Brings a text in, and returns the messages that a template gets."""


def talk(*texts: str, system: str = "") -> list[Message]:
    conversation = Conversation(system)
    for text, role in zip(texts, itertools.cycle(("user", "assistant"))):
        conversation.add(Message(role, text))  # type: ignore[arg-type] # a role
    return conversation.messages()


def of_prompt_file(text: str, tokenizer: Tokenizer) -> list[Message]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "own.toml"
        quoted = json.dumps(text, ensure_ascii=False)
        path.write_text(f"system = {quoted}\n[[examples]]\nuser = {quoted}\nassistant = {quoted}\n")
        prompt = load_prompt(str(path))
        path.with_suffix(".txt").write_text(text)
        raw = load_prompt(str(path.with_suffix(".txt"))).text
    return [
        *Conversation(prompt.system or "", prompt.examples).messages(),
        Message("user", raw or ""),
    ]


def of_slot(text: str, tokenizer: Tokenizer) -> list[Message]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "own.toml"
        path.write_text(
            'system = "{{a}} {{file:b}}"\n[[examples]]\nuser="{{a}}"\nassistant="{{a}}"'
        )
        (Path(folder) / "b").write_text(text)
        prompt = fill(load_prompt(str(path)), {"a": text})
    return [*Conversation(prompt.system or "", prompt.examples).messages(), Message("user", "x")]


def of_record(text: str, tokenizer: Tokenizer) -> list[Message]:
    found = []
    for data in (json.dumps({"question": text}), json.dumps(text)):
        record = read_record(1, data.encode(), as_json=True)
        assert record is not None
        found += talk(record.question, "x")
    return found


def of_http(text: str, tokenizer: Tokenizer) -> list[Message]:
    parts = [{"type": "text", "text": text}, {"type": "text", "text": text}]
    given: list[tuple[str, object]] = [("system", text), ("user", parts), ("assistant", text)]
    given += [("user", text)]
    return _messages([ChatMessage(role=role, content=each) for role, each in given])  # type: ignore[arg-type]


def of_saved(text: str, tokenizer: Tokenizer) -> list[Message]:
    """A saved conversation that states the very ids of control tokens for its replies."""
    conversation = Conversation(text, [Example(text, text)])
    conversation.add(Message("user", text, attachments=(Attachment(text, text),)))
    conversation.add(Message("assistant", text, tuple(tokenizer.control_ids.values())[:3]))
    conversation.add(Message("user", text))
    with tempfile.TemporaryDirectory() as home, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", home)
        loaded = store.read(saved(conversation, tag=ModelTag("m", tokenizer.fingerprint)))
    assert keep_valid_ids(loaded.conversation, loaded.tag, tokenizer)
    return loaded.conversation.messages()


def of_edit(text: str, tokenizer: Tokenizer) -> list[Message]:
    conversation = Conversation()
    conversation.add(Message("user", "first"))
    conversation.add(Message("assistant", "reply"))
    conversation.head = None
    conversation.add(Message("user", text))
    conversation.add(Message("assistant", text))  # an edited reply
    return conversation.messages()


WAYS: dict[str, Way] = {
    "message": lambda text, tokenizer: talk(text, text, text),
    "system": lambda text, tokenizer: talk("x", system=text),
    "file": lambda text, tokenizer: [
        Message("user", "x", attachments=(Attachment(text, text), Attachment(text)))
    ],
    "prompt file": of_prompt_file,
    "slot": of_slot,
    "record": of_record,
    "HTTP": of_http,
    "saved conversation": of_saved,
    "edited message": of_edit,
    "dialog": lambda text, tokenizer: parse_dialog(
        json.dumps([{"role": "system", "content": text}, {"role": "user", "content": text}]), "d"
    ),
}


def llama_2(shared: Path, tmp_path: Path) -> Tokenizer:
    return piece_tokenizer((shared / "llama2/tokenizer.model").read_bytes())


def llama_3(shared: Path, tmp_path: Path) -> Tokenizer:
    write_llama_3(tmp_path / "Llama-3")
    return load_tokenizer(open_checkpoint(tmp_path / "Llama-3"))


def smollm2(shared: Path, tmp_path: Path) -> Tokenizer:
    path = starter.installed_path(starter.DEFAULT)
    if not path.exists():
        pytest.skip("the starter model is not here: llama-chat pull smollm2-135m")
    return load_tokenizer(open_checkpoint(path))


VOCABULARIES = {
    "llama2": (llama_2, 3),
    "chatml": (smollm2, 17),
    "llama3": (llama_3, 256),
}
"""Tokenizers by the template of their models, and the number of their special tokens."""


def pieces_of(tokenizer: Tokenizer) -> Iterator[str]:
    """Yield the special tokens, and of those that are reserved by the hundred only a few."""
    reserved = 0
    for piece in tokenizer.control_ids:
        reserved += "reserved" in piece
        if "reserved" not in piece or reserved <= 5:
            yield piece


@pytest.mark.parametrize("name", VOCABULARIES)
def test_no_special_token_is_typed(name: str, shared_data: Path, tmp_path: Path) -> None:
    make, n_special = VOCABULARIES[name]
    tokenizer = make(shared_data, tmp_path)
    template = template_class(name)(tokenizer)
    special = {*tokenizer.control_ids.values(), tokenizer.bos_id, tokenizer.eos_id}
    assert len(special - {None}) >= n_special

    def special_in(way: str, text: str) -> list[int]:
        messages = [replace(each) for each in WAYS[way](text, tokenizer)]
        ids = template.render(messages, open_reply=messages[-1].role == "user")
        return [token_id for token_id in ids if token_id in special]

    expected = {way: special_in(way, "x") for way in WAYS}
    for piece, position in itertools.product(pieces_of(tokenizer), POSITIONS):
        text = position(piece)
        assert not special & set(tokenizer.encode(text)), text  # complete, and what HTTP continues
        for way in WAYS:
            assert special_in(way, text) == expected[way], (way, text)
