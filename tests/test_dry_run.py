"""A dry run shows the very prompt that would be answered, and reads no weights."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from harness.program import assert_clean_error, run
from llama_chat.chat.conversation import Conversation, Message
from llama_chat.chat.templates import TEMPLATE_NAMES, choose_template
from llama_chat.errors import UsageError
from llama_chat.loading.formats import load_tokenizer, open_checkpoint
from tests.model_files import SMALL, write_gguf

PROMPT = """
system = "Translate {{what}}:"
max_tokens = 3
[[examples]]
user = "sunflower"
assistant = "tournesol"
[[examples]]
user = "jellyfish"
"""

WAYS = {
    "ask": ("ask", "hi é"),
    "piped": (),
    "with a system message": ("ask", "--system", "Be brief. <|im_end|>"),
    "with a prompt file": ("ask", "--prompt", "{toml}", "--var", "what=it"),
    "raw": ("complete", "-"),
    "through the template": ("complete", "-", "--chat"),
    "structured": ("complete", "{toml}", "--var", "what=<|im_end|>"),
}


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "p.toml"
    path.write_text(PROMPT)
    return path


def words(way: str, toml: Path) -> list[str]:
    return [word.format(toml=toml) for word in WAYS[way]]


@pytest.mark.parametrize("way", WAYS)
def test_its_ids_are_those_that_are_answered(
    way: str, gguf_model: Path, toml: Path, tmp_path: Path
) -> None:
    flags = [*words(way, toml), "-m", str(gguf_model), "--json"]
    shown = run(*flags, "--dry-run", home=tmp_path, stdin=b"the cat")
    answered = run(*flags, "--max-tokens", "3", home=tmp_path, stdin=b"the cat")
    report, answer = json.loads(shown.out), json.loads(answered.out)
    assert report["prompt_tokens"] == len(report["ids"]) == answer["prompt_tokens"]
    assert report["room"] == 512 - len(report["ids"])
    assert report["max_tokens"] == (3 if "{toml}" in WAYS[way] else report["room"])
    tokenizer = load_tokenizer(open_checkpoint(gguf_model))
    assert report["pieces"] == [tokenizer.piece(i) for i in report["ids"]]
    control = [i in tokenizer.control_ids.values() for i in report["ids"]]
    assert report["control_tokens"] == sum(control)
    of = [kind["from"] for kind in report["spans"] for _ in range(kind["start"], kind["end"])]
    assert [kind == "control" for kind in of] == control


def test_the_prompt_is_shown_with_its_control_tokens_marked(
    gguf_model: Path, tmp_path: Path
) -> None:
    done = run("ask", "<|im_end|>", "-m", gguf_model, "--dry-run", home=tmp_path)
    text, ids, counts = done.out.split("\n\n")
    assert text == "⟦<|im_start|>⟧user\n<|im_end|>⟦<|im_end|>⟧\n⟦<|im_start|>⟧assistant"
    n = len(ids.split())
    assert counts == (
        f"{n} tokens: 3 control, {n - 13} template, 10 text; {512 - n} left in the context of 512, "
        f"at most {512 - n} for the answer\n"
    )


def test_no_weight_is_read(tmp_path: Path) -> None:
    path = tmp_path / "long.gguf"
    write_gguf(path, replace(SMALL, context_length=2**24, n_layers=64))
    flags = ("ask", "hi", "-m", path, "--context", str(2**24))
    shown = run(*flags, "--dry-run", home=tmp_path)
    assert "left in the context of 16777216" in shown.out
    answered = run(*flags, home=tmp_path)  # a cache that no memory holds
    assert_clean_error(answered, 3, " free")


@pytest.mark.parametrize("name", TEMPLATE_NAMES)
def test_origins_of_an_open_reply_are_those_of_its_ids(name: str, starter_model: Path) -> None:
    checkpoint = open_checkpoint(starter_model)
    tokenizer = load_tokenizer(checkpoint)
    try:
        template = choose_template(name, checkpoint.templates, tokenizer)
    except UsageError:  # tokens that this vocabulary lacks
        return
    messages = [*Conversation("s").preface(), Message("user", "u"), Message("assistant", "", ())]
    ids = template.render(messages, open_reply=True)
    origins = template.origins(messages, open_reply=True)
    assert len(ids) == len(origins)
    assert ids[: len(template.render(messages[:-1]))] == template.render(messages[:-1])


def test_an_empty_prompt_of_a_model_without_bos_is_one_line(
    gguf_model: Path, tmp_path: Path
) -> None:
    for flags in ((), ("--dry-run",)):
        done = run("complete", "-", "-m", gguf_model, "-q", *flags, home=tmp_path)
        assert_clean_error(done, 2, "prompt: it is empty, and the model has no token to begin")


def test_what_does_not_fit_is_refused_as_it_would_be(gguf_model: Path, tmp_path: Path) -> None:
    flags = ("-m", gguf_model, "--context", "16", "--dry-run")
    for command, why in (
        (("ask",), "leave no space"),
        (("complete", "-"), "do not fit"),
    ):
        shown = run(*command, *flags, home=tmp_path, stdin=b"the cat " * 40)
        answered = run(*command, *flags[:-1], home=tmp_path, stdin=b"the cat " * 40)
        assert_clean_error(shown, 4, why)
        assert shown.err == answered.err
