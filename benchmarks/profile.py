"""Measure the time of one decoded token, operation by operation.

    python -m benchmarks.profile [--model NAME] [--context 512] [--new 32] [--threads 2]

The first table is measured while the model decodes: its parts, sampling, and the overhead of
Python. The second multiplies by each kind of matrix alone, layer after layer so that none is in a
cache of the processor, with the bytes read and the resulting bandwidth.
"""

import argparse
import statistics
import time
from collections.abc import Sequence

import torch

from llama_chat.generation.breakdown import seconds_of_a_token
from llama_chat.generation.measuring import read_bandwidth
from llama_chat.generation.sampling import Sampler
from llama_chat.kernels import native
from llama_chat.library import find_model
from llama_chat.loading.plan import load
from llama_chat.model.transformer import Transformer
from llama_chat.quantization.linear import Embedding, Linear
from llama_chat.settings.sampling import Sampling


def matrices(model: Transformer) -> dict[str, Sequence[Linear | Embedding]]:
    """Collect the matrices of all layers by kind."""
    blocks = model.blocks
    attention = [block.attention for block in blocks]
    feed_forward = [block.feed_forward for block in blocks]
    return {
        "wq": [part.wq for part in attention],
        "wk": [part.wk for part in attention],
        "wv": [part.wv for part in attention],
        "wo": [part.wo for part in attention],
        "w1": [part.w1 for part in feed_forward],
        "w3": [part.w3 for part in feed_forward],
        "w2": [part.w2 for part in feed_forward],
        "output": [model.tok_embeddings if model.config.tie_embeddings else model.output],
    }


@torch.inference_mode()
def seconds_of(kind: Sequence[Linear | Embedding], n_columns: int, dtype: torch.dtype) -> float:
    """Time one row times every matrix of a kind, in seconds: the median of nine runs."""
    x = torch.randn(1, n_columns).to(dtype)
    times = []
    for _ in range(10):
        began = time.perf_counter()
        for matrix in kind:
            matrix.project(x)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="")
    parser.add_argument("--context", type=int, default=512, help="tokens of context")
    parser.add_argument("--new", type=int, default=32, help="tokens to decode")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    llama = load(find_model(options.model), threads=options.threads)
    engine, model = llama.engine(), llama.model
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (options.context,), generator=generator).tolist()
    engine.prefill(ids)
    token = seconds_of_a_token(engine, Sampler(Sampling(temperature=0)), options.new)
    whole, bandwidth = sum(token.values()), read_bandwidth()
    print(
        f"{llama.name}, {native.level_name()}, {options.threads} threads,"
        f" after {options.context} tokens"
    )
    print(f"read bandwidth {bandwidth / 1e9:.1f} GB/s\n")
    print(f"one token      {1000 * whole:8.3f} ms")
    for name, seconds in token.items():
        print(f"  {name:<12} {1000 * seconds:8.3f} ms  {seconds / whole:6.1%}")
    widths = model.config.tensor_shapes()
    print("\nmatrix             ms       MB     GB/s")
    for name, kind in matrices(model).items():
        weight = next((key for key in widths if f".{name}." in f".{key}"), "tok_embeddings.weight")
        seconds = seconds_of(kind, widths[weight][1], model.dtype)
        n_bytes = sum(matrix.n_bytes for matrix in kind)
        print(
            f"{name:<10} {1000 * seconds:10.3f} {n_bytes / 1e6:8.1f} {n_bytes / seconds / 1e9:8.1f}"
        )


if __name__ == "__main__":
    main()
