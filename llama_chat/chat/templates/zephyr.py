"""Zephyr and TinyLlama: ``<|role|> … </s>``."""

import re

from llama_chat.chat.templates.headed import HeadedTemplate

# Other models have Zephyr's tags, but end a user message with another token or with none.
_USER = re.compile(
    r"""<\|user\|>(?:\\n|\n)['"]\s*\+\s*message(?:\.content|\[['"]content['"]\])\s*\+"""
    r"""\s*(?:eos_token|['"]</s>)"""
)


class ZephyrTemplate(HeadedTemplate):
    """Zephyr, whose tags are ordinary text. The published template writes no BOS."""

    name = "zephyr"
    tags = ("<|system|>", "<|user|>", "<|assistant|>")
    controls = ("</s>",)
    header = "<|{}|>\n"
    end = "</s>\n"

    @classmethod
    def is_text(cls, text: str) -> bool:
        """See the base class."""
        return _USER.search(text) is not None


TEMPLATE = ZephyrTemplate
