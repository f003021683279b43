"""Llama 2: ``[INST] … [/INST]``, as Meta encodes it."""

from collections.abc import Iterator, Sequence

from llama_chat.chat.conversation import Message
from llama_chat.chat.templates.base import ChatTemplate, Part, Typed, is_open, split_system


class Llama2Template(ChatTemplate):
    """Llama 2 as Meta encodes it: BOS and EOS around each turn, one text between them."""

    name = "llama2"
    tags = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")
    controls = ("<s>", "</s>")
    before_reply = " "
    stripped = ("user", "assistant")
    texts_apart = True

    def write(self, messages: Sequence[Message], open_reply: bool) -> Iterator[Part]:
        """See the base class. The system message is folded into the first user message."""
        system, turns = split_system(messages)
        for i, message in enumerate(turns):
            if message.role == "user":
                yield "<s>[INST] "
                yield from self._instruction(message.content, system if i == 0 else None)
                yield " [/INST]"
                continue
            yield from self.words(message)
            if not is_open(turns, i, open_reply):
                yield "</s>" if message.ids is not None else " </s>"

    def _instruction(self, user: str, system: str | None) -> Iterator[Part]:
        """Yield the text between the tags, stripped of white space at both ends as a whole."""
        if system is None:
            yield Typed(user.strip())
            return
        user = user.rstrip()
        yield from ("<<SYS>>\n", Typed(system), "\n<</SYS>>")
        if user:
            yield from ("\n\n", Typed(user))


TEMPLATE = Llama2Template
