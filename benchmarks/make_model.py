"""Write a GGUF model of a given shape with random weights, for measuring speed and memory.

    python -m benchmarks.make_model OUT.gguf [--shape 7b] [--type Q4_0] [--layers N]
                                    [--tokenizer tokenizer.model]

Its replies are nonsense, but take the time of a trained model's. ``Q4_K_M`` mixes Q4_K and Q6_K,
and ``Q5_K_M`` Q5_K and Q6_K, as the files of these names do. Without a vocabulary of 32,000 tokens,
such as Llama 2's, each byte of a text is a token.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from numpy.typing import NDArray

from llama_chat.conversion.gguf import add_vocabulary
from llama_chat.tokenizers.sentencepiece import read_model
from llama_chat.tokenizers.vocabulary import PieceModel, TokenType, Vocabulary


@dataclass(frozen=True, slots=True)
class Shape:
    """Dimensions that determine a model's size."""

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    hidden_dim: int


SHAPES = {
    "160m": Shape(768, 12, 12, 12, 3072),
    "1.1b": Shape(2048, 22, 32, 4, 5632),
    "7b": Shape(4096, 32, 32, 32, 11008),
    "13b": Shape(5120, 40, 40, 40, 13824),
}
VOCAB_SIZE = 32_000
CONTEXT = 4096
TYPES = (
    *("Q4_0", "Q4_1", "Q5_0", "Q8_0", "IQ4_NL", "IQ4_XS"),
    *("Q4_K_M", "Q5_K_M", "Q6_K", "F16", "BF16"),
)


def tensors(shape: Shape, type_name: str) -> Iterator[tuple[str, tuple[int, int], Kind]]:
    """Name, shape and type of every matrix."""
    dim, hidden = shape.dim, shape.hidden_dim
    kv_dim = dim // shape.n_heads * shape.n_kv_heads
    mixed = type_name.endswith("_M")
    usual = Kind[type_name.removesuffix("_M")]
    yield "token_embd", (VOCAB_SIZE, dim), usual
    for i in range(shape.n_layers):
        more = Kind.Q6_K if mixed and i % 2 else usual
        layer = f"blk.{i}"
        yield f"{layer}.attn_q", (dim, dim), usual
        yield f"{layer}.attn_k", (kv_dim, dim), usual
        yield f"{layer}.attn_v", (kv_dim, dim), more
        yield f"{layer}.attn_output", (dim, dim), usual
        yield f"{layer}.ffn_gate", (hidden, dim), usual
        yield f"{layer}.ffn_up", (hidden, dim), usual
        yield f"{layer}.ffn_down", (dim, hidden), more
    yield "output", (VOCAB_SIZE, dim), Kind.Q6_K if mixed else usual


SCALES_AT = {
    Kind.Q4_0: (0,),
    Kind.Q4_1: (0, 2),
    Kind.Q5_0: (0,),
    Kind.Q8_0: (0,),
    Kind.IQ4_NL: (0,),
    Kind.IQ4_XS: (0,),
    Kind.Q4_K: (0, 2),
    Kind.Q5_K: (0, 2),
    Kind.Q6_K: (208,),
}
"""Byte offsets of the float16 scales and minima in a block; all other bytes are random."""

STEPS = {
    Kind.Q4_0: 8,
    Kind.Q4_1: 16,
    Kind.Q5_0: 16,
    Kind.Q8_0: 128,
    Kind.IQ4_NL: 127,
    Kind.IQ4_XS: 127 * 32,
    Kind.Q4_K: 16 * 64,
    Kind.Q5_K: 32 * 64,
    Kind.Q6_K: 32 * 128,
}
"""Largest factor of a block's scale."""


def random_matrix(
    shape: tuple[int, int], kind: Kind, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Make the stored bytes of random weights, scaled so that activations do not vanish."""
    rows, columns = shape
    largest = 1.7 * columns**-0.5
    if kind in (Kind.F16, Kind.BF16):
        weights = rng.uniform(-largest, largest, shape)
        if kind == Kind.F16:
            return weights.astype(np.float16).view(np.uint8)
        upper = weights.astype(np.float32).view(np.uint32) >> 16
        return upper.astype(np.uint16).view(np.uint8)
    n_weights, n_bytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (rows, columns // n_weights, n_bytes), dtype=np.uint8)
    scale = np.array([largest / STEPS[kind]], np.float16).view(np.uint8)
    for at in SCALES_AT[kind]:
        blocks[:, :, at : at + 2] = scale
    return blocks.reshape(rows, -1)


def write(path: Path, shape: Shape, type_name: str, vocabulary: Vocabulary) -> None:
    """Write the model, one matrix at a time."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(path.stem)
    writer.add_block_count(shape.n_layers)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(shape.dim)
    writer.add_feed_forward_length(shape.hidden_dim)
    writer.add_head_count(shape.n_heads)
    writer.add_head_count_kv(shape.n_kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.dim // shape.n_heads)
    add_vocabulary(writer, vocabulary)
    writer.add_unk_token_id(0)
    norms = [
        "output_norm",
        *(f"blk.{i}.{n}_norm" for i in range(shape.n_layers) for n in ("attn", "ffn")),
    ]
    matrices = list(tensors(shape, type_name))
    for name in norms:
        writer.add_tensor_info(f"{name}.weight", (shape.dim,), np.dtype(np.float32), shape.dim * 4)
    for name, (rows, columns), kind in matrices:
        n_weights, n_bytes = gguf.GGML_QUANT_SIZES[kind]
        stored = (rows, columns // n_weights * n_bytes)
        writer.add_tensor_info(
            f"{name}.weight", stored, np.dtype(np.uint8), rows * stored[1], raw_dtype=kind
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _ in norms:
        writer.write_tensor_data(np.ones(shape.dim, np.float32))
    rng = np.random.default_rng(0)
    for _, matrix, kind in matrices:
        writer.write_tensor_data(random_matrix(matrix, kind, rng))
    writer.close()


def bytes_and_words() -> Vocabulary:
    """Make a vocabulary of Llama 2's control and byte tokens, and words without meaning."""
    control, letters = ["<unk>", "<s>", "</s>"], [f"<0x{byte:02X}>" for byte in range(256)]
    words = [f"\u2581w{i}" for i in range(VOCAB_SIZE - 259)]
    types = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL]
    types += [TokenType.BYTE] * 256 + [TokenType.NORMAL] * len(words)
    scores = [0.0] * 259 + [-float(i) for i in range(len(words))]
    return Vocabulary(
        what="tokenizer",
        pieces=[*control, *letters, *words],
        types=types,
        model=PieceModel(scores),
        bos_id=1,
        eos_id=2,
        add_bos=True,
        prefix="every",
    )


def main() -> None:
    """Write the model that the options describe."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--type", choices=TYPES, default="Q4_0")
    parser.add_argument("--layers", type=int, help="fewer layers than the shape has")
    parser.add_argument("--tokenizer", type=Path, help="a SentencePiece model of 32,000 tokens")
    arguments = parser.parse_args()
    shape = SHAPES[arguments.shape]
    if arguments.layers:
        shape = Shape(
            shape.dim, arguments.layers, shape.n_heads, shape.n_kv_heads, shape.hidden_dim
        )
    vocabulary = bytes_and_words()
    if arguments.tokenizer:
        vocabulary = read_model(arguments.tokenizer)
    if len(vocabulary.pieces) != VOCAB_SIZE:
        parser.error(f"{arguments.tokenizer} has {len(vocabulary.pieces)} tokens")
    write(arguments.out, shape, arguments.type, vocabulary)


if __name__ == "__main__":
    main()
