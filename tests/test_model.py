"""The transformer computes what the paper and transformers compute, in any split over calls."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_chat.generation.backend import TorchBackend
from llama_chat.generation.cache_rows import BLOCK
from llama_chat.generation.kv_cache import KVCache
from llama_chat.model.attention import causal_mask, grouped_query_attention
from llama_chat.model.config import LlamaConfig
from llama_chat.model.rope import (
    MAX_CONTEXT,
    DynamicScaling,
    FrequencyDivisors,
    LinearScaling,
    Llama3Scaling,
    RopeScaling,
    apply_rotary,
    rotary_frequencies,
    rotary_tables,
)
from llama_chat.model.transformer import ROTARY_BLOCK, InterruptedForward, Transformer
from tests.models import TINY, logits_of, random_model, reference_logits, to_hugging_face

CPU = torch.device("cpu")
LLAMA_3 = Llama3Scaling(8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=64)


def ids_of(length: int, vocab_size: int = TINY.vocab_size, seed: int = 1) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    ids: list[int] = torch.randint(vocab_size, (length,), generator=generator).tolist()
    return ids


def test_rotation_is_that_of_complex_numbers() -> None:
    # Meta multiplies each pair, seen as one complex number, by e^(i angle).
    cos, sin = rotary_tables(rotary_frequencies(8, 10_000.0), range(50), CPU)
    x = torch.randn(1, 50, 3, 8)
    turned = torch.view_as_complex(x.view(1, 50, 3, 4, 2)) * torch.complex(cos, sin)[:, None]
    expected = torch.view_as_real(turned).flatten(-2)
    torch.testing.assert_close(apply_rotary(x, cos, sin), expected)


def test_rotation_of_the_docstring() -> None:
    x = torch.tensor([1.0, 2, 3, 4]).view(1, 1, 1, 4)
    turned = apply_rotary(x, torch.zeros(1, 2), torch.ones(1, 2))
    assert turned.flatten().tolist() == [-2, 1, -4, 3]


def test_rotary_tables_stay_exact_at_long_positions() -> None:
    cos, _ = rotary_tables(rotary_frequencies(64, 100_000.0), range(8000, 8192), CPU)
    position, pair = 8001, 3
    exact = torch.tensor(position / 100_000.0 ** (2 * pair / 64), dtype=torch.float64).cos()
    assert cos.dtype == torch.float32
    assert abs(cos[position - 8000, pair].item() - exact.item()) < 1e-3


def test_rotary_tables_grow_with_use_and_keep_their_rows() -> None:
    model = random_model(replace(TINY, context_length=MAX_CONTEXT))
    first = model.rotary(1, CPU)
    assert [len(table) for table in first] == [ROTARY_BLOCK, ROTARY_BLOCK]
    assert model.rotary(ROTARY_BLOCK, CPU)[0] is first[0]
    longer = model.rotary(3 * ROTARY_BLOCK - 1, CPU)
    at_once = random_model(model.config).rotary(3 * ROTARY_BLOCK - 1, CPU)
    frequencies = model.config.rope_frequencies()
    expected = rotary_tables(frequencies, range(3 * ROTARY_BLOCK), CPU)
    for table, grown, whole, right in zip(first, longer, at_once, expected, strict=True):
        assert grown[:ROTARY_BLOCK].equal(table)
        assert grown.equal(whole)
        torch.testing.assert_close(grown, right)


@pytest.mark.parametrize("split", [1, 300])
def test_a_sequence_may_go_past_the_rotary_tables(split: int) -> None:
    # Each pass begins before the end of a block, and ends after it.
    config = replace(TINY, n_layers=1, context_length=2 * ROTARY_BLOCK)
    ids, seam = ids_of(ROTARY_BLOCK + 10), ROTARY_BLOCK - split + 1
    backend, fresh = TorchBackend(random_model(config)), TorchBackend(random_model(config))
    cache = backend.new_cache()
    backend.forward(ids[:seam], cache)
    backend.forward(ids[seam : seam + split], cache)
    found = backend.forward(ids[seam + split :], cache)
    fresh.model.rotary(len(ids), CPU)
    torch.testing.assert_close(found, fresh.forward(ids, fresh.new_cache()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4, 8])
def test_grouped_attention_equals_repeated_heads(n_kv_heads: int) -> None:
    n_new, n_total, head_dim = 5, 9, 4
    q = torch.randn(1, n_new, 8, head_dim)
    k, v = torch.randn(2, 1, n_kv_heads, n_total, head_dim)
    mask = causal_mask(n_new, n_total, CPU)
    repeats = 8 // n_kv_heads
    scores = q.transpose(1, 2) @ k.repeat_interleave(repeats, 1).mT / head_dim**0.5
    weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    expected = (weights @ v.repeat_interleave(repeats, 1)).transpose(1, 2).flatten(2)
    torch.testing.assert_close(grouped_query_attention(q, k, v, mask), expected)


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        replace(TINY, n_kv_heads=8, tie_embeddings=True),
        replace(TINY, n_kv_heads=1, head_dim=16, rope_theta=100_000.0, norm_eps=1e-6),
        replace(TINY, rope_scaling=LinearScaling(4.0)),
        replace(TINY, head_dim=16, rope_scaling=LLAMA_3),
        replace(TINY, context_length=300, rope_scaling=DynamicScaling(2.0, 160)),
    ],
    ids=["grouped", "multi-head tied", "multi-query wide heads", "linear", "llama3", "dynamic"],
)
def test_logits_equal_those_of_transformers(config: LlamaConfig) -> None:
    model = random_model(config)
    ids = ids_of(300)
    ours = logits_of(model, ids)
    theirs = reference_logits(to_hugging_face(model), ids)
    assert (ours - theirs).abs().max() < 2e-4 * (theirs.max() - theirs.min())


def test_divisors_give_the_frequencies_of_the_rule_they_come_from() -> None:
    ruled = replace(TINY, head_dim=16, rope_scaling=LLAMA_3).rope_frequencies()
    divisors = rotary_frequencies(16, TINY.rope_theta) / ruled
    assert divisors.min() == 1
    assert divisors.max() == 8
    scaling = FrequencyDivisors(tuple(divisors.tolist()))
    config = replace(TINY, head_dim=16, rope_scaling=scaling)
    torch.testing.assert_close(config.rope_frequencies(), ruled)
    with pytest.raises(ValueError, match="8 rotary divisors do not fit head_dim 8"):
        replace(TINY, rope_scaling=scaling)


def test_dynamic_scaling_changes_nothing_within_the_original_context() -> None:
    config = replace(TINY, context_length=160, rope_scaling=DynamicScaling(2.0, 160))
    plain = replace(TINY, context_length=160)
    assert config.rope_frequencies().equal(plain.rope_frequencies())
    assert config.longest_context == 320
    assert (
        not replace(config, context_length=161).rope_frequencies().equal(plain.rope_frequencies())
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearScaling(0.0), "factor of the rotary scaling is 0.0, not from 0.0001"),
        (lambda: LinearScaling(1e5), "factor of the rotary scaling is 1000.*, not .* to 10,000"),
        (lambda: DynamicScaling(float("nan"), 64), "factor of the rotary scaling is nan"),
        (lambda: DynamicScaling(2.0, -1), "original_context of the rotary scaling is -1"),
        (lambda: DynamicScaling(2.0, 2**24 + 1), "original_context .* is 16777217, not from 1 to"),
        (lambda: Llama3Scaling(8.0, 4.0, 4.0, 64), "low_freq_factor 4.0 .* is not below"),
        (lambda: FrequencyDivisors((1.0, 0.0)), "divisor of the rotary scaling is 0.0"),
    ],
)
def test_impossible_scalings_are_refused_by_name(
    make: Callable[[], RopeScaling], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@settings(max_examples=30)
@given(cuts=st.lists(st.integers(1, 299), max_size=6, unique=True).map(sorted))
def test_any_split_of_the_prompt_gives_the_same_logits(cuts: list[int]) -> None:
    backend = TorchBackend(random_model())
    ids = ids_of(300)
    whole = backend.forward(ids, backend.new_cache())
    cache = backend.new_cache()
    for start, end in zip([0, *cuts], [*cuts, 300], strict=True):
        logits = backend.forward(ids[start:end], cache)
    assert list(cache.ids) == ids
    torch.testing.assert_close(logits, whole, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_cache_grows_by_blocks_and_keeps_what_it_holds() -> None:
    backend = TorchBackend(random_model())
    cache = backend.new_cache()
    assert cache.capacity == 0
    backend.forward(ids_of(10), cache)
    assert cache.capacity == BLOCK
    keys, _ = cache.write(0, *torch.zeros(2, 1, 0, TINY.n_kv_heads, TINY.head_dim))
    before = keys.clone()
    backend.forward(ids_of(BLOCK), cache)
    assert cache.capacity == 2 * BLOCK
    keys, _ = cache.write(0, *torch.zeros(2, 1, 0, TINY.n_kv_heads, TINY.head_dim))
    assert keys[:, :, :10].equal(before)


def test_cache_never_exceeds_the_context() -> None:
    config = replace(TINY, context_length=BLOCK + 3)
    cache = KVCache(config, torch.float32, [CPU])
    cache.reserve(BLOCK + 3)
    assert cache.capacity == BLOCK + 3
    with pytest.raises(ValueError, match=r"260 tokens exceed the context of 259"):
        cache.reserve(BLOCK + 4)


def test_an_interrupted_forward_pass_leaves_the_cache_as_it_was() -> None:
    backend = TorchBackend(random_model())
    ids, rest = ids_of(30), ids_of(20, seed=2)
    cache = backend.new_cache()
    backend.forward(ids, cache)
    for layers_allowed in range(TINY.n_layers):
        asked = iter([False] * layers_allowed + [True])
        with pytest.raises(InterruptedForward):
            backend.forward(rest, cache, should_stop=partial(next, asked))
        assert list(cache.ids) == ids
    warm = backend.forward(rest, cache)
    cold = backend.forward(ids + rest, backend.new_cache())
    torch.testing.assert_close(warm, cold, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("dim", 0, "dim is 0"),
        ("n_layers", -1, "n_layers is -1"),
        ("n_heads", "8", "n_heads is '8'"),
        ("n_heads", True, "n_heads is True"),
        ("n_kv_heads", 3, "n_heads 8 is no multiple of n_kv_heads 3"),
        ("n_kv_heads", 16, "no multiple"),
        ("head_dim", 7, "head_dim 7 is odd"),
        ("norm_eps", float("nan"), "norm_eps is nan"),
        ("rope_theta", 0.0, "rope_theta is 0.0"),
        ("rope_theta", float("inf"), "rope_theta is inf"),
        ("rope_theta", 1e13, "rope_theta is 10000000000000.0, not a number from 1 to 1e\\+12"),
        ("norm_eps", 2, "norm_eps is 2, not a number from 1e-12 to 1"),
        ("context_length", 2**24 + 1, "context_length is 16777217, not .* from 1 to 16777216"),
        ("vocab_size", 2**64, "vocab_size is 18446744073709551616, not a whole number"),
    ],
)
def test_impossible_shapes_are_refused_by_name(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TINY, **{field: value})  # type: ignore[arg-type] # wrong on purpose


def test_parameter_count_is_that_of_the_module() -> None:
    for config in (TINY, replace(TINY, tie_embeddings=True)):
        model = Transformer(config)
        assert config.n_parameters == sum(p.numel() for p in model.parameters())
        assert {n: tuple(p.shape) for n, p in model.named_parameters()} == config.tensor_shapes()
