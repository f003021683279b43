"""Writer of model folders in the layout of the Hugging Face Hub."""

import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from llama_chat.checkpoints.base import Checkpoint, label
from llama_chat.checkpoints.float_types import FLOATS
from llama_chat.checkpoints.huggingface import PARTS, TOP
from llama_chat.checkpoints.huggingface_generation import FILE
from llama_chat.conversion import weights
from llama_chat.conversion.generation import end_ids, generation_config, one_or_list
from llama_chat.conversion.tokenizer_files import write_tokenizer
from llama_chat.conversion.vocabulary import undivided
from llama_chat.errors import ModelError
from llama_chat.kernels import mapped_files
from llama_chat.model.config import LlamaConfig
from llama_chat.model.rope import (
    DynamicScaling,
    FrequencyDivisors,
    LinearScaling,
    Llama3Scaling,
    RopeScaling,
    rotary_frequencies,
)
from llama_chat.tokenizers.vocabulary import Vocabulary

_PARTS = {ours: theirs for theirs, ours in PARTS.items()}
_TOP = {ours: theirs for theirs, ours in TOP.items()}

_LLAMA_3 = (1.0, 4.0, 8192)
"""``low_freq_factor``, ``high_freq_factor`` and ``original_context`` of every Llama 3 release."""


class HuggingFaceFolder:
    """A Hugging Face folder, planned before it is written."""

    def __init__(
        self, checkpoint: Checkpoint, vocabulary: Vocabulary, kind: str, shard_bytes: int
    ) -> None:
        """Plan a folder with weights of the type ``kind``.

        Raises:
            ModelError: if ``config.json`` cannot express the rotary scaling.
        """
        self._checkpoint, self._vocabulary, self._kind = checkpoint, vocabulary, kind
        shapes = checkpoint.config.tensor_shapes()
        self.sizes = {name: weights.n_bytes(shape, kind) for name, shape in shapes.items()}
        """Bytes of each weight."""
        self.warnings = undivided(vocabulary)
        self._shards = _split(self.sizes, shard_bytes)
        known = vocabulary.limited(checkpoint.config.vocab_size)
        self._config = _config(checkpoint, known, kind)
        self._generation = generation_config(checkpoint, known)

    def write(self, path: Path, report: Callable[[int, int], None]) -> None:
        """Write the folder, one weight at a time.

        Args:
            path: the new folder.
            report: called with the bytes written and their total.

        Raises:
            OSError: if it cannot be written.
            UsageError: if the type cannot represent the values of a weight.
        """
        path.mkdir()
        _write_json(path / "config.json", self._config)
        _write_json(path / FILE, self._generation)
        write_tokenizer(path, self._checkpoint, self._vocabulary)
        total, done = sum(self.sizes.values()), 0

        def written(n_bytes: int) -> None:
            nonlocal done
            done += n_bytes
            report(done, total)

        places: dict[str, str] = {}
        for number, names in enumerate(self._shards, 1):
            file_name = "model.safetensors"
            if len(self._shards) > 1:
                file_name = f"model-{number:05}-of-{len(self._shards):05}.safetensors"
            places |= {_name(name): file_name for name in names}
            with (path / file_name).open("xb") as file:
                self._write_shard(file, names, written)
        if len(self._shards) > 1:
            index = {"metadata": {"total_size": total}, "weight_map": places}
            _write_json(path / "model.safetensors.index.json", index)

    def _write_shard(
        self, file: BinaryIO, names: list[str], written: Callable[[int], None]
    ) -> None:
        """Write a safetensors file: the length of the header, the header, and the weights.

        The safetensors library would need all weights of a file in memory at once. Format:
        https://github.com/huggingface/safetensors#format.
        """
        shapes = self._checkpoint.config.tensor_shapes()
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name in names:
            end = offset + self.sizes[name]
            header[_name(name)] = {
                "dtype": self._kind,
                "shape": shapes[name],
                "data_offsets": [offset, end],
            }
            offset = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        file.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            file.write(weights.as_bytes(self._read(name)).data)
            mapped_files.check()
            self._checkpoint.forget(name)
            written(self.sizes[name])

    def _read(self, name: str) -> Tensor:
        """Read a weight in Hugging Face's order, where rotary pairs are half a head apart."""
        weight = weights.read_float(self._checkpoint, name, self._kind)
        config = self._checkpoint.config
        heads = {"wq": config.n_heads, "wk": config.n_kv_heads}.get(name.split(".")[-2])
        if heads is None:
            return weight
        pairs = weight.view(heads, -1, 2, config.dim)  # (n_heads, head_dim / 2, 2, dim)
        return pairs.transpose(1, 2).reshape(weight.shape)


