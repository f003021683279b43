"""Programs that keep rows for later until memory runs out; see test_branches and test_batch.

``suffixes`` saves those of a conversation: it prints the bytes of saved suffixes and the number of
cached tokens after each step, and the error of the last. ``prefixes`` stores those of sequences
that have ended: it prints the number of stored prefixes before and after one that needs their
memory, and what that got. ``answers`` generates three answers, one of which memory runs out for: it
prints the events of each.
"""

import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from llama_chat.errors import LlamaChatError
from llama_chat.generation.backend import TorchBackend
from llama_chat.generation.batch import Scheduler, generate_all
from llama_chat.generation.continuation import Request
from llama_chat.generation.engine import Engine
from llama_chat.generation.events import Event, Finish
from llama_chat.generation.sampling import Sampler
from llama_chat.settings.sampling import Sampling
from tests.model_files import SMALL, byte_tokenizer
from tests.models import random_model

# 4096 tokens take 32 MiB of cache.
CONFIG = replace(SMALL, n_layers=1, dim=128, hidden_dim=64, n_heads=2, n_kv_heads=2, head_dim=512)
LIMIT = 16 * 2**20


def lines_of(program: str) -> list[str]:
    """Run one of the programs; returns the lines that it prints."""
    # Else glibc keeps freed memory, which counts towards the limit.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20)}
    command = [sys.executable, "-m", "tests.out_of_memory", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.stdout.splitlines()


def allow(n_bytes: int) -> None:
    """Limit this process to ``n_bytes`` more memory than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + n_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def suffixes() -> None:
    """Save a suffix of 32 MiB, then leave less than that to the process."""
    backend = TorchBackend(random_model(replace(CONFIG, context_length=16384)))
    engine = Engine(backend, byte_tokenizer())
    conversation = [3 + i % 200 for i in range(4096)]
    engine.prefill_cached(conversation)
    engine.prefill_cached(conversation[:100])
    print(engine.cache.saved_bytes, engine.cache.length)
    allow(LIMIT)
    engine.prefill_cached(conversation[:100] + [7] * 4096)  # the buffers must grow
    print(engine.cache.saved_bytes, engine.cache.length)
    allow(LIMIT // 8)
    engine.prefill_cached(conversation[:50])  # its suffix cannot be saved
    print(engine.cache.saved_bytes, engine.cache.length)
    try:
        engine.prefill_cached(conversation * 2)
    except LlamaChatError as error:
        print(error)


def prefixes() -> None:
    """Store a prefix of 32 MiB, then leave less than that for the next sequence."""
    backend = TorchBackend(random_model(replace(CONFIG, context_length=16384)))
    tokenizer = byte_tokenizer()
    scheduler = Scheduler(
        backend, tokenizer, frozenset(), max_parallel=1, max_bytes=None, keeps_replies=True
    )
    for first, limit in ((3, None), (5, 2 * LIMIT)):
        if limit is not None:
            allow(limit)
        scheduler.add(Request([first] * 4000, Sampler(Sampling(temperature=0)), max_tokens=2))
        print(len(scheduler.store))
        events: list[Event | LlamaChatError] = []
        while not any(isinstance(event, Finish) for event in events):
            events += [event for _, event in scheduler.step()]
        print(len(events))


def answers() -> None:
    """Leave less memory than one of two answers at once needs; a third one waits."""
    backend = TorchBackend(random_model(replace(CONFIG, context_length=16384)))
    scheduler = Scheduler(backend, byte_tokenizer(), frozenset(), max_parallel=2)
    lengths = {"short": (20, 100), "long": (8000, 2), "later": (10, 5)}
    requests = [
        (name, Request([3 + i] * n_prompt, Sampler(Sampling(temperature=0)), max_tokens=n_new))
        for i, (name, (n_prompt, n_new)) in enumerate(lengths.items())
    ]
    backend.forward([1], backend.new_cache())  # what the first pass alone allocates
    allow(LIMIT)
    events: dict[str, list[Event | LlamaChatError]] = {name: [] for name in lengths}
    for name, event in generate_all(scheduler, iter(requests)):
        events[name].append(event)
    for name, found in events.items():
        last = found[-1]
        print(name, len(found), last if isinstance(last, LlamaChatError) else "")


if __name__ == "__main__":
    {"suffixes": suffixes, "prefixes": prefixes, "answers": answers}[sys.argv[1]]()
