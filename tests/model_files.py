"""Small random models, written to disk in each format at test time."""

import io
import json
import math
import struct
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import pytest
import sentencepiece
import torch

from llama_chat.errors import ModelError
from llama_chat.library.starter import CHAT_TEMPLATE
from llama_chat.loading.formats import load_tokenizer, make_tokenizer, open_checkpoint
from llama_chat.model.config import LlamaConfig
from llama_chat.tokenizers.base import Tokenizer
from llama_chat.tokenizers.bpe import PRE_TOKENIZERS, byte_alphabet
from llama_chat.tokenizers.sentencepiece import read_model
from llama_chat.tokenizers.vocabulary import MergeModel, TokenType, Vocabulary
from tests.models import random_model, to_hugging_face

CONTROL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["t h", "th e", "Ġ the", "i n", "a n", "Ġ a", "e r", "o n", "h i"]
CHATML = CHAT_TEMPLATE

_ALPHABET = {byte: character for character, byte in byte_alphabet().items()}
TOKENS = [
    *CONTROL_TOKENS,
    *(_ALPHABET[byte] for byte in range(256)),
    *(merge.replace(" ", "") for merge in MERGES),
]

SMALL = LlamaConfig(
    dim=64,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=16,
    hidden_dim=96,
    vocab_size=len(TOKENS),
    context_length=512,
)


def byte_vocabulary(
    tokens: Sequence[str] = TOKENS,
    merges: Sequence[str] = MERGES,
    *,
    n_control: int = len(CONTROL_TOKENS),
    pre_tokenizer: str = "gpt2",
    **facts: Any,
) -> Vocabulary:
    """A byte-level vocabulary of a few merges, that of chatml by default."""
    rule = PRE_TOKENIZERS[pre_tokenizer]
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    types = [TokenType.CONTROL] * n_control + [TokenType.NORMAL] * (len(tokens) - n_control)
    options = {"ignore_merges": rule.whole_words}
    return Vocabulary(
        what="tokenizer",
        pieces=list(tokens),
        types=types,
        model=MergeModel(pairs, rule.component(), options=options),
        **facts,
    )


def byte_tokenizer() -> Tokenizer:
    """A byte-level tokenizer of a few merges, with the control tokens of chatml."""
    return make_tokenizer(byte_vocabulary(eos_id=0))


def piece_tokenizer(model: bytes) -> Tokenizer:
    """The tokenizer of a SentencePiece model."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.model"
        path.write_bytes(model)
        return make_tokenizer(read_model(path))


_GGUF_NAMES = {
    "tok_embeddings": "token_embd",
    "norm": "output_norm",
    "attention.wq": "attn_q",
    "attention.wk": "attn_k",
    "attention.wv": "attn_v",
    "attention.wo": "attn_output",
    "attention_norm": "attn_norm",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w2": "ffn_down",
    "feed_forward.w3": "ffn_up",
}


def gguf_name(name: str) -> str:
    """Return GGUF's name of the weight that Meta calls ``name``."""
    stem = name.removesuffix(".weight")
    if stem.startswith("layers."):
        _, layer, part = stem.split(".", 2)
        return f"blk.{layer}.{_GGUF_NAMES.get(part, part)}.weight"
    return f"{_GGUF_NAMES.get(stem, stem)}.weight"


def write_gguf(
    path: Path,
    config: LlamaConfig = SMALL,
    *,
    quantization: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    seed: int = 0,
    metadata: Mapping[str, object] | None = None,
    more_tensors: Mapping[str, np.ndarray] | None = None,
    tensors_a_file: int = 0,
) -> dict[str, np.ndarray]:
    """Write a random model, and return its weights by Meta's names as they were stored.

    Norms stay in float32. ``metadata`` replaces single values, dots written as two underscores;
    None leaves one out. ``more_tensors`` are stored beside the weights. With ``tensors_a_file`` the
    model is cut into parts of that many tensors, whose names are made from that of ``path``.
    """
    writer = _gguf_writer(path, config, metadata or {}, tensors_a_file)
    stored = {}
    for name, weight in random_model(config, seed).named_parameters():
        data = weight.numpy()
        if data.ndim == 2:
            packed = gguf.quants.quantize(data, quantization)
            writer.add_tensor(gguf_name(name), packed, raw_dtype=quantization)
            data = gguf.quants.dequantize(packed, quantization).astype(np.float32)
        else:
            writer.add_tensor(gguf_name(name), data)
        stored[name] = data
    for name, data in (more_tensors or {}).items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stored


