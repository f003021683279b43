"""llama-chat: ``python -m benchmarks.runners.ours MODEL CONTEXT THREADS OPTIONS``."""

import time
from collections.abc import Sequence
from typing import Any

from benchmarks.runners.serving import serve
from llama_chat import load
from llama_chat.generation.batch import Scheduler
from llama_chat.generation.continuation import Request
from llama_chat.generation.sampling import Sampler
from llama_chat.settings.sampling import Sampling


class LlamaChat:
    """A model of llama-chat, driven through its engine."""

    def __init__(self, path: str, context: int, threads: int, **options: Any) -> None:
        self.llama = load(path, context=context, threads=threads, **options)
        self.engine = self.llama.engine()
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

    def decode_together(self, prompts: Sequence[Sequence[int]], n: int) -> float:
        """Decode with a scheduler, sampling the most likely tokens."""
        greedy = Sampling(temperature=0)
        scheduler = Scheduler(
            self.engine.backend, self.engine.tokenizer, frozenset(), max_parallel=len(prompts)
        )
        added = [scheduler.add(Request(ids, Sampler(greedy), max_tokens=n + 1)) for ids in prompts]
        while any(len(each.text.ids) == each.text.n_prompt for each in added):
            scheduler.step()
        began, before = time.perf_counter(), scheduler.n_evaluated
        while scheduler.n_running:
            scheduler.step()
        seconds = time.perf_counter() - began
        return seconds * n * len(prompts) / (scheduler.n_evaluated - before)


if __name__ == "__main__":
    serve(LlamaChat)
