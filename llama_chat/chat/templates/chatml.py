"""ChatML: ``<|im_start|>role … <|im_end|>``."""

from llama_chat.chat.templates.headed import HeadedTemplate


class ChatMLTemplate(HeadedTemplate):
    """ChatML, without a default system message."""

    name = "chatml"
    tags = controls = ("<|im_start|>", "<|im_end|>")
    header = "<|im_start|>{}\n"
    end = "<|im_end|>\n"


TEMPLATE = ChatMLTemplate
