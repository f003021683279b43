"""Chat templates: from messages to ids.

A closed list, rendered here. A template text found in a file is recognised, and never executed.
"""

import re
from collections.abc import Callable

from llama_chat.chat.templates.base import ChatTemplate
from llama_chat.chat.templates.headed import ChatMLTemplate, Llama3Template, ZephyrTemplate
from llama_chat.chat.templates.instruct import Llama2Template, MistralTemplate
from llama_chat.chat.templates.others import PlainTemplate, VicunaTemplate
from llama_chat.errors import UsageError
from llama_chat.tokenizers.base import Tokenizer

TEMPLATES: dict[str, type[ChatTemplate]] = {
    template.name: template
    for template in (
        Llama2Template,
        ChatMLTemplate,
        ZephyrTemplate,
        Llama3Template,
        MistralTemplate,
        VicunaTemplate,
        PlainTemplate,
    )
}

# Others have Zephyr's tags, but end a message of the user with another token or with none.
_ZEPHYR = re.compile(
    r"""<\|user\|>(?:\\n|\n)['"]\s*\+\s*message(?:\.content|\[['"]content['"]\])\s*\+"""
    r"""\s*(?:eos_token|['"]</s>)"""
)
_MARKER = re.compile(r"<\|\w{1,30}\|>|<\w{1,30}>|\[[A-Z_]{2,30}\]", re.ASCII)


def recognise(template_text: str | None, tokenizer: Tokenizer) -> str | None:
    """Tell which template a checkpoint means, by the template text or the tokens in it.

    Returns:
        A name of ``TEMPLATES``, or None if it is none of them.
    """
    controls = tokenizer.control_ids.keys()
    if template_text is not None:
        return _recognise_text(template_text)
    if {"<|im_start|>", "<|im_end|>"} <= controls:
        return "chatml"
    if {"<|start_header_id|>", "<|eot_id|>"} <= controls:
        return "llama3"
    if {"[INST]", "[/INST]"} <= controls:
        return "mistral"
    # Meta's own release holds no template, and nothing else has these control tokens alone.
    return "llama2" if controls <= {"<unk>", "<s>", "</s>"} else None


def _recognise_text(text: str) -> str | None:
    def has(*marks: str) -> bool:
        return all(mark in text for mark in marks)

    signs: dict[str, Callable[[], bool]] = {
        "chatml": lambda: has("<|im_start|>"),
        "llama3": lambda: has("<|start_header_id|>", "<|eot_id|>"),
        "llama2": lambda: has("[INST]", "<<SYS>>"),
        # Later ones of Mistral have a tag for the system message.
        "mistral": lambda: has("[INST]") and not has("[SYSTEM_PROMPT]"),
        "zephyr": lambda: _ZEPHYR.search(text) is not None,
        "vicuna": lambda: has("USER:", "ASSISTANT:"),
    }
    return next((name for name, shown in signs.items() if shown()), None)


def choose_template(name: str, template_text: str | None, tokenizer: Tokenizer) -> ChatTemplate:
    """The template called ``name``, or for ``auto`` the one the checkpoint means.

    Raises:
        UsageError: if it means none that is known, or the tokenizer lacks its tokens.
    """
    if name == "auto":
        found = recognise(template_text, tokenizer)
        if found is None:
            marker = _MARKER.search(template_text or "")
            raise UsageError(
                "chat template",
                f"that of this model{f', with {marker[0]},' if marker else ''} is not known",
                f"choose one with --template: {', '.join(TEMPLATES)}",
            )
        name = found
    return TEMPLATES[name](tokenizer)


__all__ = ["TEMPLATES", "ChatTemplate", "choose_template", "recognise"]
