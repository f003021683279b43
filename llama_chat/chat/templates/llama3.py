"""Llama 3: ``<|start_header_id|>role<|end_header_id|> … <|eot_id|>``."""

from collections.abc import Set as AbstractSet

from llama_chat.chat.templates.headed import HeadedTemplate

_SIGNS = {"<|start_header_id|>", "<|eot_id|>"}


class Llama3Template(HeadedTemplate):
    """Llama 3, without the dates that later versions put into the system message."""

    name = "llama3"
    tags = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    controls = ("<|begin_of_text|>", *tags)
    start = "<|begin_of_text|>"
    header = "<|start_header_id|>{}<|end_header_id|>\n\n"
    end = "<|eot_id|>"
    stripped = ("system", "user", "assistant")

    @classmethod
    def is_text(cls, text: str) -> bool:
        """See the base class."""
        return all(sign in text for sign in _SIGNS)

    @classmethod
    def is_vocabulary(cls, controls: AbstractSet[str]) -> bool:
        """See the base class."""
        return controls >= _SIGNS


TEMPLATE = Llama3Template
