"""Conversion of what a checkpoint says about generation."""

from typing import Any

import gguf

from llama_chat.checkpoints.base import Checkpoint
from llama_chat.checkpoints.generation_defaults import GenerationDefaults
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
    defaults, ids = checkpoint.generation, end_ids(checkpoint, vocabulary)
    values: dict[str, Any] = {"bos_token_id": vocabulary.bos_id, "eos_token_id": one_or_list(ids)}
    if defaults.sampling:
        values["do_sample"] = not defaults.is_greedy and defaults.sampling.get("temperature") != 0
    return values | {SAMPLING[name]: value for name, value in defaults.sampling.items()}


def one_or_list(ids: list[int]) -> int | list[int] | None:
    """Return ids as Hugging Face's files have them."""
    return ids if len(ids) > 1 else next(iter(ids), None)


def add_ends(writer: gguf.GGUFWriter, checkpoint: Checkpoint, vocabulary: Vocabulary) -> list[str]:
    """Add the end tokens besides EOS to ``writer``; return a line if there are too many."""
    pieces = vocabulary.pieces
    others = [i for i in end_ids(checkpoint, vocabulary) if i != vocabulary.eos_id]
    others.sort(key=lambda i: pieces[i] in END_TOKENS)  # these end a reply in any case
    add_end = [writer.add_eot_token_id, writer.add_eom_token_id]
    if others and pieces[others[0]] == _EOM:
        add_end.reverse()
    for token_id, add in zip(others, add_end, strict=False):
        add(token_id)
    lost = [pieces[i] for i in others[len(add_end) :] if pieces[i] not in END_TOKENS]
    if not lost:
        return []
    verb = "ends" if len(lost) == 1 else "end"
    return [f"GGUF has no place for more end tokens: {some(lost)} no longer {verb} a reply"]


def add_sampling(writer: gguf.GGUFWriter, defaults: GenerationDefaults) -> list[str]:
    """Add the suggested sampling to ``writer``; return a line if it means less there."""
    suggested: dict[str, Any] = dict(defaults.sampling)
    for name, add in (
        ("temperature", writer.add_sampling_temp),
        ("top_p", writer.add_sampling_top_p),
        ("top_k", writer.add_sampling_top_k),
        ("min_p", writer.add_sampling_min_p),
        ("repeat_penalty", writer.add_sampling_penalty_repeat),
    ):
        if name in suggested:
            add(suggested[name])
    if not (suggested and defaults.is_greedy):
        return []
    return ["GGUF cannot say do_sample = false beside its sampling settings: it is left out"]
