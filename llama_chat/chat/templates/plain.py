"""Plain text without roles, one message per line, for models that only continue text."""

from collections.abc import Iterator, Sequence

from llama_chat.chat.conversation import Message
from llama_chat.chat.templates.base import ChatTemplate, Part


class PlainTemplate(ChatTemplate):
    """Plain text without roles, one message per line, for models that only continue text."""

    name = "plain"
    leaves_bos = True

    def write(self, messages: Sequence[Message], open_reply: bool) -> Iterator[Part]:
        """See the base class."""
        for i, message in enumerate(messages):
            yield "\n" if i else ""
            yield from self.words(message)
        if messages and messages[-1].role == "user":
            yield "\n"


TEMPLATE = PlainTemplate
