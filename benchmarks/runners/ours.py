"""llama-chat: ``python -m benchmarks.runners.ours MODEL CONTEXT THREADS OPTIONS``."""

from collections.abc import Sequence
from typing import Any

from benchmarks.runners.serving import serve
from llama_chat import load


class LlamaChat:
    """A model of llama-chat, driven through its engine."""

    def __init__(self, path: str, context: int, threads: int, **options: Any) -> None:
        self.engine = load(path, context=context, threads=threads, **options).engine()
        self.vocab_size = self.engine.backend.model.config.vocab_size

    def read(self, ids: Sequence[int]) -> None:
        """Evaluate ``ids`` after the cached tokens."""
        self.engine.prefill([*self.engine.cache.ids, *ids])

    def logits(self, ids: Sequence[int]) -> bytes:
        """Evaluate ``ids`` after the cached tokens, and return the logits of each."""
        logits = self.engine.backend.forward(ids, self.engine.cache, all_logits=True)
        return bytes(logits.numpy().tobytes())

    def truncate(self, length: int) -> None:
        """Trim the cache to ``length`` tokens."""
        self.engine.cache.trim(length)


if __name__ == "__main__":
    serve(LlamaChat)
