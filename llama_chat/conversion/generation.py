"""Conversion of what a checkpoint says about generation."""

from typing import Any

import gguf

from llama_chat.checkpoints.base import Checkpoint
from llama_chat.checkpoints.huggingface_generation import SAMPLING
from llama_chat.conversion.vocabulary import some
from llama_chat.tokenizers.vocabulary import END_TOKENS, Vocabulary

_EOM = "<|eom_id|>"
"""End of a message after which the model goes on; GGUF has a key of its own for it."""


def end_ids(checkpoint: Checkpoint, vocabulary: Vocabulary) -> list[int]:
    """Return the tokens that the checkpoint says end a reply: EOS, if there is one, and others."""
    found = [] if vocabulary.eos_id is None else [vocabulary.eos_id]
    declared = checkpoint.generation.end_ids(vocabulary.control_ids())
    return list(dict.fromkeys([*found, *(token_id for token_id, _ in declared)]))


def generation_config(checkpoint: Checkpoint, vocabulary: Vocabulary) -> dict[str, Any]:
    """Return ``generation_config.json``."""
    ids, suggested = end_ids(checkpoint, vocabulary), checkpoint.generation.sampling
    values: dict[str, Any] = {SAMPLING[name]: value for name, value in suggested.items()}
    if suggested:
        values["do_sample"] = suggested.get("temperature") != 0
    return {"bos_token_id": vocabulary.bos_id, "eos_token_id": one_or_list(ids), **values}


def one_or_list(ids: list[int]) -> int | list[int] | None:
    """Return ids as Hugging Face's files have them."""
    return ids if len(ids) > 1 else next(iter(ids), None)


def add_generation(
    writer: gguf.GGUFWriter, checkpoint: Checkpoint, vocabulary: Vocabulary
) -> list[str]:
    """Add end tokens besides EOS, and sampling hints, to ``writer``.

    Returns:
        Lines about what GGUF has no place for.
    """
    pieces = vocabulary.pieces
    others = [i for i in end_ids(checkpoint, vocabulary) if i != vocabulary.eos_id]
    others.sort(key=lambda i: _name(vocabulary, i) in END_TOKENS)  # these end a reply anyway
    add = [writer.add_eot_token_id, writer.add_eom_token_id]
    if others and pieces[others[0]] == _EOM:
        add.reverse()
    for token_id, add_id in zip(others, add, strict=False):
        add_id(token_id)
    suggested: dict[str, Any] = dict(checkpoint.generation.sampling)
    for name, add_value in (
        ("temperature", writer.add_sampling_temp),
        ("top_p", writer.add_sampling_top_p),
        ("top_k", writer.add_sampling_top_k),
        ("repeat_penalty", writer.add_sampling_penalty_repeat),
    ):
        if name in suggested:
            add_value(suggested[name])
    lost = [_name(vocabulary, i) for i in others[len(add) :]]
    lost = [name for name in lost if name not in END_TOKENS]
    if not lost:
        return []
    verb = "ends" if len(lost) == 1 else "end"
    return [f"GGUF has no place for more end tokens: {some(lost)} no longer {verb} a reply"]


def _name(vocabulary: Vocabulary, token_id: int) -> str:
    return vocabulary.pieces[token_id] if token_id < len(vocabulary.pieces) else f"<{token_id}>"
