"""Metadata of a GGUF file that say how to generate."""

from llama_chat.checkpoints.generation_defaults import GenerationDefaults, sampling_defaults
from llama_chat.checkpoints.gguf_metadata import Metadata

_ENDS = tuple(f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom"))

_SAMPLING = {
    "temperature": "general.sampling.temp",
    "top_p": "general.sampling.top_p",
    "top_k": "general.sampling.top_k",
    "min_p": "general.sampling.min_p",
    "repeat_penalty": "general.sampling.penalty_repeat",
}
"""Settings, and the keys of their values."""


def find_defaults(metadata: Metadata, n_rows: int) -> GenerationDefaults:
    """Find what the metadata say about generation.

    Args:
        metadata: of the file.
        n_rows: rows of the embedding; an id past them is never produced.

    Raises:
        ModelError: if an id is no whole number.
    """
    ids = [(metadata.integer(key), key) for key in _ENDS if key in metadata.values]
    suggested = {name: _shortest(metadata.values.get(key)) for name, key in _SAMPLING.items()}
    sampling, warning = sampling_defaults(metadata.what, suggested)
    ends = tuple((i, key) for i, key in ids if 0 <= i < n_rows)
    return GenerationDefaults(ends, sampling, where="general.sampling.*", warning=warning)


def _shortest(value: object) -> object:
    """Return a number of 32 bits as it was written: 0.6, not 0.60000002384."""
    return float(f"{value:.7g}") if isinstance(value, float) else value