def _split(sizes: dict[str, int], shard_bytes: int) -> list[list[str]]:
    """Split weight names into shards of at most ``shard_bytes``, or of one larger weight."""
    shards: list[list[str]] = [[]]
    bytes_left = shard_bytes
    for name, size in sizes.items():
        if size > bytes_left and shards[-1]:
            shards.append([])
            bytes_left = shard_bytes
        shards[-1].append(name)
        bytes_left -= size
    return shards


def _name(name: str) -> str:
    """Return Hugging Face's name of the weight that Meta calls ``name``."""
    if name in _TOP:
        return _TOP[name]
    _, layer, part = name.removesuffix(".weight").split(".", 2)
    return f"model.layers.{layer}.{_PARTS[part]}.weight"


def _config(checkpoint: Checkpoint, vocabulary: Vocabulary, kind: str) -> dict[str, Any]:
    """Return ``config.json`` with the keys of both transformers 4 and 5."""
    config = checkpoint.config
    rope = _rope(checkpoint)
    scaling = config.rope_scaling
    context = config.context_length
    if isinstance(scaling, DynamicScaling):
        context = scaling.original_context
    values: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": config.dim,
        "intermediate_size": config.hidden_dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": context,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": config.tie_embeddings,
        "rope_theta": config.rope_theta,
        "rope_scaling": None if scaling is None else rope,
        "rope_parameters": {**rope, "rope_theta": config.rope_theta},
        "bos_token_id": vocabulary.bos_id,
        "eos_token_id": one_or_list(end_ids(checkpoint, vocabulary)),
        "dtype": FLOATS[kind],
        "torch_dtype": FLOATS[kind],
    }
    return values


def _rope(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the rotary scaling for ``config.json``; ``type`` is an older name of ``rope_type``."""
    scaling = checkpoint.config.rope_scaling
    if isinstance(scaling, FrequencyDivisors):
        scaling = _llama3_scaling(checkpoint, scaling)
    match scaling:
        case LinearScaling(factor):
            return {"rope_type": "linear", "type": "linear", "factor": factor}
        case DynamicScaling(factor):
            return {"rope_type": "dynamic", "type": "dynamic", "factor": factor}
        case Llama3Scaling(factor, low, high, original):
            return {
                "rope_type": "llama3",
                "type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": original,
            }
    return {"rope_type": "default"}


def _llama3_scaling(checkpoint: Checkpoint, scaling: FrequencyDivisors) -> RopeScaling:
    """Return the scaling of Llama 3 that gives the divisors of ``scaling``.

    Raises:
        ModelError: if there is none.
    """
    config = checkpoint.config
    found = Llama3Scaling(max(scaling.divisors), *_LLAMA_3)
    if not _same_frequencies(config, found, scaling):
        raise ModelError(
            label(checkpoint.path),
            "config.json cannot express its rotary scaling",
            "convert to GGUF",
        )
    return found


def _same_frequencies(config: LlamaConfig, one: RopeScaling, other: RopeScaling) -> bool:
    """True if two scalings give the same frequencies, up to rounding."""
    plain = rotary_frequencies(config.head_dim, config.rope_theta)
    a, b = (
        scaling.apply(plain, config.rope_theta, config.context_length).tolist()
        for scaling in (one, other)
    )
    return all(math.isclose(x, y, rel_tol=1e-4) for x, y in zip(a, b, strict=True))


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
