"""Decoding with fixed shapes, which a GPU replays as a graph, gives the usual logits.

The graph needs a GPU; the computation that it captures also runs on a CPU.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from llama_chat.generation.backend import TorchBackend
from llama_chat.generation.batch import Scheduler
from llama_chat.generation.cache_rows import BLOCK
from llama_chat.generation.choices import score_next
from llama_chat.generation.continuation import Request
from llama_chat.generation.cuda_graph import GraphBackend, _BucketCache
from llama_chat.generation.sampling import Sampler
from llama_chat.model.transformer import ROTARY_BLOCK
from llama_chat.settings.sampling import Sampling
from tests.model_files import byte_tokenizer
from tests.models import TINY, random_model


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("context_length", [1024, 520])  # the last bucket may be a short one
@torch.inference_mode()
def test_logits_are_those_of_the_usual_pass(tied: bool, context_length: int) -> None:
    model = random_model(replace(TINY, tie_embeddings=tied, context_length=context_length))
    usual, fixed = TorchBackend(model), GraphBackend(model)
    usual_cache, fixed_cache = usual.new_cache(), fixed.new_cache()
    usual.forward(list(range(250)), usual_cache)
    fixed.forward(list(range(250)), fixed_cache)
    for token_id in range(1, 271):  # across the edges of two buckets, while the cache grows
        expected = usual.forward([token_id], usual_cache)
        found = fixed.forward([token_id], fixed_cache)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert fixed_cache.ids == usual_cache.ids
    for layer in range(TINY.n_layers):
        for rows, wanted in zip(
            fixed_cache.read(layer, 520, torch.float32),
            usual_cache.read(layer, 520, torch.float32),
            strict=True,
        ):
            torch.testing.assert_close(rows, wanted, rtol=1e-4, atol=1e-4)


class CountingBackend(GraphBackend):
    """Backend that counts the graphs it captures."""

    n_captured = 0

    def _capture(self, rows: _BucketCache) -> Callable[[], Tensor]:
        self.n_captured += 1
        return super()._capture(rows)


@torch.inference_mode()
def test_a_cache_that_grows_keeps_its_graphs() -> None:
    backend = CountingBackend(random_model(replace(TINY, context_length=4 * BLOCK)))
    cache = backend.new_cache()
    for bucket in range(1, 4):
        for _ in range(2):
            cache.trim(0)
            backend.forward([4] * (bucket * BLOCK - 1), cache)
            backend.forward([3], cache)
        assert backend.n_captured == bucket
    cache.trim(10)
    backend.forward([3], cache)
    assert backend.n_captured == 3


@pytest.mark.parametrize("layer", range(TINY.n_layers))
@torch.inference_mode()
def test_a_graph_is_captured_again_if_the_buffer_of_any_layer_moved(layer: int) -> None:
    backend = CountingBackend(random_model(TINY))
    cache = backend.new_cache()
    backend.forward([1], cache)
    backend.forward([2], cache)
    assert backend.n_captured == 1
    # As after growth that an interrupt broke off between two layers.
    cache.rows.buffers[1][layer] = cache.rows.buffers[1][layer].clone()
    backend.forward([3], cache)
    assert backend.n_captured == 2


@torch.inference_mode()
def test_a_graph_is_captured_again_if_the_rotary_tables_grew() -> None:
    backend = CountingBackend(random_model(replace(TINY, context_length=2 * ROTARY_BLOCK)))
    cache = backend.new_cache()
    cache.reserve(1)
    backend._decode(1, cache)
    backend.model.rotary(ROTARY_BLOCK, backend.model.device)
    backend._decode(2, cache)
    assert backend.n_captured == 1
    backend.model.rotary(ROTARY_BLOCK + 1, backend.model.device)
    backend._decode(3, cache)
    assert backend.n_captured == 2


@torch.inference_mode()
def test_short_sequences_of_a_long_context_stay_within_a_limit_of_memory() -> None:
    backend = GraphBackend(random_model(replace(TINY, context_length=16 * BLOCK)))
    max_bytes = 8 * BLOCK * backend.new_cache().row_bytes
    scheduler = Scheduler(
        backend, byte_tokenizer(), frozenset(), max_parallel=8, max_bytes=max_bytes
    )
    sampler = Sampler(Sampling(temperature=0))
    for n in range(8):  # the last is continued alone
        scheduler.add(Request([65 + n] * 4, sampler, max_tokens=4 + n))
    scheduler.step()
    assert scheduler.n_running == 8
    while scheduler.n_running:
        assert scheduler.n_bytes <= max_bytes
        scheduler.step()


@torch.inference_mode()
def test_choices_reserve_memory_for_themselves_alone() -> None:
    backend = GraphBackend(random_model(replace(TINY, context_length=16 * BLOCK)))
    cache = backend.new_cache()
    reserved: list[int] = []
    logits = backend.forward([1, 2, 3], cache)

    def count(_: object, inputs: tuple[Any, ...]) -> None:
        reserved.extend(span.cache.capacity for span in inputs[2])

    backend.model.register_forward_pre_hook(count)
    score_next(backend, cache, logits, [[4, 5, 6], [7, 8]])
    assert reserved == [BLOCK] * 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@torch.inference_mode()
def test_a_gpu_replays_the_graph() -> None:
    model = random_model(replace(TINY, context_length=1024)).to("cuda")
    assert GraphBackend.supports(model, model.dtype)
    usual, fixed = TorchBackend(model), GraphBackend(model)
    usual_cache, fixed_cache = usual.new_cache(), fixed.new_cache()
    usual.forward(list(range(250)), usual_cache)
    fixed.forward(list(range(250)), fixed_cache)
    for token_id in range(1, 271):
        expected = usual.forward([token_id], usual_cache)
        found = fixed.forward([token_id], fixed_cache)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
