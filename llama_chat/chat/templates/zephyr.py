"""Zephyr and TinyLlama: ``<|role|> … </s>``."""

from llama_chat.chat.templates.headed import HeadedTemplate


class ZephyrTemplate(HeadedTemplate):
    """Zephyr, whose tags are ordinary text. The published template writes no BOS."""

    name = "zephyr"
    tags = ("<|system|>", "<|user|>", "<|assistant|>")
    controls = ("</s>",)
    header = "<|{}|>\n"
    end = "</s>\n"


TEMPLATE = ZephyrTemplate
