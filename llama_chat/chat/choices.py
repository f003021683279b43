"""A choice between given replies, by the probability that the model gives to each."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from llama_chat.chat.conversation import Message
from llama_chat.errors import UsageError
from llama_chat.generation.events import Hooks
from llama_chat.generation.logprobs import Scored

if TYPE_CHECKING:
    from llama_chat.chat.templates import ChatTemplate


@dataclass(frozen=True, slots=True)
class ScoredReply:
    """A reply that could be chosen."""

    text: str
    scored: Scored
    probability: float
    """Probability among the choices alone."""


class ReplyScorer(Protocol):
    """A conversation that computes the probabilities of given replies."""

    @property
    def n_reused(self) -> int:
        """Number of tokens of the last prompt that needed no forward pass."""

    def piece(self, token_id: int) -> str:
        """Return the name of a token in the vocabulary."""

    def score(self, message: str, texts: Sequence[str], hooks: Hooks | None = None) -> list[Scored]:
        """Score replies to a message; nothing is added to the conversation.

        Raises:
            UsageError: if they cannot be told apart.
            PromptTooLongError: if the message does not fit with one of them.
        """


def choose(
    session: ReplyScorer,
    message: str,
    texts: Sequence[str],
    hooks: Hooks | None = None,
    *,
    by_length: bool = False,
) -> list[ScoredReply]:
    """Score replies to a message, each with the end of the turn, most likely first.

    Nothing is added to the conversation.

    Args:
        session: the conversation.
        message: the message.
        texts: the replies.
        hooks: hooks to follow and stop it.
        by_length: compare log-probabilities divided by the numbers of tokens.

    Raises:
        UsageError: if there are none, or two are the same.
        PromptTooLongError: if the message does not fit with one of them.
    """
    check_choices(texts)
    scored = session.score(message, texts, hooks)
    scores = [each.logprob / (len(each.ids) if by_length else 1) for each in scored]
    highest = max(scores)
    weights = [math.exp(each - highest) for each in scores]
    total = sum(weights)
    found = [
        ScoredReply(text, each, weight / total)
        for text, each, weight in zip(texts, scored, weights, strict=True)
    ]
    return sorted(found, key=lambda choice: choice.probability, reverse=True)


def check_choices(texts: Sequence[str]) -> None:
    """Check that there is something to choose from.

    Raises:
        UsageError: if there is nothing, an empty text, or the same twice.
    """
    if not texts:
        raise UsageError("choices", "there are none", "write --choices yes,no")
    seen: set[str] = set()
    for text in texts:
        if not text.strip():
            raise UsageError("choices", "one is empty", "leave it out")
        if text in seen:
            raise UsageError("choices", f"{text!r} is given twice", "leave one out")
        seen.add(text)


def reply_ids(
    template: "ChatTemplate",
    messages: Sequence[Message],
    text: str,
    n_prompt: int,
    end_ids: Collection[int],
) -> list[int]:
    """Encode a reply as the model would write it, up to its end token if there is one.

    Args:
        template: the chat template.
        messages: the messages before it.
        text: the reply.
        n_prompt: the number of tokens of ``messages`` with the beginning of a reply.
        end_ids: the end tokens.
    """
    reply = Message("assistant", text, template.encode_reply(text))
    ids = list(reply.ids or ())
    for token_id in template.render([*messages, reply])[n_prompt + len(ids) :]:
        if token_id in end_ids:
            return [*ids, token_id]
    return ids
