"""Measure the peak operations per second of the instructions of the kernels on this machine.

    python -m benchmarks.peak [MODEL] [--threads 2] [--rounds 5] [--prompt 512]
                              [--instruction bytes_avx512_vnni]
                              [--attention-instruction fma_avx512] [--json FILE]

Every thread runs one instruction on registers alone; or the mixture for groups of columns, with the
float instructions for scales and minima, of which only the products of bytes are counted; or tiles
that are loaded from a cache. The result is the bound on prefill: a token takes two operations for
each weight of the matrices, and attention two for each number of the keys and values that it sees.
With a model, prefill is compared with the peak of an instruction in the same round: as a share of
its speed, without attention; and as the share that the least time for products and attention has in
the time taken.
"""

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.gpu import operations_per_token
from llama_chat.loading.plan import load
from llama_chat.model.config import LlamaConfig

SOURCE = Path(__file__).with_suffix(".c")

INSTRUCTIONS = {
    "fma_avx2": ("avx2", "fma"),
    "fma_avx512": ("avx512f",),
    "bytes_avx2": ("avx2",),
    "bytes_avx512_vnni": ("avx512_vnni",),
    "groups_of_32_avx512_vnni": ("avx512_vnni",),
    "groups_of_32_with_minima_avx512_vnni": ("avx512_vnni",),
    "groups_of_16_avx512_vnni": ("avx512_vnni",),
    "bf16_avx512": ("avx512_bf16",),
    "bytes_amx": ("amx_tile", "amx_int8"),
    "bf16_amx": ("amx_tile", "amx_bf16"),
    "bf16_from_first_cache_amx": ("amx_tile", "amx_bf16"),
    "bf16_from_private_cache_amx": ("amx_tile", "amx_bf16"),
}
"""Functions of the source, and the features that they need, as the system calls them."""


def features() -> set[str]:
    """Return the features of the processor."""
    flags = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "flags" in line]
    return set(flags[0].split()) if flags else set()


def build(folder: Path) -> ctypes.CDLL:
    """Compile the source."""
    library = folder / "peak.so"
    compiler = os.environ.get("CC", "cc")
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", SOURCE, "-o", library], check=True)
    return ctypes.CDLL(str(library))


def measure(library: ctypes.CDLL, name: str, n_threads: int, n_rounds: int) -> float:
    """Return the operations per second of all threads together, the median over the rounds."""
    run = getattr(library, name)
    run.restype = ctypes.c_double
    speeds: list[float] = []
    with ThreadPoolExecutor(n_threads) as pool:
        for _ in range(n_rounds + 1):  # the first warms up
            began = time.perf_counter()
            done = sum(pool.map(lambda _: run(), range(n_threads)))
            speeds.append(done / (time.perf_counter() - began))
    return statistics.median(speeds[1:])


def attention_operations(config: LlamaConfig, n_tokens: int) -> int:
    """Count the operations of causal attention for a prompt, which follows nothing."""
    n_seen = n_tokens * (n_tokens + 1) // 2
    return 4 * config.n_layers * config.n_heads * config.head_dim * n_seen


class Prefill(NamedTuple):
    """Prefill in one round."""

    tokens_per_second: float
    share: float
    """Share of the peak speed of the matrices' instruction, without attention."""
    share_of_both: float
    """Share of the least time for matrices and attention in the time taken."""


def measure_prefill(run: ctypes.CDLL, options: argparse.Namespace) -> list[Prefill]:
    """Measure prefill and the peaks of its instructions, round by round."""
    engine = load(options.model, context=options.prompt + 1, threads=options.threads).engine()
    config = engine.backend.model.config
    products = options.prompt * operations_per_token(config)
    attention = attention_operations(config, options.prompt)
    found = []
    for _ in range(options.rounds + 1):  # the first warms up
        ids = torch.randint(config.vocab_size, (options.prompt,)).tolist()
        engine.cache.trim(0)
        began = time.perf_counter()
        engine.prefill(ids)
        elapsed = time.perf_counter() - began
        least = products / measure(run, options.instruction, options.threads, 3)
        attention_peak = measure(run, options.attention_instruction, options.threads, 3)
        both = least + attention / attention_peak
        found.append(Prefill(options.prompt / elapsed, least / elapsed, both / elapsed))
    return found[1:]


def main() -> None:
    """Run the benchmark and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=512, help="tokens to prefill")
    parser.add_argument("--instruction", default="bytes_avx512_vnni", choices=INSTRUCTIONS)
    parser.add_argument("--attention-instruction", default="fma_avx512", choices=INSTRUCTIONS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    here = features()
    for name in (options.instruction, options.attention_instruction):
        if options.model and not here.issuperset(INSTRUCTIONS[name]):
            parser.error(f"this processor lacks {name}")
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        library = build(Path(folder))
        if options.model:
            rounds = measure_prefill(library, options)
            medians = Prefill(*map(statistics.median, zip(*rounds, strict=True)))
            found = medians._asdict()
            shares = [prefill.share for prefill in rounds]
            print(
                f"{medians.tokens_per_second:.1f} tokens/s, {medians.share:.1%} of"
                f" {options.instruction} ({min(shares):.1%} to {max(shares):.1%}),"
                f" {medians.share_of_both:.1%} with attention in {options.attention_instruction}"
            )
        else:
            for name, needed in INSTRUCTIONS.items():
                if here.issuperset(needed):
                    found[name] = measure(library, name, options.threads, options.rounds)
                    print(f"{name:<36} {found[name] / 1e9:8.0f} billion operations a second")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
