"""llama.cpp: ``python -m benchmarks.runners.llama_cpp MODEL CONTEXT THREADS``."""

import sys
from collections.abc import Sequence

from llama_cpp import Llama

from benchmarks.runners.serving import serve


class LlamaCpp:
    """A model of llama.cpp through llama-cpp-python, with its usual batch of 512."""

    def __init__(self, path: str, context: int, threads: int) -> None:
        self.model = Llama(
            path, n_ctx=context, n_threads=threads, n_threads_batch=threads, verbose=False
        )
        self.vocab_size = self.model.n_vocab()

    def read(self, ids: Sequence[int]) -> None:
        """Read ``ids`` behind the rest."""
        self.model.eval(ids)

    def truncate(self, length: int) -> None:
        """Forget what lies beyond ``length``; the next ``eval`` cuts the cache there."""
        self.model.n_tokens = length


if __name__ == "__main__":
    serve(LlamaCpp(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
