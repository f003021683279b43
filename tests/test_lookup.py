"""Drafts change the number of forward passes of a text, but none of its tokens."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.program import run
from llama_chat.generation.backend import TorchBackend
from llama_chat.generation.engine import Engine, choose_backend
from llama_chat.generation.events import Finish, Hooks
from llama_chat.generation.lookup import (
    MAX_MATCH_LENGTH,
    NGRAM_SIZES,
    LookupDrafter,
    Match,
    NGramIndex,
)
from llama_chat.generation.sampling import Sampler
from llama_chat.generation.speculation import DRAFT_LENGTHS, Drafter, PassCost
from llama_chat.loading.plan import load
from llama_chat.model.transformer import Transformer
from llama_chat.settings.sampling import Sampling
from tests.drafts import (
    GREEDY,
    LOOP,
    N_TOKENS,
    PROMPT,
    SAMPLINGS,
    TOKENIZER,
    assert_alike,
    generate,
    make_rows_free,
    needs_native,
    new_engine,
)
from tests.model_files import SMALL
from tests.models import packed_model, random_model


@pytest.fixture(scope="module")
def model() -> Transformer:
    return packed_model(SMALL, (8, 8), torch.float32)


@pytest.fixture
def free_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    make_rows_free(monkeypatch)


def one_by_one(model: Transformer, ids: Sequence[int]) -> torch.Tensor:
    """Compute the logits of the last of ``ids``, which are read one by one into an empty cache."""
    backend = choose_backend(model)
    cache = backend.new_cache()
    for token_id in ids:
        logits = backend.forward([token_id], cache)
    return logits


# Results, which must not change


@needs_native
@pytest.mark.usefixtures("free_rows")
@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_results_are_the_same_as_without_lookup(model: Transformer, sampling: Sampling) -> None:
    usage = assert_alike(model, sampling, max_tokens=300).usage
    assert 0 < usage.accepted_tokens < usage.drafted_tokens


@needs_native
@pytest.mark.usefixtures("free_rows")
@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16])
def test_results_are_the_same_with_any_cache_dtype(dtype: torch.dtype) -> None:
    model = packed_model(SMALL, (8, 4), torch.bfloat16)
    usage = assert_alike(model, max_tokens=300, cache_dtype=dtype).usage
    assert 0 < usage.accepted_tokens < usage.drafted_tokens


@needs_native
@pytest.mark.usefixtures("free_rows")
@pytest.mark.parametrize("max_tokens", range(1, 20))
def test_a_limit_holds_in_the_middle_of_a_draft(model: Transformer, max_tokens: int) -> None:
    finish = assert_alike(model, ids=LOOP, max_tokens=max_tokens)
    assert finish.reason == "length"
    assert finish.usage.completion_tokens == max_tokens
    assert finish.usage.accepted_tokens or max_tokens < 12


@needs_native
@pytest.mark.usefixtures("free_rows")
@pytest.mark.parametrize("context", range(30, 40))
def test_the_context_may_end_in_the_middle_of_a_draft(context: int) -> None:
    model = packed_model(SMALL, (8, 8), torch.float32, context)
    finish = assert_alike(model, ids=LOOP, max_tokens=None)
    assert finish.reason == "context"
    assert finish.usage.accepted_tokens > 0
    assert finish.usage.prompt_tokens + finish.usage.completion_tokens == context


@needs_native
@pytest.mark.usefixtures("free_rows")
def test_stop_strings_and_end_tokens_end_a_text_in_the_same_place(model: Transformer) -> None:
    sampling = SAMPLINGS["drawn"]
    tokens, _ = generate(new_engine(model), sampling)
    text = "".join(token.text for token in tokens)
    for at in range(10, 40):
        assert assert_alike(model, sampling, stop=[text[at : at + 3]]).reason == "stop"
        assert assert_alike(model, sampling, end_id=tokens[at].id).reason == "stop"


@needs_native
@pytest.mark.usefixtures("free_rows")
def test_an_interrupt_stops_in_the_same_place(model: Transformer) -> None:
    for n_questions in range(60):
        # Used by both texts, one after the other.
        answers = itertools.cycle([False] * n_questions + [True])
        hooks = Hooks(should_stop=answers.__next__)
        assert assert_alike(model, ids=LOOP, hooks=hooks).reason == "interrupted"


@needs_native
@pytest.mark.usefixtures("free_rows")
def test_the_cache_of_a_closed_text_holds_all_but_its_last_token(model: Transformer) -> None:
    said = [token.id for token in generate(new_engine(model), ids=LOOP)[0]]
    for n in range(1, 50):
        engine = new_engine(model)
        events = engine.generate(LOOP, Sampler(GREEDY))
        for _ in range(n):
            next(events)
        assert engine.cache.ids == LOOP + said[: n - 1]
        events.close()  # type: ignore[attr-defined] # a generator
        assert engine.cache.ids == LOOP + said[: n - 1]
        # The next turn gives what it would give if no draft had been read.
        turn = [*LOOP, *said[:n], 40, 41, 42]
        assert engine.prefill(turn).equal(one_by_one(model, turn))


@needs_native
@pytest.mark.usefixtures("free_rows")
def test_two_texts_in_turn_leave_an_exact_cache(model: Transformer) -> None:
    engine = new_engine(model)
    texts = [engine.generate(ids, Sampler(GREEDY)) for ids in (LOOP, PROMPT[:8])]
    for turn in range(40):
        for _ in range(1 + turn % 5):
            next(texts[turn % 2])
        ids = list(engine.cache.ids)
        assert engine.prefill([*ids, 5]).equal(one_by_one(model, [*ids, 5]))
        engine.cache.trim(len(ids))


@needs_native
def test_a_trimmed_row_can_be_restored_until_it_is_overwritten(model: Transformer) -> None:
    backend = choose_backend(model)
    cache = backend.new_cache()
    backend.forward([1, 2, 3, 4], cache)
    cache.trim(2)
    assert cache.restore(3)
    assert cache.restore(4)
    assert not cache.restore(4)
    assert backend.forward([5], cache).equal(one_by_one(model, [1, 2, 3, 4, 5]))
    cache.trim(2)
    assert not cache.restore(4)  # another row is there
    cache.trim(1)
    backend.forward([9], cache)
    assert not cache.restore(3)
    assert cache.ids == [1, 9]


# Fewer passes


@needs_native
@pytest.mark.usefixtures("free_rows")
def test_a_text_that_repeats_itself_takes_a_fraction_of_the_passes(model: Transformer) -> None:
    passes: list[int] = []
    # Each pass uses the embedding once.
    embedding = model.tok_embeddings
    hook = embedding.register_forward_pre_hook(lambda _, ids: passes.append(len(ids[0])))
    _, finish = generate(new_engine(model), ids=LOOP)
    hook.remove()
    assert len(passes) == N_TOKENS - finish.usage.accepted_tokens < N_TOKENS / 3


def test_torch_drafts_nothing() -> None:
    engine = Engine(TorchBackend(random_model(SMALL)), TOKENIZER)
    engine.end_ids = frozenset()
    _, finish = generate(engine, ids=LOOP)
    assert finish.usage.drafted_tokens == 0


TEXTS = st.lists(st.integers(0, 3), max_size=60)


def found_by_looking(ids: Sequence[int]) -> Match | None:
    """Find the match that ``NGramIndex.find`` should find, by a search of all places."""
    for n in NGRAM_SIZES:
        places = [j for j in range(n, len(ids)) if ids[j - n : j] == ids[len(ids) - n :]]
        if places:
            start = places[-1]
            lengths = range(1, min(start, MAX_MATCH_LENGTH) + 1)
            same = [k for k in lengths if ids[start - k : start] == ids[len(ids) - k :]]
            return Match(start, max(same))
    return None


@given(st.lists(TEXTS, min_size=1, max_size=5))
def test_a_match_is_the_last_place_of_the_longest_n_gram(texts: list[list[int]]) -> None:
    index = NGramIndex()
    for text in texts:
        index.set_ids(text)
        assert index.ids == text
        assert index.find() == found_by_looking(text)
        index.append(1)
        assert index.find() == found_by_looking([*text, 1])


@pytest.mark.usefixtures("free_rows")
@given(TEXTS, st.integers(0, 10))
def test_a_draft_is_the_text_after_the_match(ids: list[int], limit: int) -> None:
    drafter = LookupDrafter(PassCost())
    drafter.set_ids(ids)
    draft = planned(drafter, limit)
    match = found_by_looking(ids)
    assert len(draft) == (max((n for n in DRAFT_LENGTHS if n <= limit), default=0) if match else 0)
    if match:
        # The draft continues with itself where it goes past the end of the ids.
        assert draft == [*ids, *draft][match.start : match.start + len(draft)]


def planned(drafter: Drafter, max_draft: int) -> list[int]:
    """Make the best draft of at most ``max_draft`` tokens."""
    return drafter.draft(drafter.plan(max_draft).length)


def teach(drafter: Drafter, ids: Sequence[int]) -> None:
    for token_id in ids:
        drafter.append(token_id)


def test_drafting_stops_when_drafts_fail_and_resumes_when_they_would_not() -> None:
    drafter = LookupDrafter(PassCost())
    drafter.set_ids([1, 2, 3, 4, 1, 2])
    assert planned(drafter, 7)
    for i in range(50):  # something new follows each time
        teach(drafter, [100 + i, 1, 2])
    assert not planned(drafter, 7)
    for i in range(50):  # the same follows each time
        teach(drafter, [3, 200 + i, 1, 2])
    assert planned(drafter, 7)


def test_drafts_are_longer_the_cheaper_their_rows_are() -> None:
    cost = PassCost()
    drafter, lengths = LookupDrafter(cost), []
    drafter.set_ids([*range(30)] * 2)
    for row in (1.0, 0.9, 0.3, 0.0):
        for _ in range(300):
            for n in (1, 2, 4, 8):
                cost.observe(n, 1 + (n - 1) * row)
        lengths.append(len(planned(drafter, 7)))
    assert lengths == [0, 0, 7, 7]
    assert len(planned(drafter, 6)) == 3
    for _ in range(300):
        cost.observe(8, 8.0)
    assert len(planned(drafter, 7)) == 3


def test_one_delayed_pass_changes_the_cost_little() -> None:
    cost = PassCost()
    for _ in range(100):
        cost.observe(1, 1.0)
        cost.observe(4, 1.6)
    before = cost.estimate(4)
    cost.observe(4, 1000.0)
    assert cost.estimate(4) < before + 0.5
    for _ in range(100):
        cost.observe(4, 1000.0)
    assert cost.estimate(4) > 3.9
    for _ in range(1000):  # without passes of 4 rows, their estimated cost falls again
        cost.observe(1, 1.0)
    assert cost.estimate(4) < 2


# On the starter model

QUESTION = """Repeat this text word for word:

