"""Chat session with a model on a server, with messages that are encoded locally."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from llama_chat.chat.context_use import Fit
from llama_chat.chat.conversation import Message
from llama_chat.chat.encoding_session import EncodingSession
from llama_chat.chat.remote_session import RemoteSession
from llama_chat.chat.templates import ChatTemplate
from llama_chat.endpoint.served_model import IDS, TEXT_ROUTE, Call, ServedModel
from llama_chat.errors import UsageError
from llama_chat.generation.events import Event, Finish, Hooks
from llama_chat.tokenizers.base import Tokenizer


class EncodingRemoteSession(EncodingSession, RemoteSession):
    """A conversation that is encoded locally, and continued by a server as raw ids or text."""

    def __init__(
        self,
        model: ServedModel,
        template: ChatTemplate,
        tokenizer: Tokenizer,
        context: int,
        **options: Any,
    ) -> None:
        """Begin or continue a conversation.

        Args:
            model: the model on the server.
            template: the chat template, which encodes messages.
            tokenizer: its vocabulary.
            context: context length in tokens.
            options: arguments of ``RemoteSession``.
        """
        super().__init__(template, tokenizer, context, model=model, **options)

    def piece(self, token_id: int) -> str:
        """Return the name of a token in the vocabulary, or one that the server has named."""
        if token_id < self._tokenizer.vocab_size:
            return super().piece(token_id)
        return RemoteSession.piece(self, token_id)

    def token_bytes(self, token_id: int) -> bytes:
        """Return the text of a token in UTF-8."""
        if token_id < self._tokenizer.vocab_size:
            return super().token_bytes(token_id)
        return RemoteSession.token_bytes(self, token_id)

    def _call(
        self,
        fit: Fit,
        reply: Message,
        *,
        max_tokens: int | None = None,
        n_logprobs: int | None = None,
    ) -> Call:
        """Return the request that continues the ids of a conversation."""
        ends = sorted(self.template.end_ids)
        takes_ids, text = IDS not in self.model.refused, self._in_text(fit)
        if not takes_ids and text is None:
            why = "the server takes no ids, and a tag in it would act as one there"
            raise UsageError("message", why, "write it without control tokens")
        call = self._continuing(
            TEXT_ROUTE,
            {"prompt": list(fit.ids) if takes_ids else text},
            max_tokens,
            n_logprobs,
            extra={"stop_token_ids": ends},
            in_text=text if takes_ids else None,
        )
        # Servers without that field find the end by its text, or know it themselves.
        stop = [*self.stop, *map(self._tokenizer.piece, ends)]
        return replace(call, body={**call.body, "stop": stop}) if stop else call

    def _in_text(self, fit: Fit) -> str | None:
        """Return the prompt as text; None if a tag in a message would act as one there."""
        if any(self.template.find_tags(text) for m in fit.messages for text in m.texts):
            return None
        return spelled(self._tokenizer, fit.ids)

    def _generate(self, fit: Fit, reply: Message, hooks: Hooks | None) -> Iterator[Event]:
        """Generate what follows ``reply``; a new one begins without white space."""
        has_begun = bool(reply.text)
        for event in RemoteSession._generate(self, fit, reply, hooks):
            text = event.text if has_begun else event.text.lstrip()
            has_begun = has_begun or bool(text)
            yield event if text == event.text else replace(event, text=text)

    def _measure(self, fit: Fit, reply: Message, finish: Finish) -> None:
        """Compare the token counts of the server with the local ones, which must be the same."""
        super()._measure(fit, reply, finish)
        counted, n_tokens = finish.usage.prompt_tokens, len(fit.ids)
        # Some servers do not count BOS, and some add one more.
        if finish.usage.counted_by == "server" and abs(counted - n_tokens) > 1:
            self._tell(
                f"the prompt has {counted} tokens there and {n_tokens} here: the server has "
                "another vocabulary, or takes control tokens for text: leave out --template-here"
            )

    def _shorter(self, fit: Fit) -> Fit | None:
        """Return None: all that fits was sent, so the server must have counted more tokens."""
        return None


def spelled(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Return the text that a server encodes to ``ids``, control tokens by their names.

    The first one is left out if it is BOS, which servers add to texts.
    """
    names = {token_id: piece for piece, token_id in tokenizer.control_ids.items()}
    if ids and ids[0] == tokenizer.bos_id:
        ids = ids[1:]
    data = b"".join(names[i].encode() if i in names else tokenizer.token_bytes(i) for i in ids)
    return data.decode("utf-8", "replace")
