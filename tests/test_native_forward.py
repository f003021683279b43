"""The layers in C compute what the layers in torch compute."""

from dataclasses import replace

import pytest
import torch

from llama_chat.kernels import native
from llama_chat.model.config import LlamaConfig
from llama_chat.model.kv_cache import KVCache
from llama_chat.model.quantization import place, quantize
from llama_chat.model.transformer import Transformer
from tests.models import TINY, random_model

pytestmark = pytest.mark.skipif(
    not native.available, reason="no C compiler was there at installation"
)

CONFIGS = {
    "grouped": TINY,
    "multi-head tied": replace(TINY, n_kv_heads=8, tie_embeddings=True, hidden_dim=160),
    "multi-query": replace(TINY, n_heads=6, n_kv_heads=1, head_dim=20, dim=96),
}


def packed_model(config: LlamaConfig, bits: tuple[int, int], dtype: torch.dtype) -> Transformer:
    """A random model with packed matrices, those of V and W2 in another layout than the rest."""
    model = random_model(replace(config, context_length=2048))
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
    keys, values = cache.buffers
    return torch.stack([t[:, :, :length].float() for t in (*keys, *values)])


@pytest.mark.parametrize("level", native.levels(), ids=lambda level: native.LEVELS[level])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_logits_and_cache_are_those_of_torch(
    level: int, config: LlamaConfig, dtype: torch.dtype
) -> None:
    if (config.n_heads * config.head_dim) % 32:
        config = replace(config, head_dim=32)
    fast = packed_model(config, (8, 4), dtype)
    assert fast.native is not None
    fast.native.level = level
    slow = without_native(packed_model(config, (8, 4), dtype))
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(config.vocab_size, (1100,), generator=generator).tolist()
    # One row and several, into an empty cache, across the edges of runs, and far behind.
    for start, n_new in [(0, 1), (0, 8), (3, 2), (254, 5), (256, 1), (511, 3), (1030, 7)]:
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


@torch.inference_mode()
def test_one_token_at_a_time_is_the_same_as_several() -> None:
    model = packed_model(TINY, (8, 8), torch.float32)
    ids = list(range(1, 300))
    together, apart = model.new_cache(), model.new_cache()
    for at in range(0, len(ids), 5):
        several = model(ids[at : at + 5], together, all_logits=True)
        single = torch.stack([model([token_id], apart) for token_id in ids[at : at + 5]])
        torch.testing.assert_close(several, single, rtol=1e-4, atol=1e-4)


def test_a_model_with_one_matrix_of_floats_is_left_to_torch() -> None:
    config = replace(TINY, dim=72, n_heads=9, n_kv_heads=3)  # rows that cannot be packed
    assert packed_model(config, (8, 8), torch.float32).native is None
    assert random_model().native is None
