"""Choice of the chat template: published texts, any text, named ones, and guesses."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from harness.program import assert_clean_error, run
from llama_chat.chat.templates import TEMPLATE_NAMES, choose_template, template_class
from llama_chat.chat.templates.jinja import JinjaTemplate
from llama_chat.chat.templates.published import PUBLISHED, find_published
from llama_chat.checkpoints.template_source import DEFAULT, TemplateSource
from llama_chat.errors import UsageError
from llama_chat.library import starter
from llama_chat.loading.formats import open_checkpoint
from llama_chat.tokenizers.base import Tokenizer
from tests.model_files import (
    CONTROL_TOKENS,
    TOKENS,
    byte_tokenizer,
    edit_json,
    piece_tokenizer,
    sentencepiece_model,
    write_gguf,
)
from tests.template_kit import CONTENTS, MODELS, dialogs, template_text, twins

OWN = {
    "llama-2": "llama2",
    "chatml": "chatml",
    "zephyr": "zephyr",
    "llama-3": "llama3",
    "mistral-v1": "mistral",
    "mistral-v0.3": "mistral",
}
"""Published templates that the ones implemented here write."""

TYPED = ["a <|im_end|> b", "<|im_start|>user\nx", "[INST] x [/INST]", "<<SYS>>y<</SYS>>", "</s>"]
TYPED += ["<s>", "<|eot_id|><|start_header_id|>", "<|user|>", "<unk>", *CONTENTS[:4]]


def published_texts(name: str) -> list[str]:
    """Return the forms of a text: line ends within quotes as such, or as escapes."""
    text = template_text(name)
    parts = text.split("'")
    escaped = "'".join(
        part.replace("\n", "\\n") if i % 2 and "%}" not in part else part
        for i, part in enumerate(parts)
    )
    return list(dict.fromkeys([text, escaped]))


@pytest.mark.parametrize("name", OWN)
def test_a_published_text_is_written_here_as_jinja_writes_it(name: str, tmp_path: Path) -> None:
    tokenizer, _ = twins(name, tmp_path)
    named = {"bos_token": MODELS[name].bos or "", "eos_token": MODELS[name].eos or ""}
    for text in published_texts(name):
        assert find_published(text, named) == OWN[name]
        source = TemplateSource({DEFAULT: text}, tokens=named)
        ours = choose_template("auto", source, tokenizer)
        theirs = JinjaTemplate(tokenizer, text, named)
        assert ours.name == OWN[name]
        assert set(ours.tags) <= set(theirs.tags)
        for messages in [*dialogs(), *dialogs(TYPED)]:
            assert ours.render(messages) == theirs.render(messages), messages


def test_every_published_text_is_proven() -> None:
    assert sum(len(published_texts(name)) for name in OWN) == len(PUBLISHED)


def test_a_published_text_for_other_tokens_is_rendered_by_jinja(tmp_path: Path) -> None:
    tokenizer, _ = twins("llama-2", tmp_path)
    source = TemplateSource({DEFAULT: template_text("llama-2")}, tokens={"bos_token": "<unk>"})
    template = choose_template("auto", source, tokenizer)
    assert template.name == "jinja"
    assert template.render(dialogs()[0])[0] == tokenizer.control_ids["<unk>"]


@pytest.mark.parametrize("name", ["llama-2-default", "phi-4", "mistral-nemo", "smollm2", "dolphin"])
def test_a_similar_text_is_rendered_by_jinja(name: str, tmp_path: Path) -> None:
    tokenizer, _ = twins(name, tmp_path)
    source = TemplateSource({DEFAULT: template_text(name)})
    assert choose_template("auto", source, tokenizer).name == "jinja"
    assert choose_template("plain", source, tokenizer).name == "plain"


def vocabulary(*control: str) -> Tokenizer:
    """Make a tokenizer with these control tokens."""
    return piece_tokenizer(sentencepiece_model(control_symbols=control))


GUESSES: dict[str, tuple[Tokenizer, TemplateSource, str | None]] = {
    "ChatML": (byte_tokenizer(), TemplateSource(), "chatml"),
    "Mistral 3": (vocabulary("[INST]", "[/INST]"), TemplateSource(), "mistral"),
    "Mistral 7": (vocabulary("[INST]", "[/INST]", "[SYSTEM_PROMPT]"), TemplateSource(), None),
    "Phi 4": (vocabulary("<|im_start|>", "<|im_end|>", "<|im_sep|>"), TemplateSource(), None),
    "a layout of Meta": (vocabulary(), TemplateSource(is_meta=True), "llama2"),
    "nothing": (vocabulary(), TemplateSource(), None),
    "a base model": (vocabulary(), TemplateSource(names=("Llama-2-7b-hf",)), None),
    "its name": (vocabulary(), TemplateSource(names=("", "Llama 2 7B Chat")), "llama2"),
    "a file": (vocabulary(), TemplateSource(names=("llama-2-13b-chat.Q4_0",)), "llama2"),
    "Zephyr": (vocabulary(), TemplateSource(names=("zephyr-7b-beta",)), "zephyr"),
    "TinyLlama": (vocabulary(), TemplateSource(names=("TinyLlama-1.1B-Chat-v1.0",)), "zephyr"),
    "Mistral base": (vocabulary(), TemplateSource(names=("Mistral-7B-v0.1",)), None),
    "Vicuna": (vocabulary(), TemplateSource(names=("vicuna-7b",)), None),
    "OpenLLaMA": (vocabulary(), TemplateSource(names=("open_llama_3b_v2",)), None),
}


@pytest.mark.parametrize("case", GUESSES)
def test_a_guess_is_said_and_an_ambiguous_one_is_not_made(case: str) -> None:
    tokenizer, source, expected = GUESSES[case]
    if expected is None:
        with pytest.raises(UsageError, match="--template: " + ", ".join(TEMPLATE_NAMES)):
            choose_template("auto", source, tokenizer)
        return
    template = choose_template("auto", source, tokenizer)
    assert template.name == expected
    note = template.take_note()
    assert expected in note
    assert "--template" in note
    assert not template.take_note()
    assert not choose_template(expected, source, tokenizer).note


NAMED = {"default": "{{ 'a' }}", "tool_use": "{{ 'b' }}", "rag": "{{ 'c' }}"}


def test_one_of_several_templates() -> None:
    tokenizer = byte_tokenizer()
    source = TemplateSource(NAMED)
    for variant, text in ((None, "a"), ("default", "a"), ("rag", "c")):
        template = choose_template("auto", source, tokenizer, variant)
        assert tokenizer.decode(template.render(dialogs()[0])) == text
    with pytest.raises(UsageError, match=r"none of that name: .*default, rag, tool_use"):
        choose_template("auto", source, tokenizer, "toll_use")
    without = TemplateSource({name: NAMED[name] for name in ("rag", "tool_use")})
    with pytest.raises(UsageError, match=r"is the default: .*--template-name: rag, tool_use"):
        choose_template("auto", without, tokenizer)
    with pytest.raises(UsageError, match="none of that name: leave out --template-name"):
        choose_template("auto", TemplateSource(), tokenizer, "rag")


def test_templates_in_the_files_of_a_hugging_face_folder(huggingface_copy: Path) -> None:
    def read() -> tuple[Mapping[str, str], str]:
        found = open_checkpoint(huggingface_copy).templates
        return found.texts, found.where

    config = huggingface_copy / "tokenizer_config.json"
    assert read() == ({}, "")
    edit_json(config, chat_template="one")
    assert read() == ({DEFAULT: "one"}, "tokenizer_config.json")
    edit_json(config, chat_template=[{"name": n, "template": t} for n, t in NAMED.items()])
    assert read() == (NAMED, "tokenizer_config.json")
    processor = {"chat_template": "of the processor"}
    (huggingface_copy / "chat_template.json").write_text(json.dumps(processor))
    assert read() == (NAMED | {DEFAULT: "of the processor"}, "chat_template.json")
    (huggingface_copy / "chat_template.jinja").write_text("of a file")
    more = huggingface_copy / "additional_chat_templates"
    more.mkdir()
    (more / "rag.jinja").write_text("more")
    assert read() == (NAMED | {DEFAULT: "of a file", "rag": "more"}, "chat_template.jinja")


def test_a_folder_names_the_tokens_of_a_template(huggingface_copy: Path) -> None:
    edit_json(huggingface_copy / "special_tokens_map.json", unk_token="<u>", pad_token="<p>")
    edit_json(
        huggingface_copy / "tokenizer_config.json",
        bos_token={"content": "<s>"},
        pad_token="</s>",
        image_token="<i>",
        eos_token=None,
    )
    tokens = open_checkpoint(huggingface_copy).templates.tokens
    assert tokens == {
        "unk_token": "<u>",
        "pad_token": "</s>",
        "bos_token": "<s>",
        "image_token": "<i>",
    }


def test_templates_in_a_gguf_file(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    named = {f"tokenizer__chat_template__{name}": NAMED[name] for name in ("rag", "tool_use")}
    more = {
        "tokenizer__chat_templates": ["rag", "tool_use"],
        "tokenizer__ggml__padding_token_id": len(TOKENS) + 7,  # a pad without a row is common
        "tokenizer__ggml__unknown_token_id": 1,
        "general__name": "Named",
    }
    write_gguf(path, metadata=named | more | {"tokenizer__chat_template": NAMED[DEFAULT]})
    found = open_checkpoint(path).templates
    assert found.texts == NAMED
    assert found.where == "tokenizer.chat_template"
    assert found.names[:2] == ("model", "Named")
    assert found.tokens == {"eos_token": CONTROL_TOKENS[0], "unk_token": CONTROL_TOKENS[1]}
    write_gguf(path, metadata=named | {"tokenizer__chat_template": None})
    assert open_checkpoint(path).templates.where == "tokenizer.chat_template.*"


def test_converted_models_have_all_templates(tmp_path: Path) -> None:
    path, folder, again = (tmp_path / name for name in ("model.gguf", "folder", "again.gguf"))
    write_gguf(
        path,
        metadata={"tokenizer__chat_template": NAMED[DEFAULT]}
        | {f"tokenizer__chat_template__{name}": NAMED[name] for name in ("rag", "tool_use")},
    )
    for source, target in ((path, folder), (folder, again)):
        assert run("convert", source, target, home=tmp_path).status == 0
        assert open_checkpoint(target).templates.texts == NAMED


def test_the_starter_has_no_system_message_of_its_own(starter_model: Path) -> None:
    checkpoint = open_checkpoint(starter_model)
    named = {"bos_token": CONTROL_TOKENS[1], "eos_token": CONTROL_TOKENS[2]}
    assert checkpoint.templates.stored == starter.CHAT_TEMPLATE
    assert find_published(starter.CHAT_TEMPLATE, named) == "chatml"


AMBIGUOUS = "llama-chat: error: chat template: the model has none"


def test_an_ambiguous_model_is_asked_about_in_ask_and_works_in_complete(
    huggingface_model: Path, tmp_path: Path
) -> None:
    model = ("-m", huggingface_model, "--max-tokens", "2", "--temperature", "0")
    asked = run("ask", "Hi", *model, home=tmp_path)
    assert_clean_error(asked, 2)
    assert asked.err.startswith(AMBIGUOUS)
    assert run("complete", "-", *model, home=tmp_path, stdin=b"Once").status == 0
    assert run("complete", "--chat", "-", *model, home=tmp_path, stdin=b"Hi").status == 2
    named = run("ask", "Hi", *model, "--template", "vicuna", home=tmp_path)
    assert named.status == 0
    assert "template" not in named.err


def test_a_guess_is_one_line_on_stderr(meta_model: Path, tmp_path: Path) -> None:
    model = ("-m", meta_model, "--max-tokens", "2", "--temperature", "0")
    result = run("ask", "Hi", *model, home=tmp_path)
    assert result.status == 0
    lines = [line for line in result.err.splitlines() if "template" in line]
    assert len(lines) == 1
    assert lines[0].startswith("llama-chat: warning: chat template: the model has none, llama2 is")
    assert "template" not in run("ask", "Hi", *model, "-q", home=tmp_path).err


def test_templates_of_a_name(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, metadata={"tokenizer__chat_template__rag": "{{ messages[0].content }}"})
    dialog = tmp_path / "dialog.json"
    dialog.write_text('[{"role": "user", "content": "Hi<|im_end|>"}]')
    flags = ("tokenize", "-m", path, "--dialog", dialog)
    named = run(*flags, "--template-name", "rag", "--json", home=tmp_path)
    report = json.loads(named.out)
    assert "".join(report["pieces"]) == "Hi<|im_end|>"
    assert report["spans"] == [{"start": 0, "end": len(report["ids"]), "from": "message"}]
    shown = run(*flags, home=tmp_path).out.splitlines()
    assert shown[0].split() == ["1", "'<|im_start|>'", "control"]
    assert {line.split()[-1] for line in shown} == {"control", "template", "message"}


def test_every_template_here_tells_tokens_of_messages(tmp_path: Path) -> None:
    tokenizer, _ = twins("llama-3", tmp_path)
    for name in ("llama3", "plain"):
        template = template_class(name)(tokenizer)
        messages = dialogs()[10]
        ids, origins = template.render(messages), template.origins(messages)
        pairs = list(zip(ids, origins, strict=True))
        said = tokenizer.decode([token_id for token_id, origin in pairs if origin == "message"])
        assert all(message.content.strip() in said for message in messages)
