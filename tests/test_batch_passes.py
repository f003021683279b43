"""A pass over several sequences gives each the same as alone: with the kernels, bit for bit."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from llama_chat.generation.backend import PREFILL_CHUNK, Backend, Extension, TorchBackend
from llama_chat.generation.engine import Engine
from llama_chat.generation.kv_cache import KVCache
from llama_chat.kernels import native
from llama_chat.model.config import LlamaConfig
from tests.model_files import byte_tokenizer
from tests.models import TINY, native_backend, packed_model, random_model

needs_kernels = pytest.mark.skipif(
    not native.is_available(), reason="no C compiler was there at installation"
)
CONFIGS = {
    "grouped": TINY,
    "multi-head": replace(TINY, n_kv_heads=8),
    "padded heads": replace(TINY, n_heads=8, n_kv_heads=1, head_dim=20, dim=96),
}
LEVELS_AND_SHAPES = [
    (level, shape)
    for level in native.supported_levels()
    for shape in CONFIGS
    # Portable C takes ten times as long, for all shapes by the same code.
    if level != "portable" or shape == "padded heads"
]
LENGTHS = ((0, 1), (3, 2), (254, 5), (300, 1), (64, 8), (0, 40), (70, 9), (511, 1), (5, 130))
"""Tokens cached and new, of sequences that share a pass: exact ones and prompts."""


def ids_of(sequence: int, n: int) -> list[int]:
    return [(7 * sequence + 3 * i + i * i // 5) % TINY.vocab_size for i in range(n)]


def filled(backend: Backend, ids: Sequence[int], kv_dtype: torch.dtype | None) -> KVCache:
    cache = backend.new_cache(kv_dtype)
    if ids:
        backend.forward(ids, cache)
    return cache


def together(backend: Backend, caches: Sequence[KVCache], n_logits: int = 1) -> list[Tensor]:
    extensions = []
    for i, ((start, n_new), cache) in enumerate(zip(LENGTHS, caches, strict=True)):
        ids = ids_of(i, start + n_new)[start:]
        extensions.append(Extension(ids, cache, min(n_logits, n_new)))
    return backend.forward_batch(extensions)


def backends(config: LlamaConfig, level: str) -> list[Backend]:
    """Backends of packed weights, and of floats of both sizes."""
    packed = packed_model(replace(config, head_dim=32), (8, 4), torch.float32)
    floats = [random_model(config).to(dtype) for dtype in (torch.float32, torch.bfloat16)]
    return [native_backend(model, level) for model in (packed, *floats)]


@needs_kernels
@pytest.mark.parametrize(("level", "shape"), LEVELS_AND_SHAPES)
@torch.inference_mode()
def test_sequences_in_one_pass_get_what_they_get_alone(level: str, shape: str) -> None:
    config = CONFIGS[shape]
    for backend in backends(config, level):
        for kv_dtype in (None, torch.int8):
            caches = [
                [
                    filled(backend, ids_of(i, start), kv_dtype)
                    for i, (start, _) in enumerate(LENGTHS)
                ]
                for _ in range(2)
            ]
            got = together(backend, caches[0], n_logits=3)
            for i, (start, n_new) in enumerate(LENGTHS):
                ids = ids_of(i, start + n_new)[start:]
                [alone] = backend.forward_batch([Extension(ids, caches[1][i], min(3, n_new))])
                assert got[i].equal(alone), f"sequence {i}"
                for layer in range(config.n_layers):
                    mine, other = (
                        each[i].read(layer, start + n_new, torch.float32) for each in caches
                    )
                    assert mine[0].equal(other[0])
                    assert mine[1].equal(other[1])


@pytest.mark.parametrize("n_logits", [0, 1, 3])
@torch.inference_mode()
def test_torch_computes_several_sequences_up_to_rounding(n_logits: int) -> None:
    backend = TorchBackend(random_model(TINY))
    caches = [filled(backend, ids_of(i, start), None) for i, (start, _) in enumerate(LENGTHS)]
    for i, logits in enumerate(together(backend, caches, n_logits)):
        ids = ids_of(i, sum(LENGTHS[i]))
        alone = backend.forward(ids, backend.new_cache(), all_logits=True)
        expected = alone[len(alone) - min(n_logits, LENGTHS[i][1]) :]
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
        assert caches[i].ids == ids


@torch.inference_mode()
def test_torch_multiplies_each_matrix_once_for_all_sequences() -> None:
    model = random_model(TINY)
    backend, passed = TorchBackend(model), []
    model.blocks[0].attention.wq.register_forward_hook(lambda *seen: passed.append(seen[2].shape))
    caches = [backend.new_cache() for _ in range(3)]
    backend.forward_batch([Extension(ids_of(i, i + 1), each) for i, each in enumerate(caches)])
    assert [tuple(shape[:2]) for shape in passed] == [(1, 6)]


@needs_kernels
@pytest.mark.parametrize(("level", "shape"), LEVELS_AND_SHAPES)
@torch.inference_mode()
def test_a_shared_prefix_gives_what_a_copy_of_it_gives(level: str, shape: str) -> None:
    """Whatever row it ends at, and through forks of forks."""
    head = ids_of(0, 400)
    for backend in backends(CONFIGS[shape], level)[:2]:
        for kv_dtype in (None, torch.int8):
            prefix = filled(backend, head, kv_dtype)
            for end in (1, 64, 100, 255, 256, 257, 400):
                shared, copied = prefix.fork(end), filled(backend, head, kv_dtype)
                copied.trim(end)
                for step, n_new in enumerate((1, 12, 3, 1)):
                    ids = ids_of(end + step, n_new)
                    got, expected = (backend.forward(ids, cache) for cache in (shared, copied))
                    assert got.equal(expected), f"{end}, step {step}"
                    shared = shared.fork(shared.length)


@needs_kernels
@pytest.mark.parametrize("level", native.supported_levels())
@torch.inference_mode()
def test_a_prompt_gives_the_same_in_any_chunks(level: str) -> None:
    """Of more tokens than are exact: so a chunk may be cut to what a pass has room for."""
    ids = ids_of(1, 510)
    for backend in backends(TINY, level):
        whole = backend.forward(ids, backend.new_cache())
        for cuts in ((128, 256, 384), (100, 237, 450), (9, 18, 400, 413)):
            cache = backend.new_cache()
            for start, end in pairwise((0, *cuts, len(ids))):
                logits = backend.forward(ids[start:end], cache)
            assert logits.equal(whole)


@needs_kernels
@pytest.mark.parametrize("n_rest", [1, 4, 8, 9])  # up to eight would be evaluated as single ones
@torch.inference_mode()
def test_logits_of_all_tokens_are_those_of_a_prefill(n_rest: int) -> None:
    ids = ids_of(1, PREFILL_CHUNK + n_rest)
    model = packed_model(replace(TINY, context_length=2 * PREFILL_CHUNK), (8, 4), torch.float32)
    engine = Engine(native_backend(model), byte_tokenizer())
    assert engine.logits(ids)[-1].equal(engine.prefill(ids))
