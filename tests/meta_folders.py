"""Folders in the layouts of Meta's Llama 3 and of Mistral, with tokenizers of ranks."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from llama_chat.model.config import LlamaConfig
from llama_chat.tokenizers.bpe import byte_alphabet, byte_level_bytes
from tests.model_files import MERGES, META, edit_json, write_meta

RANKED = [
    *(bytes([byte]) for byte in byte_alphabet().values()),
    *(byte_level_bytes(merge.replace(" ", "")) for merge in MERGES),
    *(b"  ", b"\n\n", b"unreachable"),
]
"""Tokens by their ranks; no merges lead to the last one."""

N_RANKED = len(RANKED) + 256
LLAMA_3 = replace(META, vocab_size=N_RANKED, rope_theta=500_000.0, context_length=8192)

MISTRAL = replace(
    META, head_dim=16, hidden_dim=96, vocab_size=len(RANKED) + 20, context_length=32_768
)

TEKKEN_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def ranks(tokens: Sequence[bytes] = RANKED) -> bytes:
    """Make the file of tokens and their ranks."""
    lines = (base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))
    return b"".join(lines)


def write_llama_3(
    folder: Path, config: LlamaConfig = LLAMA_3, *, n_shards: int = 1, **params: object
) -> dict[str, torch.Tensor]:
    """Write a random model as Meta does since Llama 3: shards have whole rows of the embedding."""
    weights = write_meta(folder, config, n_shards=n_shards)
    parts = weights["tok_embeddings.weight"].chunk(n_shards, 0)
    for number, part in enumerate(parts):
        file = folder / f"consolidated.{number:02}.pth"
        shard = torch.load(file, weights_only=True)
        torch.save(shard | {"tok_embeddings.weight": part.detach().clone()}, file)
    edit_json(folder / "params.json", rope_theta=config.rope_theta, **params)
    (folder / "tokenizer.model").write_bytes(ranks())
    return weights


def write_mistral(
    folder: Path, config: LlamaConfig = MISTRAL, params: Mapping[str, object] | None = None
) -> Path:
    """Write a random model as Mistral does, with ``tekken.json`` and other values of ``params``."""
    weights = write_meta(folder, config)
    for name in ("consolidated.00.pth", "tokenizer.model"):
        (folder / name).unlink()
    found = {name: weight.detach().clone() for name, weight in weights.items()}
    safetensors.torch.save_file(found, folder / "consolidated.safetensors")
    values = {
        "dim": config.dim,
        "n_layers": config.n_layers,
        "head_dim": config.head_dim,
        "hidden_dim": config.hidden_dim,
        "n_heads": config.n_heads,
        "n_kv_heads": config.n_kv_heads,
        "norm_eps": config.norm_eps,
        "vocab_size": config.vocab_size,
        "rope_theta": config.rope_theta,
    }
    (folder / "params.json").write_text(json.dumps(values))
    edit_json(folder / "params.json", **(params or {}))
    (folder / "tekken.json").write_text(json.dumps(tekken()))
    return folder


def tekken(**changes: object) -> dict[str, Any]:
    """Make the content of a ``tekken.json``, which has more tokens than the model."""
    vocab = [
        {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
        for rank, token in enumerate([*RANKED, b"surplus"])
    ]
    config = {
        "pattern": TEKKEN_PATTERN,
        "num_vocab_tokens": len(vocab),
        "default_vocab_size": len(RANKED) + 20,
        "default_num_special_tokens": 20,
        "version": "v3",
    }
    return {"config": config, "vocab": vocab, **changes}
