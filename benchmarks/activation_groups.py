"""Measure what rounding activations to 8 bits costs, by the number of columns that share a scale.

    python -m benchmarks.activation_groups [--model NAME] [--positions 2048] [--threads 2]

The inputs of all matrices of the layers are rounded, and everything else is computed in float32, on
weights unpacked to float32. The distance from the result without rounding is measured as in
``benchmarks.quality``.
"""

import argparse
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain

import torch
from torch import Tensor, nn

from benchmarks.quality import EXACT, FIGURES, TEXT, WINDOW, Text, compare_logits, encode
from llama_chat import load
from llama_chat.generation.backend import TorchBackend, prompt_chunks
from llama_chat.quantization.linear import Linear

GROUPS = (16, 32, 64, 128, 256)


def rounded(x: Tensor, group: int) -> Tensor:
    """Round ``(…, n_columns)`` to 8 bits, with a scale for ``group`` columns, or what is left."""
    return torch.cat([_rounded_together(part) for part in torch.split(x, group, -1)], -1)


def _rounded_together(x: Tensor) -> Tensor:
    scale = (x.abs().amax(-1, keepdim=True) / 127).clamp_min(torch.finfo(x.dtype).tiny)
    return (x / scale).round() * scale


@contextmanager
def rounding(layers: Iterable[nn.Module], group: int) -> Iterator[None]:
    """Round the inputs of all matrices of ``layers`` within the block."""

    def act(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (rounded(inputs[0], group), *inputs[1:])

    with ExitStack() as stack:
        for module in chain.from_iterable(layer.modules() for layer in layers):
            if isinstance(module, Linear):
                stack.callback(module.register_forward_pre_hook(act).remove)
        yield


@torch.inference_mode()
def logits(backend: TorchBackend, text: Text) -> Tensor:
    """Read the text in chunks, and return the logits ``(n_positions, vocab_size)``."""
    found = []
    for ids in text.windows:
        cache = backend.new_cache()
        found += [backend.forward(chunk, cache, all_logits=True) for chunk in prompt_chunks(ids)]
    return torch.cat(found)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="smollm2-135m", help="a path or a name")
    parser.add_argument("--positions", type=int, default=WINDOW)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    llama = load(options.model, context=WINDOW, threads=options.threads, **EXACT)
    text = encode(TEXT.read_text(), llama.tokenizer, llama.context, options.positions)
    backend = TorchBackend(llama.backend.model)
    exact = logits(backend, text)
    print(f"columns   {FIGURES}")
    for group in GROUPS:
        with rounding(backend.model.blocks, group):
            other = logits(backend, text)
        distance = compare_logits(exact, other, text).distance("rounded", "in chunks")
        print(f"{group:7}   {distance}", flush=True)


if __name__ == "__main__":
    main()
