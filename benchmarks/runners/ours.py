"""llama-chat: ``python -m benchmarks.runners.ours MODEL CONTEXT THREADS``."""

import sys
from collections.abc import Sequence

from benchmarks.runners.serving import serve
from llama_chat import load


class LlamaChat:
    """A model of llama-chat, driven through its engine."""

    def __init__(self, path: str, context: int, threads: int) -> None:
        self.engine = load(path, context=context, threads=threads).engine()
        self.vocab_size = self.engine.tokenizer.vocab_size

    def read(self, ids: Sequence[int]) -> None:
        """Read ``ids`` behind the rest."""
        self.engine.sync([*self.engine.cache.ids, *ids])

    def truncate(self, length: int) -> None:
        """Forget what lies beyond ``length``."""
        self.engine.cache.truncate(length)


if __name__ == "__main__":
    serve(LlamaChat(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
