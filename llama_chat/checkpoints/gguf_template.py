"""Chat templates in the metadata of a GGUF file."""

from llama_chat.checkpoints.gguf_metadata import Metadata
from llama_chat.checkpoints.template_source import DEFAULT, TemplateSource

_KEY = "tokenizer.chat_template"

_TOKENS = {
    "bos_token": "bos",
    "eos_token": "eos",
    "unk_token": "unknown",
    "pad_token": "padding",
    "sep_token": "seperator",  # as the format spells it
    "cls_token": "cls",
    "mask_token": "mask",
}
"""Tokens that a template may name, and how the metadata call their ids."""

_NAMES = ("general.name", "general.basename", "general.finetune")


def find_templates(metadata: Metadata, name: str) -> TemplateSource:
    """Find the chat templates of the model ``name``: the default, and named ones.

    Raises:
        ModelError: if a value is of another type.
    """
    keys = [key for key in metadata.values if key.startswith(f"{_KEY}.")]
    texts = {key.removeprefix(f"{_KEY}."): metadata.text(key) for key in keys}
    texts |= {DEFAULT: metadata.text(_KEY)} if metadata.text(_KEY) else {}
    where = _KEY if DEFAULT in texts or not texts else f"{_KEY}.*"
    pieces = metadata.array("tokenizer.ggml.tokens", str)
    ids = {
        token: metadata.values.get(f"tokenizer.ggml.{k}_token_id") for token, k in _TOKENS.items()
    }
    tokens = {
        token: pieces[i] for token, i in ids.items() if isinstance(i, int) and 0 <= i < len(pieces)
    }
    names = (name, *map(metadata.text, _NAMES))
    return TemplateSource(texts, where if texts else "", tokens, names)
