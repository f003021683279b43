"""Llama 3: ``<|start_header_id|>role<|end_header_id|> … <|eot_id|>``."""

from llama_chat.chat.templates.headed import HeadedTemplate


class Llama3Template(HeadedTemplate):
    """Llama 3, without the dates that later versions add to the system message."""

    name = "llama3"
    tags = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    controls = ("<|begin_of_text|>", *tags)
    start = "<|begin_of_text|>"
    header = "<|start_header_id|>{}<|end_header_id|>\n\n"
    end = "<|eot_id|>"
    stripped = ("system", "user", "assistant")


TEMPLATE = Llama3Template
