"""The likeliest tokens are found by the kernels of each level, and by torch, alike."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llama_chat.errors import ModelError
from llama_chat.generation.likeliest import (
    Likeliest,
    Search,
    _find_in_torch,
    find_all,
    likeliest,
)
from llama_chat.kernels import native
from llama_chat.kernels.likeliest import Found, find_likeliest

FINDERS: dict[str, Callable[[Sequence[torch.Tensor], int, float], list[Found]]] = {
    "torch": _find_in_torch,
    **{level: partial(find_likeliest, level=level) for level in native.supported_levels()},
}


@pytest.mark.parametrize("name", FINDERS)
@given(
    n=st.integers(1, 3000),
    k=st.integers(1, 300),
    n_values=st.sampled_from([1, 3, 1000]),
    factor=st.sampled_from([1.0, 0.25, 1.7, 1e30]),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_first_are_those_of_a_sorted_vocabulary(
    name: str, n: int, k: int, n_values: int, factor: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(n_values, (n,), generator=generator) / max(n_values - 1, 1) * 40 - 20
    logits[torch.rand(n, generator=generator) < 0.1] = -torch.inf
    logits[0] = 20  # at least one is possible
    values, order = logits.sort(descending=True, stable=True)
    k = min(k, n)
    found = Likeliest(*FINDERS[name]([logits], k, factor)[0])
    assert list(found.logits) == values[:k].tolist()
    if name == "torch":  # of equal ones it may find others
        assert logits[list(found.ids)].equal(values[:k])
    else:
        assert list(found.ids) == order[:k].tolist()
    exact = logits.double()
    assert found.normaliser == pytest.approx(float(exact.logsumexp(-1)), rel=1e-6)
    total = ((exact - exact.max()) * factor).exp().sum()
    assert found.total == pytest.approx(float(total), rel=1e-5)


@pytest.mark.parametrize("n", [32000, 49152, 49153, 128256])
@pytest.mark.parametrize("level", native.supported_levels())
def test_whole_vocabularies(level: str, n: int) -> None:
    logits = torch.randn(n, generator=torch.Generator().manual_seed(n)) * 3
    found = Likeliest(*find_likeliest([logits], 256, 1 / 0.6, level)[0])
    values, order = logits.sort(descending=True, stable=True)
    assert found.ids == order[:256].tolist()
    probabilities = (logits.double() / 0.6).softmax(-1)
    first = math.exp(0) / found.total
    assert first == pytest.approx(float(probabilities[order[0]]), rel=1e-5)
    assert values[0] == found.logits[0]


@pytest.mark.parametrize("place", [0, 7, 31, 32, 99, 100])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_one_logit_that_is_no_number_is_an_error(place: int, value: float) -> None:
    logits = torch.zeros(101)
    logits[place] = value
    with pytest.raises(ModelError, match="not a number"):
        likeliest(logits, Search(5))


def test_a_vocabulary_of_which_nothing_is_possible_is_an_error() -> None:
    with pytest.raises(ModelError, match="not a number"):
        likeliest(torch.full((40,), -math.inf), Search(5))


@pytest.mark.parametrize("name", FINDERS)
@given(
    n_rows=st.integers(2, 9),
    n=st.sampled_from([5, 600, 5000, 40000]),
    k=st.sampled_from([1, 5, 256]),
    seed=st.integers(0, 2**32 - 1),
)
def test_rows_are_searched_together_as_alone(
    name: str, n_rows: int, n: int, k: int, seed: int
) -> None:
    rows = torch.randn((n_rows, n), generator=torch.Generator().manual_seed(seed)).unbind()
    k = min(k, n)
    together = FINDERS[name](rows, k, 1.7)
    assert together == [FINDERS[name]([row], k, 1.7)[0] for row in rows]


def test_a_row_that_is_no_number_is_an_error_of_that_row_alone() -> None:
    rows = [torch.zeros(101), torch.full((101,), math.nan), torch.arange(101.0)]
    found = find_all(rows, Search(1))
    assert [found[0].check().ids[0], found[2].check().ids[0]] == [0, 100]
    with pytest.raises(ModelError, match="not a number"):
        found[1].check()
