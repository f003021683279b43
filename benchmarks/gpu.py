"""Measure a model on a GPU: speeds as shares of what the GPU reaches, and greedy ids as on the CPU.

    python -m benchmarks.gpu MODEL [--device cuda] [--prompt 512] [--new 64] [--rounds 5]
                             [--json FILE]

The model is measured in bfloat16, and quantized to int8 and to int4 (weights only). Decode is given
as a share of the bandwidth of copies within the GPU's memory, prefill as a share of a product of
large matrices in bfloat16. The CPU decodes the same prompt with the same weights; the last column
counts the greedy ids before the first that differs. With ``--device cpu`` the script itself can be
tried without a GPU.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from llama_chat.generation.engine import Engine
from llama_chat.generation.events import Token
from llama_chat.generation.measuring import measure
from llama_chat.generation.sampling import Sampler
from llama_chat.llama import Llama
from llama_chat.loading.plan import load
from llama_chat.model.config import LlamaConfig
from llama_chat.settings.sampling import Sampling

FORMATS = {"bfloat16": "none", "int8": "int8", "int4": "int4"}
"""Forms of the weights, with the value of ``--quantize`` for each."""

COPY_BYTES, MATRIX_SIZE = 2**30, 8192
"""Sizes of the copies and of the matrices that are measured; smaller ones on a CPU."""


@dataclass(frozen=True, slots=True)
class Row:
    """Speeds in one form of the weights; shares are of the measured peaks."""

    form: str
    kernel: str
    prefill_tok_s: float
    prefill_share: float
    decode_tok_s: float
    decode_share: float
    equal_ids: int


def seconds(compute: Callable[[], object], device: torch.device, rounds: int) -> float:
    """Return the median time of ``compute`` on a device, after a run that warms up."""
    times = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        compute()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def peaks(device: torch.device, rounds: int) -> tuple[float, float]:
    """Measure bytes per second of copies, and operations per second of products."""
    part = 1 if device.type == "cuda" else 32
    source = torch.ones(COPY_BYTES // part // 4, device=device)
    copy = torch.empty_like(source)
    size = MATRIX_SIZE // part
    a, b = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    bandwidth = 2 * source.nbytes / seconds(lambda: copy.copy_(source), device, rounds)
    return bandwidth, 2 * size**3 / seconds(lambda: a @ b, device, rounds)


def operations_per_token(config: LlamaConfig) -> int:
    """Count the operations of the matrices of all layers for a token of a prompt."""
    shapes = config.tensor_shapes().items()
    return 2 * sum(math.prod(s) for name, s in shapes if name.startswith("layers.") and s[1:])


def open_model(path: str, device: str, form: str) -> Llama:
    """Load the model in one form of its weights, with activations in bfloat16."""
    return load(path, device, "bfloat16", FORMATS[form])


def greedy_ids(engine: Engine, prompt: Sequence[int], n_new: int) -> list[int]:
    """Decode at temperature 0, past end tokens, with an empty cache."""
    engine.end_ids = frozenset()
    engine.cache.trim(0)
    sampler = Sampler(Sampling(temperature=0))
    events = engine.generate(prompt, sampler, max_tokens=n_new, lookup=False)
    return [event.id for event in events if isinstance(event, Token)]


def rows(options: argparse.Namespace, bandwidth: float, peak: float) -> Iterator[Row]:
    """Measure each form in turn; one model is loaded at a time."""
    for form in FORMATS:
        on_cpu = open_model(options.model, "cpu", form)
        prompt = on_cpu.prompt_ids("Once upon a time")
        expected = greedy_ids(on_cpu.engine(), prompt, options.new)
        del on_cpu
        llama = open_model(options.model, options.device, form)
        engine = llama.engine()
        found = greedy_ids(engine, prompt, options.new)
        same = [a == b for a, b in zip(found, expected, strict=True)]
        speed = measure(engine, options.prompt, options.new, options.rounds)
        operations = operations_per_token(llama.model.config) * speed.prefill_tok_s
        yield Row(
            form,
            f"{type(engine.backend).__name__}, {engine.backend.kernel_name}",
            prefill_tok_s=speed.prefill_tok_s,
            prefill_share=operations / peak,
            decode_tok_s=speed.decode_tok_s,
            decode_share=speed.bandwidth_used * speed.bandwidth_gb_s * 1e9 / bandwidth,
            equal_ids=[*same, False].index(False),
        )
        del llama, engine


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--prompt", type=int, default=512, help="tokens to prefill")
    parser.add_argument("--new", type=int, default=64, help="tokens to decode")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU of CUDA is here: --device cpu tries the script without one")
    bandwidth, peak = peaks(torch.device(options.device), options.rounds)
    name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    print(f"{name}: copies {bandwidth / 1e9:.0f} GB/s, products {peak / 1e12:.1f} trillion/s")
    print("weights    prefill tok/s   of products   decode tok/s   of copies   equal ids")
    measured = []
    for row in rows(options, bandwidth, peak):
        measured.append(row)
        print(
            f"{row.form:<9} {row.prefill_tok_s:14.1f} {row.prefill_share:13.0%}"
            f" {row.decode_tok_s:14.2f} {row.decode_share:11.0%}"
            f" {row.equal_ids:7} of {options.new}   {row.kernel}"
        )
    if options.json:
        report = {
            "device": name,
            "copy_bytes_s": bandwidth,
            "product_operations_s": peak,
            "rows": [asdict(row) for row in measured],
        }
        options.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
