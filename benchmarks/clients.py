"""Speed of a server with many clients, beside a few sequences in one process.

    python -m benchmarks.clients MODEL [--clients 32] [--sequences 8] [--prompt 100] [--new 128]
        [--rounds 5] [--threads 2]

The clients send their requests at once, each with a prompt of its own of random tokens, and read
their streams in one process. Their speed is the number of tokens that arrive per second, from when
all have begun until one has all its tokens; that of the sequences is as in ``benchmarks.batch``.
Both decode greedily, in turn.
"""

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.batch import decode
from benchmarks.programs import OURS, start
from harness.process import cold
from llama_chat.server.client import OWN_KEY
from tests.servers import Server, running_server

CHUNK = b'data: {"id"'
"""Beginning of what a server sends for each token."""


async def arrivals(server: Server, ids: list[int], n_new: int) -> list[float]:
    """Ask for a completion, and return the time at which each of its tokens came."""
    body = {"prompt": ids, "max_tokens": n_new, "temperature": 0, "stream": True}
    body[OWN_KEY] = {"tokens": True}  # a chunk for each token, also within a character
    data = json.dumps(body).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(head.encode() + data)
    found: list[float] = []
    while part := await reader.read(2**16):
        found += [time.perf_counter()] * part.count(CHUNK)
    writer.close()
    return found[1:-1]  # neither the chunk before the first token nor that after the last


async def tokens_per_second(server: Server, prompts: list[list[int]], n_new: int) -> float:
    """Serve all prompts at once, and return the tokens per second while all are answered."""
    times = await asyncio.gather(*(arrivals(server, ids, n_new) for ids in prompts))
    begin = max(each[0] for each in times)
    end = min(each[-1] for each in times if len(each) == n_new)  # others ended by themselves
    n_tokens = sum(begin < moment <= end for each in times for moment in each)
    return n_tokens / (end - begin)


def main() -> None:
    """Measure both in turn, and print medians and the median of the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", type=Path)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=100, help="tokens of each prompt")
    parser.add_argument("--new", type=int, default=128, help="tokens to decode of each")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    context = 2 * (options.prompt + options.new)
    counts = {"threads": options.threads, "context": context, "parallel": options.clients}
    flags = [each for name, n in counts.items() for each in (f"--{name}", str(n))]
    served: list[float] = []
    decoded: list[float] = []
    with (
        cold(),
        tempfile.TemporaryDirectory() as home,
        running_server(Path(home), options.model.resolve(), *flags) as server,
        start(
            OURS, sys.executable, options.model, context=context, threads=options.threads
        ) as program,
    ):
        chance = random.Random(0)  # noqa: S311 - the same prompts each time
        for number in range(options.rounds + 1):
            prompts = [
                [chance.randrange(300, 20_000) for _ in range(options.prompt)]
                for _ in range(options.clients)
            ]
            speed = asyncio.run(tokens_per_second(server, prompts, options.new))
            beside = decode(program, options.sequences, options.prompt, options.new)
            if number:  # the first round warms up
                served.append(speed)
                decoded.append(beside)
    print(
        f"{options.model.name}: {options.clients} clients {statistics.median(served):.1f} tok/s, "
        f"{options.sequences} sequences {statistics.median(decoded):.1f} tok/s, "
        f"{statistics.median(a / b for a, b in zip(served, decoded, strict=True)):.2f} times"
    )


if __name__ == "__main__":
    main()
