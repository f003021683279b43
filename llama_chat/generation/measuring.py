"""Measurement of a model's speed, and of the memory bandwidth that limits it."""

import resource
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch

from llama_chat.generation.breakdown import seconds_of_a_token
from llama_chat.generation.engine import Engine
from llama_chat.generation.events import Finish
from llama_chat.generation.sampling import Sampler
from llama_chat.settings.sampling import Sampling

_READ_BYTES = 2**30
"""Bytes summed to measure bandwidth: far more than any CPU cache holds."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """Speeds of one model on one machine; medians over the rounds."""

    prefill_tok_s: float
    decode_tok_s: float
    ttft_s: float
    bandwidth_gb_s: float
    """Read bandwidth of the memory that holds the weights."""
    bandwidth_used: float
    """Fraction of it that decode reaches, if each weight and cached row is read once per token."""
    kernel: str
    threads: int
    peak_rss_mb: int
    token_ms: dict[str, float]
    """Milliseconds of each part of decoding one token; see ``seconds_of_a_token``."""

    def as_dict(self) -> dict[str, Any]:
        """Return the fields, rounded for reading."""
        return {
            key: round(value, 4) if isinstance(value, float) else value
            for key, value in asdict(self).items()
        }


def measure(engine: Engine, n_prompt: int, n_new: int, rounds: int) -> Measurement:
    """Prefill ``n_prompt`` random tokens and decode ``n_new`` greedily, ``rounds`` times.

    A further round before these warms up.
    """
    generator = torch.Generator().manual_seed(0)
    vocab_size = engine.backend.vocab_size
    ids = torch.randint(vocab_size, (n_prompt,), generator=generator).tolist()
    engine.end_ids = frozenset()  # so that each round decodes ``n_new`` tokens
    engine.draft_model = None  # the bandwidth is computed for passes over one token
    ends: list[Finish] = []
    for _ in range(rounds + 1):
        engine.cache.trim(0)
        sampler = Sampler(Sampling(temperature=0))
        events = engine.generate(ids, sampler, max_tokens=n_new, lookup=False)
        ends += [event for event in events if isinstance(event, Finish)]
    counted = ends[1:]
    peak = peak_rss()  # before the bandwidth is measured, which takes much memory itself
    token = seconds_of_a_token(engine, Sampler(Sampling(temperature=0)), n_new)
    decode_tok_s = statistics.median(end.decode_tok_s for end in counted)
    bandwidth = read_bandwidth(engine.backend.model.device)
    read = _bytes_per_token(engine, n_prompt + n_new // 2) * decode_tok_s
    return Measurement(
        prefill_tok_s=statistics.median(end.prefill_tok_s for end in counted),
        decode_tok_s=decode_tok_s,
        ttft_s=statistics.median(end.timings.ttft_s for end in counted),
        bandwidth_gb_s=bandwidth / 1e9,
        bandwidth_used=read / bandwidth,
        kernel=engine.backend.kernel_name,
        threads=torch.get_num_threads(),
        peak_rss_mb=peak // 2**20,
        token_ms={name: round(1000 * seconds, 4) for name, seconds in token.items()},
    )


def _bytes_per_token(engine: Engine, length: int) -> int:
    """Compute the bytes that decoding one token after ``length`` others must read."""
    model = engine.backend.model
    weights = model.n_bytes
    if not model.config.tie_embeddings:  # one row of the embedding is read, not all
        weights -= model.tok_embeddings.n_bytes
    return weights + model.config.kv_cache_bytes(length, engine.cache.dtype.itemsize)


def read_bandwidth(device: torch.device | str = "cpu") -> float:
    """Measure the bytes per second of summing a large float32 array: the best of six."""
    data = torch.ones(_READ_BYTES // 4, device=device)
    best = float("inf")
    for _ in range(6):
        began = time.perf_counter()
        data.sum().item()
        best = min(best, time.perf_counter() - began)
    return _READ_BYTES / best


def peak_rss() -> int:
    """Return the peak resident memory of this process, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
