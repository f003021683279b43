"""Models of the llama family in the layout of the Hugging Face Hub."""

import re
from pathlib import Path

import torch
from torch import Tensor

from llama_chat.checkpoints.base import Checkpoint, check_tensors, label, llama_weights
from llama_chat.checkpoints.huggingface_config import model_config, read_config
from llama_chat.checkpoints.huggingface_generation import find_defaults
from llama_chat.checkpoints.huggingface_template import find_templates
from llama_chat.checkpoints.huggingface_tokenizer import read_tokenizer_config, read_vocabulary
from llama_chat.checkpoints.small_files import JsonObject
from llama_chat.checkpoints.weight_files import describe, part_of, release_pages
from llama_chat.checkpoints.weight_folder import open_weights
from llama_chat.library.layouts import HUGGING_FACE_WEIGHTS
from llama_chat.parallel.slices import Slice
from llama_chat.tokenizers.vocabulary import Vocabulary

_COMPUTED = re.compile(r"rotary_emb\.inv_freq$")
"""Tensors to ignore: they are computed here, in float32."""

PARTS = {
    "input_layernorm": "attention_norm",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
}
"""Names of the weights of a layer on the Hub, with those of Meta."""

TOP = {
    "model.embed_tokens.weight": "tok_embeddings.weight",
    "model.norm.weight": "norm.weight",
    "lm_head.weight": "output.weight",
}
"""Names of all other weights."""


class HuggingFaceCheckpoint(Checkpoint):
    """Folder with ``config.json`` and weights in safetensors or torch files."""

    format = "Hugging Face"

    def __init__(self, path: Path, config: JsonObject, weights: dict[str, Tensor]) -> None:
        """Use ``open`` instead."""
        self.path = path
        self.name = _model_name(path)
        self._weights = llama_weights(label(path), weights, _meta_name, lambda weight: weight)
        if config.flag("tie_word_embeddings"):
            _drop_tied_output(self._weights)
        self.tensors = {name: describe(weight) for name, weight in self._weights.items()}
        shapes = {name: info.shape for name, info in self.tensors.items()}
        self.config, warning = model_config(config, shapes)
        check_tensors(label(path), self.config, shapes)
        names = (self.name, config.text("_name_or_path") or "")
        self.templates = find_templates(path, read_tokenizer_config(path), names)
        self.generation = find_defaults(path, config, self.config.vocab_size)
        found = (warning and f"{label(path)}: {warning}", self.generation.warning)
        self.warnings = tuple(filter(None, found))

    @classmethod
    def open(cls, path: Path) -> "HuggingFaceCheckpoint":
        """Open the folder ``path``, mapping its weights without reading them.

        Raises:
            ModelError: if a file is missing or damaged, or the model is not supported.
        """
        config = read_config(path)
        return cls(path, config, open_weights(path, HUGGING_FACE_WEIGHTS, _COMPUTED))

    def read_vocabulary(self) -> Vocabulary:
        """See the base class."""
        return read_vocabulary(self.path)

    def read(self, name: str, dtype: torch.dtype, part: Slice | None = None) -> Tensor:
        """See the base class."""
        weight = part_of(self._weights[name], part)
        if name.endswith(("wq.weight", "wk.weight")):
            return _interleave(weight, self.config.head_dim, dtype)
        return weight.to(dtype)

    def stored(self, name: str) -> tuple[Tensor, ...]:
        """See the base class."""
        return (self._weights[name],)

    def forget(self, name: str) -> None:
        """See the base class."""
        release_pages(self._weights[name])


open_checkpoint = HuggingFaceCheckpoint.open


def _model_name(path: Path) -> str:
    """Return the name of the folder, or ``NAME`` of ``models--OWNER--NAME`` in the Hub's cache."""
    folder = path.absolute()
    if folder.parent.name == "snapshots" and folder.parents[1].name.startswith("models--"):
        return folder.parents[1].name.rpartition("--")[2]
    return path.resolve().name


def _meta_name(name: str) -> str | None:
    """Translate the name of a tensor to Meta's; None if no Llama model has it."""
    if name in TOP:
        return TOP[name]
    found = re.fullmatch(r"model\.layers\.(0|[1-9]\d{0,5})\.([\w.]+)\.weight", name)
    if found is None or found[2] not in PARTS:
        return None
    return f"layers.{found[1]}.{PARTS[found[2]]}.weight"


def _drop_tied_output(weights: dict[str, Tensor]) -> None:
    """Drop the output matrix if it shares the memory of the embedding, as in torch files."""
    output, embedding = weights.get("output.weight"), weights.get("tok_embeddings.weight")
    if output is not None and embedding is not None and output.is_set_to(embedding):
        del weights["output.weight"]


def _interleave(weight: Tensor, head_dim: int, dtype: torch.dtype) -> Tensor:
    """Reorder the rows of a Q or K projection from halves to neighbours, as in ``apply_rotary``.

    Hugging Face rotates row ``i`` of a head with row ``i + head_dim / 2``: rows 0 1 2 3 of a head
    of 4 become 0 2 1 3.

    Args:
        weight: ``(n_heads * head_dim, dim)``, with ``n_kv_heads`` for K; or some of its heads.
        head_dim: rows of a head.
        dtype: type of the result, which has the shape of ``weight``.
    """
    halves = weight.view(-1, 2, head_dim // 2, weight.shape[1])  # (n_heads, 2, head_dim / 2, dim)
    pairs = halves.transpose(1, 2)  # (n_heads, head_dim / 2, 2, dim)
    return torch.empty(pairs.shape, dtype=dtype).copy_(pairs).view(weight.shape)
