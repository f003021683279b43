"""Files of a Hugging Face folder that say how to generate."""

import reprlib
from collections.abc import Iterator
from pathlib import Path

from llama_chat.checkpoints.generation_defaults import GenerationDefaults, sampling_defaults
from llama_chat.checkpoints.small_files import JsonObject, read_optional

FILE = "generation_config.json"

SAMPLING = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repeat_penalty": "repetition_penalty",
}
"""Settings, and how ``FILE`` calls them."""

_MAX_ENDS = 1000
"""Limit on the ids of one list; models have up to ten."""

_FETCH = "download it from the same release"


def find_defaults(folder: Path, config: JsonObject, n_rows: int) -> GenerationDefaults:
    """Find what the files say about generation.

    Args:
        folder: the model.
        config: its ``config.json``.
        n_rows: rows of the embedding; an id past them is never produced.

    Raises:
        ModelError: if a file is damaged, or a value of another type.
    """
    generation = read_optional(folder / FILE, _FETCH)
    ends: list[tuple[int | str, str]] = []
    for file, name in ((config, "config.json"), (generation, FILE)):
        ends += [(i, name) for i in _ids(file) if 0 <= i < n_rows]
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        value = read_optional(folder / name, _FETCH).values.get("eos_token")
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            ends.append((text, name))
    suggested = {ours: generation.values.get(theirs) for ours, theirs in SAMPLING.items()}
    sampling, warning = sampling_defaults(generation.what, suggested)
    is_greedy = generation.values.get("do_sample") is False
    return GenerationDefaults(tuple(ends), sampling, is_greedy, FILE, warning)


def _ids(file: JsonObject) -> Iterator[int]:
    """Yield the ids of ``eos_token_id``: a number or a list."""
    value = file.values.get("eos_token_id")
    found = value if isinstance(value, list) else [] if value is None else [value]
    for token_id in found:
        if type(token_id) is not int or len(found) > _MAX_ENDS:
            raise file.error(f"eos_token_id is {reprlib.repr(value)}, not an id or a list of ids")
        yield token_id