The lighthouse stood at the end of a long stone pier, a mile from the village. Every evening
the keeper climbed its hundred and twelve steps with a can of oil in one hand and a lantern in
the other. He trimmed the wick, polished the brass, and wound the clockwork of the lens."""


@needs_native
@pytest.mark.usefixtures("free_rows")
@pytest.mark.parametrize("temperature", [0.0, 0.6])
def test_most_of_a_quotation_is_drafted(starter_model: Path, temperature: float) -> None:
    llama = load(starter_model)
    replies, accepted = [], 0.0
    for lookup in (False, True):
        sampling = Sampling(temperature=temperature, seed=1)
        session = llama.chat(sampling=sampling, lookup=lookup, max_tokens=60)
        *_, finish = session.send(QUESTION)
        assert isinstance(finish, Finish)
        assert session.engine.cache.ids == session.ids
        replies.append((session.ids, session.conversation.path()[-1].logprobs))
        accepted = finish.usage.accepted_tokens / finish.usage.completion_tokens
    assert replies[0] == replies[1]
    assert accepted > 0.5


@needs_native
def test_lookup_can_be_turned_off_and_is_reported(starter_model: Path, tmp_path: Path) -> None:
    flags = ("-m", starter_model, "--temperature", "0", "--max-tokens", "60", "-v")
    on, off = (
        run("ask", QUESTION, *flags, flag, home=tmp_path) for flag in ("--lookup", "--no-lookup")
    )
    assert on.out == off.out
    assert " from drafts)" in on.err
    assert "from drafts" not in off.err
