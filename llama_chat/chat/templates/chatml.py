"""ChatML: ``<|im_start|>role … <|im_end|>``."""

from collections.abc import Set as AbstractSet

from llama_chat.chat.templates.headed import HeadedTemplate


class ChatMLTemplate(HeadedTemplate):
    """ChatML, without a default system message."""

    name = "chatml"
    tags = controls = ("<|im_start|>", "<|im_end|>")
    header = "<|im_start|>{}\n"
    end = "<|im_end|>\n"

    @classmethod
    def is_text(cls, text: str) -> bool:
        """See the base class."""
        return "<|im_start|>" in text

    @classmethod
    def is_vocabulary(cls, controls: AbstractSet[str]) -> bool:
        """See the base class."""
        return {"<|im_start|>", "<|im_end|>"} <= controls


TEMPLATE = ChatMLTemplate
