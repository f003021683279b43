"""The layers in C compute what the layers in torch compute."""

import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
import torch

from harness.program import environment
from llama_chat.generation.backend import TorchBackend
from llama_chat.generation.kv_cache import KVCache
from llama_chat.generation.native import NativeBackend
from llama_chat.kernels import native
from llama_chat.kernels.abi import MAX_EXACT_BATCH
from llama_chat.kernels.scratch import ScratchPool
from llama_chat.loading.plan import load
from llama_chat.model.config import LlamaConfig
from llama_chat.model.transformer import ROTARY_BLOCK, InterruptedForward
from llama_chat.quantization import linear
from tests.conftest import ROOT
from tests.models import TINY, native_backend, packed_model, random_model

pytestmark = pytest.mark.skipif(
    not native.is_available(), reason="no C compiler was there at installation"
)

CONFIGS = {
    "grouped": TINY,
    "multi-head tied": replace(TINY, n_kv_heads=8, tie_embeddings=True, hidden_dim=160),
    "in threes": replace(TINY, n_heads=6, n_kv_heads=2, head_dim=16, dim=96),
    "multi-query": replace(TINY, n_heads=6, n_kv_heads=1, head_dim=20, dim=96),
}


def rows(cache: KVCache, length: int) -> torch.Tensor:
    layers = (cache.read(layer, length, torch.float32) for layer in range(TINY.n_layers))
    return torch.stack([rows for layer in layers for rows in layer])


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kv_dtype", [None, torch.int8], ids=["floats", "int8"])
@torch.inference_mode()
def test_logits_and_cache_are_those_of_torch(
    config: LlamaConfig,
    dtype: torch.dtype,
    kv_dtype: torch.dtype | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those of each level; tiles of AMX, which quantize nothing, against unpacked weights."""
    if (config.n_heads * config.head_dim) % 32:
        config = replace(config, head_dim=32)
    model = packed_model(config, (8, 4), dtype)
    backends = {level: native_backend(model, level) for level in native.supported_levels()}
    slow = TorchBackend(model)
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(config.vocab_size, (1100,), generator=generator).tolist()
    tolerance = 0.02 if dtype == torch.float32 else 0.05  # activations are rounded to 8 bits
    # One row, a few and many, into an empty cache, across the edges of splits, and after many rows.
    few = [(0, 1), (0, 8), (3, 2), (254, 5), (256, 1), (511, 3), (1030, 7)]
    cases = [*few, (0, 9), (0, 150), (100, 64), (700, 300)]
    cache = slow.new_cache(kv_dtype)
    for at in range(0, 1030, 500):
        slow.forward(ids[at : min(1030, at + 500)], cache)
    for start, n_new in sorted(cases, reverse=True):  # rows that are overwritten are read no more
        new, other = ids[start : start + n_new], ids[-n_new:]
        for level, backend in backends.items():
            unpacks = level == "amx" and n_new > MAX_EXACT_BATCH
            monkeypatch.setattr(linear, "prefers_unpacked", lambda *_, unpacks=unpacks: unpacks)
            cache.trim(start)
            expected = slow.forward(new, cache, all_logits=True)
            wanted = rows(cache, start + n_new)
            for these in (other, new):  # nothing is left of what another one wrote
                cache.trim(start)
                got = backend.forward(these, cache, all_logits=True)
            assert got.shape == (n_new, config.vocab_size)
            assert (got - expected).norm() < tolerance * expected.norm(), level
            written = rows(cache, start + n_new)
            assert (written - wanted).norm() < tolerance * wanted.norm(), level
            assert cache.ids == ids[: start + n_new]


@torch.inference_mode()
def test_a_sequence_goes_past_the_rotary_tables() -> None:
    found = []
    for reserved in (1, 2 * ROTARY_BLOCK):
        config = replace(TINY, n_layers=1)
        model = packed_model(config, (8, 4), torch.float32, context=2 * ROTARY_BLOCK)
        backend = native_backend(model)
        backend.model.rotary(reserved, backend.model.device)
        cache = backend.new_cache()
        for n_new in (ROTARY_BLOCK - 1, 1, 1, 20):  # up to the edge of a block, and past it
            logits = backend.forward([5] * n_new, cache)
        found.append(logits)
    assert found[0].equal(found[1])


@pytest.mark.parametrize("level", native.supported_levels())
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@torch.inference_mode()
def test_a_few_tokens_together_give_what_they_give_one_by_one(
    level: str, config: LlamaConfig
) -> None:
    """Bit for bit: a reply must not depend on the batches in which tokens were read."""
    if (config.n_heads * config.head_dim) % 32:
        config = replace(config, head_dim=32)
    backend = native_backend(packed_model(config, (8, 4), torch.bfloat16), level)
    ids = list(range(1, 301))
    one_by_one = backend.new_cache()
    single = torch.stack([backend.forward([token_id], one_by_one) for token_id in ids])
    for n in range(2, 9):
        batched = backend.new_cache()
        for at in range(0, len(ids), n):
            several = backend.forward(ids[at : at + n], batched, all_logits=True)
            assert several.equal(single[at : at + n])


@torch.inference_mode()
def test_many_tokens_give_all_logits_or_the_last() -> None:
    backend = native_backend(packed_model(TINY, (8, 8), torch.float32))
    ids = list(range(1, 300))
    every = backend.forward(ids, backend.new_cache(), all_logits=True)
    last = backend.forward(ids, backend.new_cache())
    assert every.shape == (299, TINY.vocab_size)
    assert last.equal(every[-1])


@torch.inference_mode()
def test_a_pass_is_stopped_between_two_layers_or_before_it_if_it_is_short(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend = native_backend(packed_model(TINY, (8, 8), torch.float32))
    cache = backend.new_cache()
    backend.forward([1, 2, 3], cache)

    def times_asked(stop_at: int) -> int:
        asked: list[int] = []

        def should_stop() -> bool:
            asked.append(0)
            return len(asked) == stop_at

        with suppress(InterruptedForward):
            backend.forward(list(range(100)), cache, should_stop=should_stop)
            assert len(asked) < stop_at
        return len(asked)

    assert times_asked(1) == 1
    assert cache.ids == [1, 2, 3]
    assert times_asked(2) == 1
    assert cache.ids == [1, 2, 3, *range(100)]
    monkeypatch.setattr("llama_chat.generation.native._SHORT_PRODUCTS", 100)
    assert times_asked(TINY.n_layers) == TINY.n_layers
    assert cache.ids == [1, 2, 3, *range(100)]


@torch.inference_mode()
def test_some_matrices_may_be_floats() -> None:
    config = replace(TINY, dim=72, n_heads=9, n_kv_heads=3)  # rows that cannot be packed
    model = packed_model(config, (8, 8), torch.float32)
    assert model.blocks[0].attention.wq.packed is None
    assert model.blocks[0].feed_forward.w2.packed is not None
    if not native.multiplies_floats():
        assert NativeBackend.create(model) is None
        return
    fast, slow = native_backend(model), TorchBackend(model)
    got, expected = (
        backend.forward(list(range(60)), backend.new_cache(), all_logits=True)
        for backend in (fast, slow)
    )
    assert (got - expected).norm() < 0.02 * expected.norm()  # activations are rounded to 8 bits


T = TypeVar("T")


def in_a_fresh_thread(call: Callable[[], T]) -> T:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


@pytest.mark.parametrize("level", native.supported_levels())
@pytest.mark.parametrize("n_new", [1, 40])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_threads_asked_for_take_part(threads: int, n_new: int, level: str) -> None:
    """The number does not depend on the Python thread that calls."""
    backend = native_backend(packed_model(TINY, (8, 4), torch.bfloat16), level)
    backend.threads = threads

    def run() -> tuple[torch.Tensor, int]:
        logits = backend.forward(list(range(n_new)), backend.new_cache(), all_logits=True)
        return logits, backend.kernels.take_times().n_threads

    logits, took_part = in_a_fresh_thread(run)
    assert took_part == threads
    assert backend.kernels.take_times().n_threads == 0  # this thread has run nothing
    again, took_part = run()
    assert took_part == threads
    backend.threads = 1
    alone, _ = run()
    assert logits.equal(again)
    assert logits.equal(alone)


@pytest.mark.skipif(
    not (native.supported_levels() and native.describe()["has_openmp"]), reason="no OpenMP here"
)
def test_a_smaller_team_than_asked_for_gives_the_same(tmp_path: Path) -> None:
    code = """
import torch
from tests.models import TINY, native_backend, packed_model

def run(n_new, threads):
    backend.threads = threads
    logits = backend.forward(list(range(n_new)), backend.new_cache(), all_logits=True)
    return logits, backend.kernels.take_times().n_threads

backend = native_backend(packed_model(TINY, (8, 4), torch.bfloat16))
for n_new in (1, 8, 40):
    (alone, _), (limited, team) = run(n_new, 1), run(n_new, 5)
    assert alone.equal(limited)
    assert team <= 2, team
"""
    env = environment(tmp_path, OMP_THREAD_LIMIT="2", PYTHONPATH=str(ROOT))
    subprocess.run([sys.executable, "-c", code], env=env, timeout=120, check=True)


def test_a_model_computes_in_the_threads_that_it_was_loaded_with(gguf_model: Path) -> None:
    before = torch.get_num_threads()
    try:
        backends = [load(gguf_model, quantize="int8", threads=n).backend for n in (1, 2)]
        for backend, n in zip(backends, (1, 2), strict=True):
            assert isinstance(backend, NativeBackend)

            def run(backend: NativeBackend = backend) -> int:
                backend.forward([1, 2, 3], backend.new_cache())
                return backend.kernels.take_times().n_threads

            assert in_a_fresh_thread(run) == n
    finally:
        torch.set_num_threads(before)


def test_torch_follows_the_number_of_threads_in_every_thread() -> None:
    before = torch.get_num_threads()
    backend = TorchBackend(random_model(), threads=1)

    def run() -> int:
        torch.set_num_threads(2)
        backend.forward([1, 2, 3], backend.new_cache())
        return torch.get_num_threads()

    assert in_a_fresh_thread(run) == 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("level", native.supported_levels())
@pytest.mark.parametrize("kv_dtype", [None, torch.int8], ids=["floats", "int8"])
def test_two_sessions_in_two_threads_do_not_disturb_each_other(
    level: str, kv_dtype: torch.dtype | None
) -> None:
    """The logits are equal bit for bit, and each session has separate times."""
    backend = native_backend(packed_model(TINY, (8, 4), torch.bfloat16), level)
    backend.threads = 1
    generator = torch.Generator().manual_seed(5)
    scripts = [
        [torch.randint(TINY.vocab_size, (n,), generator=generator).tolist() for n in sizes]
        for sizes in ([40, 1, 3, 1, 90, 8, 1, 1], [1, 8, 70, 1, 1, 2, 33, 1])
    ]

    def run(script: list[list[int]], start: Callable[[], object]) -> list[torch.Tensor]:
        cache = backend.new_cache(kv_dtype)
        backend.kernels.take_times()
        start()
        logits = [backend.forward(ids, cache, all_logits=True) for ids in script]
        assert backend.kernels.take_times().n_threads == 1
        return logits

    expected = [run(script, lambda: None) for script in scripts]
    barrier = threading.Barrier(len(scripts), timeout=60)
    with ThreadPoolExecutor(len(scripts)) as pool:
        for _ in range(40):
            sessions = [pool.submit(run, script, barrier.wait) for script in scripts]
            for session, logits in zip(sessions, expected, strict=True):
                for got, wanted in zip(session.result(), logits, strict=True):
                    assert got.equal(wanted)


def test_scratch_memory_is_reused() -> None:
    pool = ScratchPool()

    def borrow_two() -> set[int]:
        with pool.borrow(1000) as first, pool.borrow(10) as second:
            return {first.data_ptr(), second.data_ptr()}

    addresses = borrow_two()
    assert len(addresses) == 2
    for n_bytes in (0, 5, 10):
        with pool.borrow(n_bytes) as buffer:
            assert buffer.data_ptr() in addresses
            assert len(buffer) >= n_bytes
    assert borrow_two() == addresses
    with pytest.raises(KeyboardInterrupt), pool.borrow(10):
        raise KeyboardInterrupt
    assert borrow_two() == addresses
