"""Base class of templates that write every message after a header with its role."""

from collections.abc import Iterator, Sequence

from llama_chat.chat.conversation import Message
from llama_chat.chat.templates.base import ChatTemplate, Part, is_open


class HeadedTemplate(ChatTemplate):
    """Template of header, message and end, for the system message too."""

    start = ""
    """Text before all messages."""
    header: str
    """Text before a message, with ``{}`` for its role."""
    end: str
    """Text after a message."""

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
