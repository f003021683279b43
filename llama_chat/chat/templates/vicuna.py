"""Vicuna v1.5: ``USER: … ASSISTANT: …``."""

from collections.abc import Iterator, Sequence

from llama_chat.chat.conversation import Message
from llama_chat.chat.templates.base import ChatTemplate, Part, Typed, is_open, split_system


class VicunaTemplate(ChatTemplate):
    """``USER: … ASSISTANT: …``, as Vicuna v1.5 was trained.

    Both tags are ordinary text. In a message they are encoded character by character: the text
    stays the same, and no turn begins.
    """

    name = "vicuna"
    tags = ("USER:", "ASSISTANT:")
    controls = ("</s>",)
    before_reply = " "
    leaves_bos = True

    def write(self, messages: Sequence[Message], open_reply: bool) -> Iterator[Part]:
        """See the base class."""
        system, turns = split_system(messages)
        if system is not None:
            yield from (Typed(system), " ")
        for i, message in enumerate(turns):
            by_user = message.role == "user"
            yield "USER: " if by_user else ""
            yield from self.words(message)
            if by_user:
                yield " ASSISTANT:"
            elif not is_open(turns, i, open_reply):
                yield "</s>"


TEMPLATE = VicunaTemplate
