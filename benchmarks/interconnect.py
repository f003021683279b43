"""Memory bandwidth of each rank, and the time of sums over all ranks.

    torchrun --nproc-per-node 2 -m benchmarks.interconnect

The numbers are for ``llama-chat inspect --bandwidth GB/s --interconnect GB/s``: NCCL between GPUs,
gloo between CPUs.
"""

import time

import torch
import torch.distributed as dist

from llama_chat.generation.measuring import read_bandwidth
from llama_chat.parallel.collectives import join
from llama_chat.parallel.ranks import join_store
from llama_chat.parallel.world import find_world

ROUNDS = 50


def seconds_of_a_sum(n_numbers: int, device: torch.device, rounds: int) -> float:
    """Measure the seconds of adding float32 numbers over all ranks: the mean."""
    numbers = torch.ones(n_numbers, device=device)
    for measured in (False, True):
        dist.barrier()
        began = time.perf_counter()
        for _ in range(rounds if measured else 2):
            dist.all_reduce(numbers)
        numbers[0].item()
    return (time.perf_counter() - began) / rounds


def main() -> None:
    """Measure, and print a line on rank 0."""
    world = find_world()
    if world is None:
        raise SystemExit("start it with torchrun, with two ranks or more")
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", world.local_rank) if on_gpu else torch.device("cpu")
    join(join_store(world), world.rank, world.size, device)
    bandwidth = read_bandwidth(device)
    short, long = 4096, 2**24
    latency = seconds_of_a_sum(short, device, ROUNDS)
    rate = 2 * (world.size - 1) / world.size * 4 * long / seconds_of_a_sum(long, device, 5)
    if world.rank == 0:
        print(
            f"{world.size} ranks on {device.type}: {bandwidth / 1e9:.2f} GB/s of memory each, all "
            f"at once; {rate / 1e9:.3f} GB/s between ranks; {latency * 1e6:.0f} µs for a sum of "
            f"{short} numbers"
        )


if __name__ == "__main__":
    main()
