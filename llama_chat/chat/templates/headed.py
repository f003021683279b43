"""Templates that write every message, the system message too, under a header with its role."""

from collections.abc import Iterator, Sequence

from llama_chat.chat.conversation import Message
from llama_chat.chat.templates.base import ChatTemplate, Part, is_open


class _HeadedTemplate(ChatTemplate):
    start = ""
    """What stands before all messages."""
    header: str
    """What stands before a message, with ``{}`` for its role."""
    end: str
    """What stands behind a message."""

    def write(self, messages: Sequence[Message], open_reply: bool) -> Iterator[Part]:
        """See the base class."""
        yield self.start
        for i, message in enumerate(messages):
            yield self.header.format(message.role)
            yield from self.words(message)
            if not is_open(messages, i, open_reply):
                yield self.end
        if messages and messages[-1].role == "user":
            yield self.header.format("assistant")


class ChatMLTemplate(_HeadedTemplate):
    """``<|im_start|>role … <|im_end|>``, without a system message that nobody asked for."""

    name = "chatml"
    tags = controls = ("<|im_start|>", "<|im_end|>")
    header = "<|im_start|>{}\n"
    end = "<|im_end|>\n"


class ZephyrTemplate(_HeadedTemplate):
    """``<|role|> … </s>``, as Zephyr and TinyLlama have it.

    Their tags are ordinary text. The published template writes no BOS.
    """

    name = "zephyr"
    tags = ("<|system|>", "<|user|>", "<|assistant|>")
    controls = ("</s>",)
    header = "<|{}|>\n"
    end = "</s>\n"


class Llama3Template(_HeadedTemplate):
    """``<|start_header_id|>role<|end_header_id|> … <|eot_id|>``, as of Llama 3.

    The dates that later versions put into the system message are left out.
    """

    name = "llama3"
    tags = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    controls = ("<|begin_of_text|>", *tags)
    start = "<|begin_of_text|>"
    header = "<|start_header_id|>{}<|end_header_id|>\n\n"
    end = "<|eot_id|>"
    stripped = ("system", "user", "assistant")
