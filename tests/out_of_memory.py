"""Program that saves suffixes of a conversation until memory runs out; see test_branches.

It prints the bytes of saved suffixes and the number of cached tokens after each step, and the
error of the last.
"""

import resource
from dataclasses import replace
from pathlib import Path

from llama_chat.errors import LlamaChatError
from llama_chat.generation.backend import TorchBackend
from llama_chat.generation.engine import Engine
from tests.model_files import SMALL, byte_tokenizer
from tests.models import random_model

# 4096 tokens take 32 MiB of cache.
CONFIG = replace(SMALL, n_layers=1, dim=128, hidden_dim=64, n_heads=2, n_kv_heads=2, head_dim=512)
LIMIT = 16 * 2**20


def allow(n_bytes: int) -> None:
    """Limit this process to ``n_bytes`` more memory than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + n_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def main() -> None:
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


if __name__ == "__main__":
    main()
