"""Sessions that receive replies token by token, with ids of a local vocabulary."""

from llama_chat.chat.conversation import Message
from llama_chat.chat.encoding_session import EncodingSession
from llama_chat.generation.events import Finish, Token
from llama_chat.tokenizers.streaming import Leading, StreamingDecoder


class TokenSession(EncodingSession):
    """A conversation whose replies keep the ids that the model wrote."""

    def _begin(self, reply: Message) -> Leading:
        """Prepare a reply to be continued: make its text that of its ids.

        Returns:
            The treatment of leading white space in the continuation.
        """
        if reply.ids is None:
            return "keep"  # known only as text, it continues directly after its last character
        # Without the U+FFFD of a character that was cut off.
        reply.text = StreamingDecoder(self.tokenizer, "strip").decode(reply.ids)
        return "strip"

    def _record(self, reply: Message, token: Token) -> None:
        """Add a token to ``reply``."""
        reply.ids = None if reply.ids is None else (*reply.ids, token.id)
        if reply.logprobs is not None:
            reply.logprobs.add(token.id, token.logprob, token.alternatives)

    def _ended(self, reply: Message, finish: Finish) -> None:
        """Drop the ids if a stop string ended the reply: they extend beyond its text."""
        if finish.stopped_at is not None:
            reply.ids = None
