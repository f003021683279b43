"""Thousands of malformed requests to a server, and clients that vanish at random instants.

    python -m harness.campaigns.server [SEED [REQUESTS [CLIENTS]]]

Every request is made of valid ones by cutting, doubling and changing bytes of head and body, or
values of its JSON. Each must be answered with a status of 200 or 4xx, or by the end of the
connection; at the end no sequence may be left, and the memory may not have grown.
"""

import http.client
import json
import random
import socket
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil

from llama_chat.server import client
from tests.model_files import write_gguf
from tests.servers import Server, running_server

ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/tokenize", "/v1/models", "/nothing")
_TIMEOUT_S = 0.5
"""Longest wait for an answer: a request that was cut off gets none while its rest may come."""

_AT_A_TIME = 8
"""Requests that wait for their answers at the same time."""

VALUES: tuple[object, ...] = (
    None,
    True,
    0,
    -1,
    1,
    2**70,
    1e308,
    "",
    "x" * 5000,
    "\udc00",
    [],
    [[]],
    {},
    {"a": {}},
)
BODIES = (
    {"messages": [{"role": "user", "content": "the cat"}], "max_tokens": 3},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}], "stop": ["x"]},
    {"prompt": "the hat", "max_tokens": 2, "n": 2, "logprobs": 1, "stream": True},
    {"text": "the cat", "add_special": True},
)


def changed(value: object, chance: random.Random) -> object:
    """Return a copy of a JSON value in which one part is another."""
    if isinstance(value, dict) and value and chance.random() < 0.8:
        name = chance.choice(list(value))
        return {**value, name: changed(value[name], chance)}
    if isinstance(value, list) and value and chance.random() < 0.6:
        i = chance.randrange(len(value))
        return [*value[:i], changed(value[i], chance), *value[i + 1 :]]
    return chance.choice(VALUES)


def malformed(chance: random.Random) -> bytes:
    """Return the bytes of one request."""
    body = json.dumps(changed(dict(chance.choice(BODIES)), chance)).encode()
    if chance.random() < 0.3:
        body = mutated(body, chance)
    method = chance.choice(["POST"] * 6 + ["GET", "PUT", "OPTIONS", "X\x01"])
    length = len(body) if chance.random() < 0.9 else chance.choice([0, -1, 10**12, 3])
    head = (
        f"{method} {chance.choice(ROUTES)} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    ).encode()
    if chance.random() < 0.2:
        head = mutated(head, chance)
    return head + body


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Cut, double or change some bytes."""
    at = chance.randrange(len(data) + 1)
    kind = chance.randrange(3)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + data[at // 2 :]
    return data[:at] + chance.randbytes(chance.randrange(1, 9)) + data[at + 4 :]


def status_of(server: Server, request: bytes) -> int:
    """Send a request; returns the status, or 0 if the connection ended without an answer."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as raw:
        with suppress(OSError):
            raw.sendall(request)
        raw.settimeout(_TIMEOUT_S)
        data = b""
        with suppress(OSError):
            while part := raw.recv(65536):
                data += part
    line = data.split(b"\r\n", 1)[0].split()
    return int(line[1]) if len(line) > 1 and line[1].isdigit() else 0


def vanish(server: Server, chance: random.Random) -> None:
    """Begin a generation, and leave at some point of it."""
    body = json.dumps({**BODIES[0], "max_tokens": 300, "stream": chance.random() < 0.7}).encode()
    head = f"POST {ROUTES[0]} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    data = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as raw:
        if chance.random() < 0.2:
            data = data[: chance.randrange(len(data))]
        raw.sendall(data)
        if chance.random() < 0.5:
            raw.settimeout(chance.random() * 0.05)
            with suppress(OSError):
                raw.recv(chance.randrange(1, 5000))


def wait_until_idle(server: Server) -> bool:
    """Wait until nothing is open; returns False if something stays."""
    for _ in range(200):
        if not n_open(server):
            return True
        time.sleep(0.05)
    return False


def n_open(server: Server) -> int:
    """Read the number of requests and sequences that are open."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    names = ("open_requests", "running_sequences", "waiting_sequences")
    metrics = dict(line.split() for line in lines if not line.startswith("#"))
    return sum(int(metrics[f"llama_chat_{name}"]) for name in names)


def main(seed: int = 1, n_requests: int = 20_000, n_clients: int = 1_000) -> int:
    """Run the campaign; returns the number of failures."""
    chance = random.Random(seed)
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "random.gguf"
        write_gguf(model)
        with running_server(
            Path(folder), model, "--template", "plain", "--cache-memory", "1M"
        ) as server:
            process = psutil.Process(int((client.health(server.socket) or {})["pid"]))
            statuses: Counter[int] = Counter()
            before = 1
            requests = [malformed(chance) for _ in range(n_requests)]
            with ThreadPoolExecutor(_AT_A_TIME) as pool:
                found = pool.map(lambda request: status_of(server, request), requests)
                for request, status in zip(requests, found, strict=True):
                    statuses[status] += 1
                    if status >= 500 or (status and status < 200):
                        failures += 1
                        print(f"status {status}: {request[:300]!r}")
            for i in range(n_clients):
                if i == n_clients // 10:  # everything is allocated once by then
                    before = process.memory_info().rss
                vanish(server, chance)
            failures += not wait_until_idle(server)
            grown = process.memory_info().rss / before - 1
            print(
                f"seed {seed}: {n_requests} requests {dict(statuses)}, {n_clients} vanished, "
                f"memory {grown:+.1%}, {failures} failures"
            )
    return failures


if __name__ == "__main__":
    sys.exit(bool(main(*map(int, sys.argv[1:]))))
