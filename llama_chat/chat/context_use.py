"""Context usage of messages and of a conversation."""

from collections.abc import Sequence
from dataclasses import dataclass

from llama_chat.chat.conversation import Message
from llama_chat.errors import PromptTooLongError


@dataclass(frozen=True, slots=True)
class ContextRow:
    """Context usage of one message."""

    message: Message
    ids: Sequence[int]
    """Tokens of the message, with those of the template around it."""
    cached: int
    """Number of these tokens that are in the KV cache."""
    goes_next: bool
    """True if it belongs to the turn that is dropped next when the context is full."""


@dataclass(frozen=True, slots=True)
class ContextUse:
    """Context usage of a conversation with the message that is being typed."""

    n_tokens: int
    n_dropped: int | None
    """Number of turns that sending the message would drop; None if it does not fit at all."""
    is_exact: bool = True
    """False if the tokens are estimated."""


@dataclass(frozen=True, slots=True)
class Fit:
    """An encoded conversation that fits, and the turns dropped for that."""

    ids: list[int]
    """Its tokens; none if they are known elsewhere."""
    messages: list[Message]
    """Messages shown to the model, at whose end it writes."""
    n_dropped: int
    """Number of turns dropped from the path, now and earlier."""
    n_newly_dropped: int
    """Number of those dropped now."""
    n_dropped_tokens: int
    """Number of their tokens."""


def no_space(n_tokens: int, context: int) -> PromptTooLongError:
    """Return the error for a conversation of ``n_tokens``, after which no reply fits."""
    return PromptTooLongError(
        "conversation",
        f"{n_tokens} tokens leave no space for a reply in the context of {context}",
        "shorten the message or the system message, or raise --context if the model allows",
    )
