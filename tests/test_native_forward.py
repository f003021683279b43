"""The layers in C compute what the layers in torch compute."""

from dataclasses import replace

import pytest
import torch

from llama_chat.kernels import native
from llama_chat.model.config import LlamaConfig
from llama_chat.model.kv_cache import KVCache
from llama_chat.model.quantization import place, quantize
from llama_chat.model.transformer import InterruptedForward, Transformer
from tests.models import TINY, random_model

pytestmark = pytest.mark.skipif(
    not native.is_available(), reason="no C compiler was there at installation"
)

CONFIGS = {
    "grouped": TINY,
    "multi-head tied": replace(TINY, n_kv_heads=8, tie_embeddings=True, hidden_dim=160),
    "in threes": replace(TINY, n_heads=6, n_kv_heads=2, head_dim=16, dim=96),
    "multi-query": replace(TINY, n_heads=6, n_kv_heads=1, head_dim=20, dim=96),
}


def packed_model(
    config: LlamaConfig, bits: tuple[int, int], dtype: torch.dtype, context: int = 2048
) -> Transformer:
    """A random model with packed matrices, those of V and W2 in another layout than the rest."""
    model = random_model(replace(config, context_length=context))
    weights: dict[str, object] = {}
    for name, weight in model.named_parameters():
        usual = 0 if ".wv" not in name and ".w2" not in name else 1
        packable = weight.dim() == 2 and weight.shape[1] % 32 == 0
        if packable:
            weights[name] = place(quantize(weight, bits[usual]), weight.device)  # type: ignore[arg-type]
        else:
            weights[name] = weight.to(dtype)
    model.load_weights(weights)  # type: ignore[arg-type]
    return model


def without_native(model: Transformer) -> Transformer:
    model.__dict__["native"] = None
    return model


def rows(cache: KVCache, length: int) -> torch.Tensor:
    layers = (cache.read(layer, length, torch.float32) for layer in range(TINY.n_layers))
    return torch.stack([rows for layer in layers for rows in layer])


@pytest.mark.parametrize("level", native.supported_levels())
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kv_dtype", [None, torch.int8], ids=["floats", "int8"])
@torch.inference_mode()
def test_logits_and_cache_are_those_of_torch(
    level: str, config: LlamaConfig, dtype: torch.dtype, kv_dtype: torch.dtype | None
) -> None:
    if (config.n_heads * config.head_dim) % 32:
        config = replace(config, head_dim=32)
    fast = packed_model(config, (8, 4), dtype)
    assert fast.native is not None
    fast.native.level = level
    slow = without_native(packed_model(config, (8, 4), dtype))
    fast.kv_dtype = slow.kv_dtype = kv_dtype
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(config.vocab_size, (1100,), generator=generator).tolist()
    # One row, a few and many, into an empty cache, across the edges of runs, and far behind.
    few = [(0, 1), (0, 8), (3, 2), (254, 5), (256, 1), (511, 3), (1030, 7)]
    for start, n_new in [*few, (0, 9), (0, 150), (100, 64), (700, 300)]:
        caches = fast.new_cache(), slow.new_cache()
        for cache in caches:
            for at in range(0, start, 500):
                slow(ids[at : min(start, at + 500)], cache)
        got, expected = (
            model(ids[start : start + n_new], cache, all_logits=True)
            for model, cache in zip((fast, slow), caches, strict=True)
        )
        tolerance = 0.02 if dtype == torch.float32 else 0.05  # activations are rounded to 8 bits
        assert got.shape == (n_new, config.vocab_size)
        assert (got - expected).norm() < tolerance * expected.norm()
        written, wanted = (rows(cache, start + n_new) for cache in caches)
        assert (written - wanted).norm() < tolerance * wanted.norm()
        assert caches[0].ids == caches[1].ids


@pytest.mark.parametrize("level", native.supported_levels())
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@torch.inference_mode()
def test_a_few_tokens_together_give_what_they_give_one_by_one(
    level: str, config: LlamaConfig
) -> None:
    """Bit for bit: which of them were read together must not show in a reply."""
    if (config.n_heads * config.head_dim) % 32:
        config = replace(config, head_dim=32)
    model = packed_model(config, (8, 4), torch.bfloat16)
    assert model.native is not None
    model.native.level = level
    ids = list(range(1, 301))
    apart = model.new_cache()
    single = torch.stack([model([token_id], apart) for token_id in ids])
    for n in range(2, 9):
        together = model.new_cache()
        for at in range(0, len(ids), n):
            several = model(ids[at : at + n], together, all_logits=True)
            assert several.equal(single[at : at + n])


@torch.inference_mode()
def test_many_tokens_give_the_logits_that_are_asked_for() -> None:
    model = packed_model(TINY, (8, 8), torch.float32)
    ids = list(range(1, 300))
    every = model(ids, model.new_cache(), all_logits=True)
    last = model(ids, model.new_cache())
    assert every.shape == (299, TINY.vocab_size)
    assert last.equal(every[-1])


@torch.inference_mode()
def test_many_tokens_can_be_stopped_between_two_layers() -> None:
    model = packed_model(TINY, (8, 8), torch.float32)
    cache = model.new_cache()
    model([1, 2, 3], cache)
    asked: list[int] = []

    def should_stop() -> bool:
        asked.append(0)
        return len(asked) == TINY.n_layers

    with pytest.raises(InterruptedForward):
        model(list(range(100)), cache, should_stop=should_stop)
    assert cache.ids == [1, 2, 3]
    assert len(asked) == TINY.n_layers


def test_a_model_with_one_matrix_of_floats_is_left_to_torch() -> None:
    config = replace(TINY, dim=72, n_heads=9, n_kv_heads=3)  # rows that cannot be packed
    assert packed_model(config, (8, 8), torch.float32).native is None
    assert random_model().native is None