def write_hollow_gguf(path: Path, config: LlamaConfig) -> None:
    """Write a model of F32 zeros as a sparse file, which takes no disk space."""
    writer = _gguf_writer(path, config, {})
    for name, shape in config.tensor_shapes().items():
        writer.add_tensor_info(gguf_name(name), shape, np.dtype(np.float32), 4 * math.prod(shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        alignment = gguf.GGUF_DEFAULT_ALIGNMENT
        sizes = [4 * math.prod(shape) for shape in config.tensor_shapes().values()]
        start = -(-path.stat().st_size // alignment) * alignment
        file.truncate(start + sum(-(-size // alignment) * alignment for size in sizes))


def _gguf_writer(
    path: Path, config: LlamaConfig, metadata: Mapping[str, object], tensors_a_file: int = 0
) -> gguf.GGUFWriter:
    """Make a writer that has the metadata of a model, and no tensors yet."""
    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=tensors_a_file)
    values: dict[str, object] = {
        "llama.block_count": config.n_layers,
        "llama.context_length": config.context_length,
        "llama.embedding_length": config.dim,
        "llama.feed_forward_length": config.hidden_dim,
        "llama.attention.head_count": config.n_heads,
        "llama.attention.head_count_kv": config.n_kv_heads,
        "llama.attention.key_length": config.head_dim,
        "llama.rope.freq_base": float(config.rope_theta),
        "llama.attention.layer_norm_rms_epsilon": float(config.norm_eps),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": [3] * len(CONTROL_TOKENS)
        + [1] * (len(TOKENS) - len(CONTROL_TOKENS)),
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.chat_template": CHATML,
    }
    values |= {key.replace("__", "."): value for key, value in metadata.items()}
    for key, value in values.items():
        if key == "general.architecture":
            writer.kv_data[0].pop(key)
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
    return writer


META = LlamaConfig(
    dim=64,
    n_layers=2,
    n_heads=8,
    n_kv_heads=4,
    head_dim=8,
    hidden_dim=192,
    vocab_size=400,
)

_SPLIT_DIM = {
    **dict.fromkeys(("wq", "wk", "wv", "w1", "w3", "output"), 0),
    **dict.fromkeys(("wo", "w2", "tok_embeddings"), 1),
}


def write_meta(
    folder: Path,
    config: LlamaConfig = META,
    *,
    n_shards: int = 1,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> dict[str, torch.Tensor]:
    """Write a random model in Meta's layout with a tokenizer, and return its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: w.to(dtype) for name, w in random_model(config, seed).named_parameters()}
    for number in range(n_shards):
        shard = {"rope.freqs": torch.zeros(config.head_dim // 2)}
        for name, weight in weights.items():
            dim = _SPLIT_DIM.get(name.split(".")[-2])
            part = weight if dim is None else weight.chunk(n_shards, dim)[number]
            shard[name] = part.detach().clone().contiguous()
        torch.save(shard, folder / f"consolidated.{number:02}.pth")
    params = {
        "dim": config.dim,
        "n_layers": config.n_layers,
        "n_heads": config.n_heads,
        "n_kv_heads": config.n_kv_heads,
        "multiple_of": 64,
        "norm_eps": config.norm_eps,
        "vocab_size": -1,
    }
    (folder / "params.json").write_text(json.dumps(params))
    (folder / "tokenizer.model").write_bytes(sentencepiece_model())
    return weights


def write_huggingface(
    folder: Path,
    config: LlamaConfig = META,
    *,
    weights: Literal["safetensors", "shards", "bin", "bins"] = "safetensors",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a random model as transformers does, with a SentencePiece tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    model = to_hugging_face(random_model(config, seed)).to(dtype)
    state = model.state_dict()
    if weights in ("safetensors", "shards"):
        model.save_pretrained(folder, max_shard_size="100KB" if weights == "shards" else "1GB")
    elif weights == "bin":
        torch.save(state, folder / "pytorch_model.bin")
    else:
        files = {
            name: f"pytorch_model-0000{i % 2 + 1}-of-00002.bin" for i, name in enumerate(state)
        }
        for file in set(files.values()):
            torch.save({n: state[n].clone() for n in state if files[n] == file}, folder / file)
        index = folder / "pytorch_model.bin.index.json"
        index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    model.config.save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(sentencepiece_model())


def edit_json(path: Path, **changes: object) -> None:
    """Change values of a JSON file; None removes one."""
    values = (json.loads(path.read_text()) if path.exists() else {}) | changes
    path.write_text(json.dumps({name: v for name, v in values.items() if v is not None}))


def write_llama2c(path: Path, config: LlamaConfig = META, seed: int = 0) -> None:
    """Write a random model as llama2.c does, with a SentencePiece tokenizer beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = dict(random_model(config, seed).named_parameters())
    parts = ["attention_norm", *(f"attention.w{x}" for x in "qkvo")]
    parts += ["ffn_norm", *(f"feed_forward.w{x}" for x in "123")]
    data: list[torch.Tensor] = [weights["tok_embeddings.weight"]]
    for part in parts:
        data += [weights[f"layers.{i}.{part}.weight"] for i in range(config.n_layers)]
    data += [weights["norm.weight"], torch.zeros(config.context_length, config.head_dim)]
    if not config.tie_embeddings:
        data.append(weights["output.weight"])
    header = struct.pack(
        "<7i",
        config.dim,
        config.hidden_dim,
        config.n_layers,
        config.n_heads,
        config.n_kv_heads,
        config.vocab_size if config.tie_embeddings else -config.vocab_size,
        config.context_length,
    )
    path.write_bytes(header + b"".join(tensor.numpy().tobytes() for tensor in data))
    path.with_name("tokenizer.model").write_bytes(sentencepiece_model())


_TEXT = """Once upon a time there was a little girl named Lily who loved to play in the park.
The quick brown fox jumps over the lazy dog; 1234567890 times, it's said.
Translate English to French: cheese => fromage. What is the capital of France?
You are helpful. Always answer with Haiku. I am going to Paris, what should I see?
"""


@cache
def sentencepiece_model(
    control_symbols: tuple[str, ...] = (), user_defined_symbols: tuple[str, ...] = ()
) -> bytes:
    """Make a tiny vocabulary like Llama 2's: BPE with byte fallback and a dummy prefix."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_TEXT.splitlines() * 3),
        model_writer=model,
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        control_symbols=list(control_symbols),
        user_defined_symbols=list(user_defined_symbols),
        minloglevel=2,
    )
    return model.getvalue()


def assert_refused(path: Path, *parts: str) -> None:
    """Check that opening ``path`` is refused in one line that has ``parts``."""
    with pytest.raises(ModelError) as caught:
        load_tokenizer(open_checkpoint(path))
    line = str(caught.value)
    assert "\n" not in line
    assert line.isprintable()
    assert caught.value.status == 3
    for part in parts:
        assert part in line, line
