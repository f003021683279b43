"""Texts generated with drafts, compared with the same texts without."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from llama_chat.generation.draft_model import ModelDrafter
from llama_chat.generation.engine import Engine, choose_backend
from llama_chat.generation.events import Finish, Timings, Token
from llama_chat.generation.sampling import Sampler
from llama_chat.generation.speculation import PassCost
from llama_chat.kernels import native
from llama_chat.model.transformer import Transformer
from llama_chat.settings.sampling import Sampling
from tests.model_files import byte_tokenizer

needs_native = pytest.mark.skipif(
    not native.is_available(), reason="no C compiler was there at installation"
)

TOKENIZER = byte_tokenizer()
PROMPT = TOKENIZER.encode("the cat and the hat and the cat and the hat")
LOOP = TOKENIZER.encode("x")
"""Prompt after which the model soon repeats one token forever."""
N_TOKENS = 90

GREEDY = Sampling(temperature=0, seed=1)
SAMPLINGS = {
    "greedy": GREEDY,
    "greedy with a penalty": Sampling(temperature=0, repeat_penalty=1.05, seed=2),
    "drawn": Sampling(temperature=1, top_k=2, seed=3),
    "drawn with a penalty": Sampling(temperature=1, top_k=2, repeat_penalty=1.1, seed=4),
    "drawn from all": Sampling(temperature=0.3, top_p=1, seed=9),
}


def make_rows_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make drafts cost nothing, so that drafting does not depend on measured times."""
    monkeypatch.setattr(PassCost, "estimate", lambda self, n_rows: 1.0)
    monkeypatch.setattr(ModelDrafter, "token_cost", lambda self: 0.0)


def new_engine(
    model: Transformer,
    end_id: int | None = None,
    cache_dtype: torch.dtype | None = None,
    draft: Transformer | None = None,
) -> Engine:
    """Make an engine whose texts end only at ``end_id``: random weights would end them anywhere."""
    backend = choose_backend(model)
    drafts = None if draft is None else choose_backend(draft)
    engine = Engine(backend, TOKENIZER, backend.new_cache(cache_dtype), draft=drafts)
    engine.end_ids = frozenset() if end_id is None else frozenset([end_id])
    return engine


def generate(
    engine: Engine, sampling: Sampling = GREEDY, ids: Sequence[int] = PROMPT, **options: Any
) -> tuple[list[Token], Finish]:
    options = {"max_tokens": N_TOKENS, **options}
    *tokens, finish = engine.generate(ids, Sampler(sampling, with_logprobs=True), **options)
    assert isinstance(finish, Finish)
    return [token for token in tokens if isinstance(token, Token)], finish


def without_times(finish: Finish) -> Finish:
    """Return an end without the times and counts that drafts may change."""
    usage = replace(finish.usage, drafted_tokens=0, accepted_tokens=0)
    return replace(finish, usage=usage, timings=Timings(0, 0, 0))


def assert_alike(
    model: Transformer,
    sampling: Sampling = GREEDY,
    ids: Sequence[int] = PROMPT,
    *,
    end_id: int | None = None,
    cache_dtype: torch.dtype | None = None,
    draft: Transformer | None = None,
    lookup: bool = True,
    **options: Any,
) -> Finish:
    """Check that a text is the same without and with drafts; returns its end with drafts."""
    slow = new_engine(model, end_id, cache_dtype)
    fast = new_engine(model, end_id, cache_dtype, draft)
    expected, expected_end = generate(slow, sampling, ids, lookup=False, **options)
    tokens, end = generate(fast, sampling, ids, lookup=lookup, **options)
    assert tokens == expected  # ids, text, log probabilities and alternatives
    assert without_times(end) == without_times(expected_end)
    assert fast.cache.ids == slow.cache.ids
    assert fast.n_evaluated == slow.n_evaluated
    assert expected_end.usage.drafted_tokens == 0
    return end
