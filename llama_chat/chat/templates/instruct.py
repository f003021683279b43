"""Templates that write ``[INST] … [/INST]`` around what the user says."""

from collections.abc import Iterator, Sequence

from llama_chat.chat.conversation import Message
from llama_chat.chat.templates.base import ChatTemplate, Part, Typed, is_open, split_system
from llama_chat.tokenizers.base import Tokenizer


class Llama2Template(ChatTemplate):
    """Llama 2 as Meta encodes it: BOS and EOS around each turn, one text between them."""

    name = "llama2"
    tags = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")
    controls = ("<s>", "</s>")
    before_reply = " "
    stripped = ("user", "assistant")

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
        """What stands in the tags. White space is stripped around the whole of it."""
        if system is None:
            yield Typed(user.strip())
            return
        user = user.rstrip()
        yield from ("<<SYS>>\n", Typed(system), "\n<</SYS>>")
        if user:
            yield from ("\n\n", Typed(user))


class MistralTemplate(ChatTemplate):
    """Mistral 7B Instruct.

    The first two versions write the tags as text, and the system message into the first user
    message. From the third on the tags are control tokens, and the system message stands in the
    last user message, so that with one the turn before is read again at every turn.
    """

    name = "mistral"
    tags = ("[INST]", "[/INST]")
    controls = ("<s>", "</s>")
    before_reply = " "
    dummy_prefix = "never"

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer)
        self._controlled = "[INST]" in tokenizer.control_ids
        self.stripped = ("assistant",) if self._controlled else ()

    def write(self, messages: Sequence[Message], open_reply: bool) -> Iterator[Part]:
        """See the base class."""
        system, turns = split_system(messages)
        opening, closing = ("[INST] ", "[/INST]") if self._controlled else (" [INST] ", " [/INST]")
        folded = self._folded(turns, open_reply)
        yield "<s>"
        for i, message in enumerate(turns):
            by_user = message.role == "user"
            if by_user:
                yield opening
                if system is not None and i == folded:
                    yield from (Typed(system), "\n\n")
            yield from self.words(message)
            if by_user:
                yield closing
            elif not is_open(turns, i, open_reply):
                yield "</s>"

    def _folded(self, turns: Sequence[Message], open_reply: bool) -> int:
        """In which message the system message stands; behind a closed reply, the next to come."""
        if not self._controlled:
            return 0
        goes_on = bool(turns) and (open_reply or turns[-1].role == "user")
        n_ended = len(turns) - goes_on
        return n_ended - n_ended % 2
