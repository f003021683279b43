"""llama.cpp: ``python -m benchmarks.runners.llama_cpp MODEL CONTEXT THREADS OPTIONS``."""

from collections.abc import Sequence
from typing import Any

from llama_cpp import Llama

from benchmarks.runners.serving import serve


class LlamaCpp:
    """A model of llama.cpp through llama-cpp-python, with its usual batch of 512."""

    def __init__(self, path: str, context: int, threads: int, **options: Any) -> None:
        self.model = Llama(
            path,
            n_ctx=context,
            n_threads=threads,
            n_threads_batch=threads,
            verbose=False,
            **options,
        )
        self.vocab_size = self.model.n_vocab()

    def read(self, ids: Sequence[int]) -> None:
        """Evaluate ``ids`` after the cached tokens."""
        self.model.eval(ids)

    def logits(self, ids: Sequence[int]) -> bytes:
        """Evaluate ``ids`` and return the logits of each; needs the option ``logits_all``."""
        start = self.model.n_tokens
        self.model.eval(ids)
        return bytes(self.model.scores[start : self.model.n_tokens].tobytes())

    def truncate(self, length: int) -> None:
        """Trim to ``length`` tokens; the next ``eval`` cuts the cache there."""
        self.model.n_tokens = length


if __name__ == "__main__":
    serve(LlamaCpp)
