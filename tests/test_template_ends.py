"""The token with which a chat template ends a reply is found, and nothing else is taken for one."""

from pathlib import Path

import pytest

from llama_chat.chat.templates import TEMPLATE_NAMES, template_class
from llama_chat.chat.templates.base import ChatTemplate
from llama_chat.chat.templates.jinja import JinjaTemplate
from llama_chat.tokenizers.base import Tokenizer
from tests.template_kit import MODELS, template_text, twins

PUBLISHED = {
    "alpaca": "</s>",
    "codellama-70b": "<step>",
    "deepseek-coder": "<|EOT|>",
    "granite-3.0": "<|end_of_text|>",  # its BOS, too
    "llama-2": "</s>",
    "llama-3-asking": "<|eot_id|>",  # asks for a reply in any case
    "llama-3.1": "<|eot_id|>",  # has a default system message
    "minicpm": None,
    "monarch": "</s>",  # begins every turn with BOS
    "openchat": "<|end_of_turn|>",
    "phi-3-small": "<|end|>",  # writes another token after the last turn
    "phi-4": "<|im_end|>",
    "r1-distill": "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "stablebeluga": None,
    "yandexgpt": None,
}
OWN = {"chatml": "smollm2", "llama2": "llama-2", "llama3": "llama-3", "mistral": "mistral-v0.3"}
OWN |= {"plain": "llama-2", "vicuna": "vicuna", "zephyr": "zephyr"}
ASKS = "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
TURNS = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}ENDING{% endfor %}"
WRITTEN = {
    "an end": (TURNS.replace("ENDING", "<|end|>\n") + ASKS, "<|end|>"),
    "none": (TURNS.replace("ENDING", "\n") + ASKS, None),
    "none, and it always asks": (TURNS.replace("ENDING", "\n") + "<|assistant|>\n", None),
    "none after the last": (
        TURNS.replace("ENDING", "{% if not loop.last %}<|end|>{% endif %}\n") + ASKS,
        "<|end|>",
    ),
    "a line end and BOS": (
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{{ bos_token }}{% endfor %}",
        None,
    ),
    "a refusal": (
        "{% if messages|length > 1 %}{{ raise_exception('one') }}{% endif %}"
        + TURNS.replace("ENDING", "<|end|>"),
        None,
    ),
}


def pieces(template: ChatTemplate, tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.piece(token_id) for token_id in template.end_ids]


def jinja(text: str, name: str, tokenizer: Tokenizer) -> JinjaTemplate:
    named = {"bos_token": MODELS[name].bos, "eos_token": MODELS[name].eos}
    return JinjaTemplate(tokenizer, text, {key: text for key, text in named.items() if text})


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_templates(name: str, tmp_path: Path) -> None:
    tokenizer, _ = twins(name, tmp_path)
    expected = [PUBLISHED[name]] if PUBLISHED[name] else []
    assert pieces(jinja(template_text(name), name, tokenizer), tokenizer) == expected


@pytest.mark.parametrize("name", TEMPLATE_NAMES)
def test_own_templates(name: str, tmp_path: Path) -> None:
    model = MODELS[OWN[name]]
    tokenizer, _ = twins(OWN[name], tmp_path)
    expected = [] if name == "plain" else [model.eos]
    assert pieces(template_class(name)(tokenizer), tokenizer) == expected


@pytest.mark.parametrize("case", WRITTEN)
def test_written_templates(case: str, tmp_path: Path) -> None:
    tokenizer, _ = twins("phi-3", tmp_path)
    text, expected = WRITTEN[case]
    template = jinja(text, "phi-3", tokenizer)
    assert pieces(template, tokenizer) == ([expected] if expected else [])
