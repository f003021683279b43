"""Sampling follows the definitions of its settings, and is repeatable with a seed."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llama_chat.errors import ModelError
from llama_chat.generation.sampling import (
    RANKED_FIRST,
    Sampler,
    keep_likely,
    penalise_repeats,
)
from llama_chat.settings.sampling import Sampling


def draws(sampling: Sampling, logits: torch.Tensor, n: int = 300) -> set[int]:
    sampler = Sampler(sampling)
    return {sampler(logits, [])[0] for _ in range(n)}


def meta_top_p(probs: torch.Tensor, p: float) -> set[int]:
    """Apply Meta's rule: a token stays if the probabilities before it sum to at most ``p``."""
    kept, before = set(), 0.0
    for token_id in probs.argsort(descending=True).tolist():
        if before <= p:
            kept.add(token_id)
        before += probs[token_id].item()
    return kept


@given(
    st.lists(st.floats(0.001, 1.0), min_size=1, max_size=12),
    st.floats(0.01, 1.0),
)
def test_top_p_keeps_what_meta_keeps(weights: list[float], p: float) -> None:
    probs = torch.tensor(weights, dtype=torch.float64)
    probs /= probs.sum()
    ranked, ids = probs.sort(descending=True)
    before = ranked.cumsum(-1) - ranked
    if ((before - p).abs() < 1e-9).any():  # on the edge, the order of additions decides
        return
    kept = keep_likely(ranked.tolist(), p)
    assert kept == ranked.tolist()[: len(kept)]
    assert set(ids[: len(kept)].tolist()) == meta_top_p(probs, p)


def test_temperature_0_is_the_likeliest_token_and_its_log_probability() -> None:
    logits = torch.tensor([0.0, 3.0, 2.0])
    token_id, logprob, _ = Sampler(Sampling(temperature=0))(logits, [])
    assert token_id == 1
    assert logprob == pytest.approx(math.log(math.exp(3) / (1 + math.exp(3) + math.exp(2))))


@pytest.mark.parametrize("temperature", [1e-300, 1e-5])
@pytest.mark.parametrize("limits", [{}, {"top_p": 1.0}, {"top_k": 2}])
def test_tiny_temperatures_do_not_overflow_and_stay_greedy(
    temperature: float, limits: dict[str, Any]
) -> None:
    logits = torch.tensor([-50.0, 80.0, 79.0])
    assert draws(Sampling(temperature=temperature, **limits), logits) == {1}


@pytest.mark.parametrize("limits", [{}, {"top_p": 1.0}, {"top_k": 4}, {"min_p": 0.01}])
@pytest.mark.parametrize("place", [0.0, 1 - 2**-53])
def test_what_is_not_allowed_is_never_drawn(place: float, limits: dict[str, Any]) -> None:
    sampler = Sampler(Sampling(temperature=2.0, **limits))
    sampler._random.random = lambda: place  # type: ignore[method-assign] # first and last possible
    allowed = bytearray([0, 1, 1, 0])
    assert sampler(torch.zeros(4), [], allowed).id in (1, 2)


@pytest.mark.parametrize("limits", [{"top_p": 1.0}, {"top_p": 0.999}, {"top_p": 1.0, "top_k": 3}])
def test_frequencies_follow_the_probabilities(limits: dict[str, Any]) -> None:
    probs = torch.tensor([0.5, 0.3, 0.2])
    sampler = Sampler(Sampling(temperature=1, seed=7, **limits))
    counts = torch.zeros(3)
    for _ in range(4000):
        counts[sampler(probs.log(), [])[0]] += 1
    # Five standard deviations: a false alarm once in millions, and the seed fixes it anyway.
    assert ((counts / 4000 - probs).abs() < 5 * (probs * (1 - probs) / 4000).sqrt()).all()


def test_top_k_and_min_p_limit_the_choice() -> None:
    logits = torch.tensor([0.4, 0.29, 0.21, 0.1]).log()
    assert draws(Sampling(temperature=1, top_p=1, top_k=2, seed=0), logits) == {0, 1}
    assert draws(Sampling(temperature=1, top_p=1, min_p=0.5, seed=0), logits) == {0, 1, 2}
    assert keep_likely([0.5, 0.3, 0.2], 1, 0.5) == [0.5, 0.3]


def test_top_p_applies_to_the_tokens_that_top_k_keeps() -> None:
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    # The probability before the second token is 0.4 / 0.7 = 0.57: above 0.5, so it is dropped.
    assert draws(Sampling(temperature=1, top_k=2, top_p=0.5, seed=0), logits) == {0}


def test_ranking_a_part_of_the_vocabulary_changes_no_choice() -> None:
    # Nearly flat, so that far more tokens than are ranked first belong to the nucleus.
    logits = torch.randn(10 * RANKED_FIRST, generator=torch.Generator().manual_seed(0)) / 10
    reached = draws(Sampling(temperature=1, top_p=0.9, seed=0), logits, 500)
    assert reached <= meta_top_p(logits.double().softmax(-1), 0.9)
    assert not reached <= set(logits.topk(RANKED_FIRST).indices.tolist())


def test_repetition_penalty_lowers_scores_of_either_sign() -> None:
    logits = torch.tensor([2.0, -2.0, 1.0])
    assert penalise_repeats(logits, [0, 1, 1], 2.0).tolist() == [1.0, -4.0, 1.0]
    assert logits.tolist() == [2.0, -2.0, 1.0]


def test_a_seed_repeats_the_draws_and_a_drawn_seed_can_be_read_back() -> None:
    logits = torch.zeros(1000)
    first, second = Sampler(Sampling(seed=3)), Sampler(Sampling(seed=3))
    assert [first(logits, []) for _ in range(9)] == [second(logits, []) for _ in range(9)]
    unseeded = Sampler(Sampling())
    again = Sampler(Sampling(seed=unseeded.seed))
    assert [unseeded(logits, []) for _ in range(9)] == [again(logits, []) for _ in range(9)]


def test_changing_the_temperature_does_not_restart_the_draws() -> None:
    logits = torch.zeros(1000)
    changed, plain = Sampler(Sampling(seed=3, top_p=1)), Sampler(Sampling(seed=3, top_p=1))
    drawn = [plain(logits, [])[0] for _ in range(4)]
    assert [changed(logits, [])[0] for _ in range(2)] == drawn[:2]
    changed.sampling = Sampling(seed=3, top_p=1, temperature=1.5)
    assert [changed(logits, [])[0] for _ in range(2)] == drawn[2:]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_and_infinite_logits_are_an_error(value: float) -> None:
    with pytest.raises(ModelError, match="not a number"):
        Sampler(Sampling(temperature=0))(torch.tensor([0.0, value]), [])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -1.0),
        ("temperature", math.nan),
        ("top_p", 0.0),
        ("top_p", 2.0),
        ("top_k", -1),
        ("min_p", 1.5),
        ("repeat_penalty", 0.0),
        ("seed", -1),
    ],
)
def test_settings_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match="is not"):
        Sampling(**{name: value})  # type: ignore[arg-type] # wrong on purpose
