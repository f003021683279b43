"""Measure products of each packed layout with a few rows of activations, and with many.

    python -m benchmarks.products [--columns 4096] [--threads 1] [--rounds 9]

Matrices of 4,096 rows are random. For one row it prints the bytes of weights read per second, which
memory limits; for 96 rows the operations per second, two for each weight and row, which the
instructions limit: see ``benchmarks.peak``.
"""

import argparse
import statistics
import time
from typing import Any

import torch

from llama_chat.generation.measuring import read_bandwidth
from llama_chat.kernels import native
from llama_chat.kernels.matrix import NativeMatrix
from llama_chat.quantization.linear import to_panels
from llama_chat.quantization.packed import LAYOUTS, SUPER_BLOCK, PackedWeight

N_ROWS, MANY = 4096, 96


def random_matrix(layout: tuple[Any, int, bool, bool, bool], n_columns: int) -> NativeMatrix:
    """Make a matrix of random quants, with scales of 1."""
    bits, group, has_mins, is_stepped, is_iq4 = layout
    n_groups = n_columns // group
    signed = bits == 8 or is_iq4
    quants = torch.randint(256, (N_ROWS, n_groups, group * bits // 8), dtype=torch.uint8)
    numbers = torch.ones(N_ROWS, n_groups, dtype=torch.int8 if is_stepped else torch.half)
    steps = torch.ones(N_ROWS, n_columns // SUPER_BLOCK, dtype=torch.half)
    packed = PackedWeight(
        bits,
        quants.view(torch.int8) if signed else quants,
        numbers,
        numbers if has_mins else None,
        steps if is_stepped else None,
        steps if is_stepped and has_mins else None,
    )
    return to_panels(packed)


def seconds(matrices: list[NativeMatrix], n_rows: int, rounds: int) -> float:
    """Return the median time of a product with one of the matrices."""
    x, times = torch.randn(n_rows, matrices[0].shape[1]), []
    for _ in range(rounds + 1):  # the first warms up
        began = time.perf_counter()
        for matrix in matrices:
            matrix.multiply(x)
        times.append((time.perf_counter() - began) / len(matrices))
    return statistics.median(times[1:])


def main() -> None:
    """Print a line for each layout."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--columns", type=int, default=4096, help=f"a multiple of {SUPER_BLOCK}")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{native.level_name()}, read bandwidth {read_bandwidth() / 1e9:.1f} GB/s")
    print("layout                     1 row, GB/s   96 rows, billion operations a second")
    for layout in sorted(LAYOUTS):
        # Together far larger than the caches of a processor.
        matrices = [random_matrix(layout, options.columns) for _ in range(16)]
        bits, group, has_mins, is_stepped, is_iq4 = layout
        name = f"{'IQ' if is_iq4 else 'W'}{bits}, groups of {group}"
        name += ", minima" * has_mins + ", steps" * is_stepped
        rate = matrices[0].n_bytes / seconds(matrices, 1, options.rounds)
        operations = 2 * MANY * N_ROWS * options.columns
        speed = operations / seconds(matrices[:2], MANY, options.rounds)
        print(f"{name:<34} {rate / 1e9:5.1f} {speed / 1e9:38.0f}")


if __name__ == "__main__":
    main()
