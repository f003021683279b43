"""Mistral 7B Instruct: ``[INST] … [/INST]`` after one BOS."""

from collections.abc import Iterator, Sequence

from llama_chat.chat.conversation import Message
from llama_chat.chat.templates.base import ChatTemplate, Part, Typed, is_open, split_system
from llama_chat.tokenizers.base import Tokenizer


class MistralTemplate(ChatTemplate):
    """Mistral 7B Instruct.

    In the first two versions the tags are text, and the system message is part of the first user
    message. From the third on the tags are control tokens, and the system message is part of the
    last user message, so that with one the turn before is prefilled again at every turn.
    """

    name = "mistral"
    tags = ("[INST]", "[/INST]")
    controls = ("<s>", "</s>")
    before_reply = " "

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer)
        self._has_tag_ids = "[INST]" in tokenizer.control_ids
        self.begins_text = self._has_tag_ids
        self.stripped = ("assistant",) if self._has_tag_ids else ()

    def write(self, messages: Sequence[Message], open_reply: bool) -> Iterator[Part]:
        """See the base class."""
        system, turns = split_system(messages)
        opening, closing = ("[INST] ", "[/INST]") if self._has_tag_ids else (" [INST] ", " [/INST]")
        system_index = self._system_index(turns, open_reply)
        yield "<s>"
        for i, message in enumerate(turns):
            by_user = message.role == "user"
            if by_user:
                yield opening
                if system is not None and i == system_index:
                    yield from (Typed(system), "\n\n")
            yield from self.words(message)
            if by_user:
                yield closing
            elif not is_open(turns, i, open_reply):
                yield "</s>"

    def _system_index(self, turns: Sequence[Message], open_reply: bool) -> int:
        """Return the index of the system message's user message; after a closed reply, the next."""
        if not self._has_tag_ids:
            return 0
        goes_on = bool(turns) and (open_reply or turns[-1].role == "user")
        n_ended = len(turns) - goes_on
        return n_ended - n_ended % 2


TEMPLATE = MistralTemplate
