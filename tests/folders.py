"""Folders of the Hugging Face Hub with tokenizer files of every kind, and models that say a chain.

A chain is a fixed reply: after any prompt the model says its tokens one after the other.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch

from tests.vocabularies import added

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_DIM = 16


def write_tokenizer_files(
    folder: Path,
    *,
    model: bytes | None = None,
    document: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    added_tokens: Mapping[str, int] | None = None,
    special_tokens_map: Mapping[str, Any] | None = None,
) -> Path:
    """Write the files that are given, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if model is not None:
        (folder / "tokenizer.model").write_bytes(model)
    files = {
        "tokenizer.json": document,
        "tokenizer_config.json": config,
        "added_tokens.json": added_tokens,
        "special_tokens_map.json": special_tokens_map,
    }
    for name, content in files.items():
        if content is not None:
            (folder / name).write_text(json.dumps(content))
    return folder


def decoder_of(tokens: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the ``added_tokens_decoder`` of entries of ``added_tokens``."""
    return {
        str(token["id"]): {key: value for key, value in token.items() if key != "id"}
        for token in tokens
    }


def with_added(document: Mapping[str, Any], *tokens: Mapping[str, Any]) -> dict[str, Any]:
    """Return a ``tokenizer.json`` with more added tokens."""
    return {**document, "added_tokens": [*document["added_tokens"], *tokens]}


def chatml_tokens(first: int) -> list[dict[str, Any]]:
    """Return the tokens of chatml, in the order in which they are usually added."""
    return [added(first, "<|im_end|>"), added(first + 1, "<|im_start|>")]


def by_transformers(folder: Path) -> "PreTrainedTokenizerFast":
    """Open a folder with transformers, as a Llama model."""
    from transformers import AutoTokenizer

    (folder / "config.json").write_text('{"model_type": "llama"}')
    tokenizer = AutoTokenizer.from_pretrained(folder)
    (folder / "config.json").unlink()
    return tokenizer


def write_chain(folder: Path, n_rows: int, chain: Sequence[int], **config: object) -> Path:
    """Write a model with ``n_rows`` embeddings that says ``chain``, at most 15 different tokens."""
    state = torch.eye(_DIM)
    embedding = state[0].repeat(n_rows, 1)
    output = torch.zeros(n_rows, _DIM)
    for at, token_id in enumerate(chain):
        output[token_id] = 10 * state[at]
        embedding[token_id] = state[at + 1]
    layer = "model.layers.0."
    square = [*(f"self_attn.{part}_proj" for part in "qkvo")]
    square += [*(f"mlp.{part}_proj" for part in ("gate", "up", "down"))]
    norms = ("input_layernorm", "post_attention_layernorm")
    weights = {
        "model.embed_tokens.weight": embedding.contiguous(),
        "lm_head.weight": output,
        "model.norm.weight": torch.ones(_DIM),
        **{f"{layer}{name}.weight": torch.zeros(_DIM, _DIM) for name in square},
        **{f"{layer}{name}.weight": torch.ones(_DIM) for name in norms},
    }
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    values = {
        "model_type": "llama",
        "hidden_size": _DIM,
        "intermediate_size": _DIM,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "vocab_size": n_rows,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        **config,
    }
    (folder / "config.json").write_text(json.dumps(values))
    return folder
