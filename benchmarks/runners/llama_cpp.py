"""llama.cpp: ``python -m benchmarks.runners.llama_cpp MODEL CONTEXT THREADS OPTIONS``."""

import time
from collections.abc import Sequence
from typing import Any

import llama_cpp
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
        self.threads = threads
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

    def decode_together(self, prompts: Sequence[Sequence[int]], n: int) -> float:
        """Decode in one batch of the library's low-level interface; nothing is sampled."""
        parameters = llama_cpp.llama_context_default_params()
        n_all = len(prompts) * (len(prompts[0]) + n)
        parameters.n_ctx = parameters.n_batch = n_all
        parameters.n_seq_max = len(prompts)
        parameters.n_threads = parameters.n_threads_batch = self.threads
        parameters.kv_unified = True
        context = llama_cpp.llama_init_from_model(self.model.model, parameters)
        batch = llama_cpp.llama_batch_init(n_all, 0, 1)
        try:
            for i, ids in enumerate(prompts):
                _fill(batch, [(token_id, at, i, 0) for at, token_id in enumerate(ids)])
                _decode(context, batch)
            began = time.perf_counter()
            for at in range(len(prompts[0]), len(prompts[0]) + n):
                _fill(batch, [(ids[at % len(ids)], at, i, 1) for i, ids in enumerate(prompts)])
                _decode(context, batch)
            return time.perf_counter() - began
        finally:
            llama_cpp.llama_batch_free(batch)
            llama_cpp.llama_free(context)


def _fill(batch: Any, tokens: Sequence[tuple[int, int, int, int]]) -> None:
    """Fill a batch with tokens: id, position, sequence, and 1 for those with logits."""
    batch.n_tokens = len(tokens)
    for row, (token_id, position, sequence, has_logits) in enumerate(tokens):
        batch.token[row], batch.pos[row] = token_id, position
        batch.n_seq_id[row], batch.seq_id[row][0] = 1, sequence
        batch.logits[row] = has_logits


def _decode(context: Any, batch: Any) -> None:
    if llama_cpp.llama_decode(context, batch):
        raise SystemExit("llama.cpp cannot decode the batch")


if __name__ == "__main__":
    serve(LlamaCpp)
