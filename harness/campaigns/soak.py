"""A long chat and a long-lived server: memory and open files must not grow.

    python -m harness.campaigns.soak [TURNS [REQUESTS]]

The chat has a context of 512 tokens, out of which old turns are dropped; answers are given again,
messages edited, branches visited and the model reloaded on the way. The server answers chats,
streams, completions and errors, to prompts of which no two begin alike. Memory counts as grown if
its mean in the last fifth exceeds that of the second fifth by 5 %.
"""

import http.client
import json
import random
import re
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from harness.terminal import CTRL_C, CTRL_D, READY, Terminal
from llama_chat.server import client
from tests.model_files import write_gguf
from tests.servers import running_server

EVERY_TURNS, EVERY_REQUESTS = 10, 100
"""Turns and requests after which memory and open files are read."""

GROWTH = 0.05


def talk(terminal: Terminal, n_turns: int, chance: random.Random) -> Iterator[None]:
    """Hold a conversation; yields after each turn."""
    for turn in range(n_turns):
        match turn % 10:
            case 3:
                _line(terminal, "/retry")
            case 5:
                _line(terminal, "/edit")
                _line(terminal, " again")
            case 7:
                _line(terminal, f"/branch {chance.randint(1, turn)}")
                _line(terminal, f"turn {turn}")
            case 9 if turn % 100 == 99:
                _line(terminal, f"/kv-dtype {'int8' if turn % 200 == 99 else 'auto'}")
            case _:
                _line(terminal, f"turn {turn} " + "word " * chance.randint(1, 20))
        yield


def _line(terminal: Terminal, text: str) -> None:
    terminal.line(text)
    terminal.skim()


def request(connection: http.client.HTTPConnection, number: int, chance: random.Random) -> int:
    """Send one of several kinds of requests; returns its status."""
    text = f"{number} " + "word " * chance.randint(4, 20)
    messages = [{"role": "user", "content": text}]
    route, body = (
        ("/v1/chat/completions", {"messages": messages, "max_tokens": 2}),
        ("/v1/chat/completions", {"messages": messages, "max_tokens": 2, "stream": True}),
        ("/v1/completions", {"prompt": text, "max_tokens": 2, "n": 2}),
        ("/v1/chat/completions", {"messages": []}),
    )[number % 4]
    connection.request("POST", route, json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    answer.read()
    return answer.status


def judge(what: str, sizes: list[int], files: list[int]) -> bool:
    """Report memory and open files over time; returns True if both are as they were."""
    fifth = max(len(sizes) // 5, 1)
    first, last = (statistics.mean(part) for part in (sizes[fifth : 2 * fifth], sizes[-fifth:]))
    early, late = max(files[fifth : 2 * fifth]), max(files[-fifth:])
    print(
        f"{what}: memory {first / 1e6:.1f} MB, {last / first - 1:+.1%} at the end; "
        f"open files {early}, {late} at the end",
        flush=True,
    )
    return last / first - 1 < GROWTH and late <= early


def soak_chat(model: Path, home: Path, n_turns: int) -> bool:
    """Hold a long conversation; returns True if nothing grew, and all of it is saved."""
    chance, sizes, files = random.Random(0), list[int](), list[int]()
    flags = ("-m", model, "--max-tokens", "4", "--temperature", "1", "--seed", "1")
    with Terminal(*flags, home=home) as terminal:
        terminal.wait_for(READY)
        process = psutil.Process(terminal.child.pid)
        for turn, _ in enumerate(talk(terminal, n_turns, chance), 1):
            if turn % EVERY_TURNS == 0:
                sizes.append(process.memory_info().rss)
                files.append(process.num_fds())
        terminal.type(CTRL_C)
        terminal.watch_for(0.5)
        terminal.type(CTRL_D)
        status = terminal.wait_for_end()
    (saved,) = (home / ".local/share/llama-chat/conversations").glob("*.jsonl")
    n_messages = len(set(re.findall(rb'"number": (\d+)', saved.read_bytes())))
    print(f"chat: status {status}, {n_messages} messages in {saved.stat().st_size:,} bytes")
    return judge(f"{n_turns} turns", sizes, files) and status == 0 and n_messages > n_turns


def soak_server(model: Path, home: Path, n_requests: int) -> bool:
    """Ask a server often; returns True if nothing grew, and all was answered."""
    chance, sizes, files = random.Random(0), list[int](), list[int]()
    statuses = set()
    with running_server(home, model) as server:
        process = psutil.Process(int((client.health(server.socket) or {})["pid"]))
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        for number in range(1, n_requests + 1):
            statuses.add((number % 4 == 3, request(connection, number, chance)))
            if number % EVERY_REQUESTS == 0:
                sizes.append(process.memory_info().rss)
                files.append(process.num_fds())
        connection.close()
    good = statuses == {(False, 200), (True, 400)}
    print(f"server: {statuses if not good else 'all answered as they should be'}")
    return judge(f"{n_requests} requests", sizes, files) and good


def main(arguments: list[str]) -> int:
    """Run both; returns 1 if anything grew."""
    n_turns = int(arguments[0]) if arguments else 1000
    n_requests = int(arguments[1]) if len(arguments) > 1 else 10_000
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "random.gguf"
        write_gguf(model)
        good = soak_chat(model, Path(folder) / "home", n_turns) if n_turns else True
        if n_requests:
            good = soak_server(model, Path(folder) / "other", n_requests) and good
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
