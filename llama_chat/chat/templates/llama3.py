"""Llama 3: ``<|start_header_id|>role<|end_header_id|> … <|eot_id|>``."""

from collections.abc import Set as AbstractSet

from llama_chat.chat.templates.headed import HeadedTemplate

_TYPICAL_TAGS = {"<|start_header_id|>", "<|eot_id|>"}


class Llama3Template(HeadedTemplate):
    """Llama 3, without the dates that later versions add to the system message."""

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
        return all(tag in text for tag in _TYPICAL_TAGS)

    @classmethod
    def is_vocabulary(cls, controls: AbstractSet[str]) -> bool:
        """See the base class."""
        return controls >= _TYPICAL_TAGS


TEMPLATE = Llama3Template
