"""Tokens that end a reply."""

from collections.abc import Iterable

from llama_chat.checkpoints.generation_defaults import GenerationDefaults
from llama_chat.tokenizers.base import Tokenizer
from llama_chat.tokenizers.vocabulary import END_TOKENS


def end_tokens(
    tokenizer: Tokenizer, defaults: GenerationDefaults, written: Iterable[int] = ()
) -> dict[int, list[str]]:
    """Return the ids of all tokens that end a reply, each with what says so.

    Args:
        tokenizer: the tokenizer of the model.
        defaults: what the checkpoint says.
        written: those of the chat template; see ``ChatTemplate.end_ids``.
    """
    ids = tokenizer.control_ids
    said: list[tuple[int | None, str]] = [*defaults.end_ids(ids)]
    if tokenizer.eos_id not in (token_id for token_id, _ in said):
        said.append((tokenizer.eos_id, "tokenizer"))
    said += [(token_id, "chat template") for token_id in written]
    said += [(ids.get(name), "known name") for name in END_TOKENS]
    found: dict[int, list[str]] = {}
    for token_id, by in said:
        if token_id is not None:
            found.setdefault(token_id, []).append(by)
    return found
