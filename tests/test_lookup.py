"""Drafts change how many passes a text takes, and not one token of it."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.program import run
from llama_chat.generation.engine import Engine, choose_backend
from llama_chat.generation.events import Finish, Hooks, Timings, Token
from llama_chat.generation.lookup import (
    DRAFTS,
    LONGEST,
    SIZES,
    Drafter,
    Match,
    NGramIndex,
    PassCost,
)
from llama_chat.generation.sampling import Sampler
from llama_chat.kernels import native
from llama_chat.loading.plan import load
from llama_chat.model.transformer import Transformer
from llama_chat.settings.definitions import Sampling
from tests.model_files import SMALL, byte_tokenizer
from tests.models import random_model
from tests.test_native_forward import packed_model

needs_native = pytest.mark.skipif(
    not native.is_available(), reason="no C compiler was there at installation"
)

TOKENIZER = byte_tokenizer()
PROMPT = TOKENIZER.encode("the cat and the hat and the cat and the hat")
LOOP = TOKENIZER.encode("x")
"""Behind which the model soon repeats one token for ever."""
N_TOKENS = 90

GREEDY = Sampling(temperature=0, seed=1)
SAMPLINGS = {
    "greedy": GREEDY,
    "greedy with a penalty": Sampling(temperature=0, repeat_penalty=1.05, seed=2),
    "drawn": Sampling(temperature=1, top_k=2, seed=3),
    "drawn with a penalty": Sampling(temperature=1, top_k=2, repeat_penalty=1.1, seed=4),
    "drawn from all": Sampling(temperature=0.5, top_p=1, seed=5),
}


@pytest.fixture(scope="module")
def model() -> Transformer:
    return packed_model(SMALL, (8, 8), torch.float32)


@pytest.fixture
def free_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that can be drafted is, whatever this machine is busy with."""
    monkeypatch.setattr(PassCost, "of", lambda self, n_rows: 1.0)


def new_engine(
    model: Transformer, end_id: int | None = None, cache_dtype: torch.dtype | None = None
) -> Engine:
    """One whose texts end at ``end_id`` alone: random weights end them anywhere."""
    backend = choose_backend(model)
    engine = Engine(backend, TOKENIZER, backend.new_cache(cache_dtype))
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
    """An end, but for what drafts may change."""
    usage = replace(finish.usage, drafted_tokens=0, accepted_tokens=0)
    return replace(finish, usage=usage, timings=Timings(0, 0, 0))


def assert_alike(
    model: Transformer,
    sampling: Sampling = GREEDY,
    ids: Sequence[int] = PROMPT,
    *,
    end_id: int | None = None,
    cache_dtype: torch.dtype | None = None,
    **options: Any,
) -> Finish:
    """With lookup and without it everything is the same; returns the end with it."""
    slow, fast = (new_engine(model, end_id, cache_dtype) for _ in range(2))
    expected, expected_end = generate(slow, sampling, ids, lookup=False, **options)
    tokens, end = generate(fast, sampling, ids, **options)
    assert tokens == expected  # ids, text, log probabilities and alternatives
    assert without_times(end) == without_times(expected_end)
    assert fast.cache.ids == slow.cache.ids
    assert fast.n_read == slow.n_read
    assert expected_end.usage.drafted_tokens == 0
    return end


def one_by_one(model: Transformer, ids: Sequence[int]) -> torch.Tensor:
    """Logits behind the last of ``ids``, each of them read for itself into an empty cache."""
    backend = choose_backend(model)
    cache = backend.new_cache()
    for token_id in ids:
        logits = backend.forward([token_id], cache)
    return logits


# What must not change


@needs_native
@pytest.mark.usefixtures("free_rows")
@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_everything_is_the_same_as_without(model: Transformer, sampling: Sampling) -> None:
    usage = assert_alike(model, sampling, max_tokens=300).usage
    assert 0 < usage.accepted_tokens < usage.drafted_tokens


@needs_native
@pytest.mark.usefixtures("free_rows")
@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16])
def test_so_it_is_with_any_cache(dtype: torch.dtype) -> None:
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
def test_stop_strings_and_end_tokens_end_it_in_the_same_place(model: Transformer) -> None:
    sampling = SAMPLINGS["drawn"]
    tokens, _ = generate(new_engine(model), sampling)
    text = "".join(token.text for token in tokens)
    for at in range(10, 40):
        assert assert_alike(model, sampling, stop=[text[at : at + 3]]).reason == "stop"
        assert assert_alike(model, sampling, end_id=tokens[at].id).reason == "stop"


@needs_native
@pytest.mark.usefixtures("free_rows")
def test_an_interrupt_stops_where_it_would_stop_without(model: Transformer) -> None:
    for n_questions in range(60):
        # Asked by both texts, one after the other.
        answers = itertools.cycle([False] * n_questions + [True])
        hooks = Hooks(should_stop=answers.__next__)
        assert assert_alike(model, ids=LOOP, hooks=hooks).reason == "interrupted"


@needs_native
@pytest.mark.usefixtures("free_rows")
def test_closed_anywhere_the_cache_holds_all_but_the_last_token(model: Transformer) -> None:
    said = [token.id for token in generate(new_engine(model), ids=LOOP)[0]]
    for n in range(1, 50):
        engine = new_engine(model)
        events = engine.generate(LOOP, Sampler(GREEDY))
        for _ in range(n):
            next(events)
        assert engine.cache.ids == LOOP + said[: n - 1]
        events.close()  # type: ignore[attr-defined] # a generator
        assert engine.cache.ids == LOOP + said[: n - 1]
        # The next turn gives what it would give if no draft had ever been read.
        turn = [*LOOP, *said[:n], 40, 41, 42]
        assert engine.prefill(turn).equal(one_by_one(model, turn))


@needs_native
@pytest.mark.usefixtures("free_rows")
def test_two_texts_by_turns_leave_a_cache_that_tells_the_truth(model: Transformer) -> None:
    engine = new_engine(model)
    texts = [engine.generate(ids, Sampler(GREEDY)) for ids in (LOOP, PROMPT[:8])]
    for turn in range(40):
        for _ in range(1 + turn % 5):
            next(texts[turn % 2])
        ids = list(engine.cache.ids)
        assert engine.prefill([*ids, 5]).equal(one_by_one(model, [*ids, 5]))
        engine.cache.trim(len(ids))


@needs_native
def test_a_row_that_was_cut_off_comes_back_until_it_is_written_over(model: Transformer) -> None:
    backend = choose_backend(model)
    cache = backend.new_cache()
    backend.forward([1, 2, 3, 4], cache)
    cache.trim(2)
    assert cache.restore(3)
    assert cache.restore(4)
    assert not cache.restore(4)
    assert backend.forward([5], cache).equal(one_by_one(model, [1, 2, 3, 4, 5]))
    cache.trim(2)
    assert not cache.restore(4)  # another one lies there
    cache.trim(1)
    backend.forward([9], cache)
    assert not cache.restore(3)
    assert cache.ids == [1, 9]


# What is gained


@needs_native
@pytest.mark.usefixtures("free_rows")
def test_a_text_that_repeats_itself_takes_a_fraction_of_the_passes(model: Transformer) -> None:
    passes: list[int] = []
    # Each pass looks its tokens up once.
    embedding = model.tok_embeddings
    hook = embedding.register_forward_pre_hook(lambda _, ids: passes.append(len(ids[0])))
    _, finish = generate(new_engine(model), ids=LOOP)
    hook.remove()
    assert len(passes) == N_TOKENS - finish.usage.accepted_tokens < N_TOKENS / 3


def test_a_model_that_is_not_packed_drafts_nothing() -> None:
    _, finish = generate(new_engine(random_model(SMALL)), ids=LOOP)
    assert finish.usage.drafted_tokens == 0


TEXTS = st.lists(st.integers(0, 3), max_size=60)


def found_by_looking(ids: Sequence[int]) -> Match | None:
    """What ``NGramIndex.find`` promises, spelled out."""
    for n in SIZES:
        places = [j for j in range(n, len(ids)) if ids[j - n : j] == ids[len(ids) - n :]]
        if places:
            start = places[-1]
            lengths = range(1, min(start, LONGEST) + 1)
            same = [k for k in lengths if ids[start - k : start] == ids[len(ids) - k :]]
            return Match(start, max(same))
    return None


@given(st.lists(TEXTS, min_size=1, max_size=5))
def test_a_match_is_the_last_place_where_the_longest_n_gram_stood(texts: list[list[int]]) -> None:
    index = NGramIndex()
    for text in texts:
        index.follow(text)
        assert index.ids == text
        assert index.find() == found_by_looking(text)
        index.append(1)
        assert index.find() == found_by_looking([*text, 1])


@pytest.mark.usefixtures("free_rows")
@given(TEXTS, st.integers(0, 10))
def test_a_draft_is_what_followed_the_match(ids: list[int], room: int) -> None:
    drafter = Drafter()
    drafter.follow(ids)
    draft = drafter.draft(room)
    match = found_by_looking(ids)
    assert len(draft) == (max((n for n in DRAFTS if n <= room), default=0) if match else 0)
    if match:
        # Of the draft itself, where the match reaches up to it.
        assert draft == [*ids, *draft][match.start : match.start + len(draft)]


def teach(drafter: Drafter, ids: Sequence[int]) -> None:
    for token_id in ids:
        drafter.append(token_id)


def test_drafts_end_where_they_fail_and_begin_again_where_they_would_not() -> None:
    drafter = Drafter()
    drafter.follow([1, 2, 3, 4, 1, 2])
    assert drafter.draft(7)
    for i in range(50):  # something new follows each time
        teach(drafter, [100 + i, 1, 2])
    assert not drafter.draft(7)
    for i in range(50):  # the same follows each time
        teach(drafter, [3, 200 + i, 1, 2])
    assert drafter.draft(7)


def test_drafts_are_as_long_as_their_rows_are_cheap() -> None:
    drafter, lengths = Drafter(), []
    drafter.follow([*range(30)] * 2)
    for row in (1.0, 0.9, 0.3, 0.0):
        for _ in range(300):
            for n in (1, 2, 4, 8):
                drafter.cost.observe(n, 1 + (n - 1) * row)
        lengths.append(len(drafter.draft(7)))
    assert lengths == [0, 0, 7, 7]
    assert len(drafter.draft(6)) == 3
    for _ in range(300):
        drafter.cost.observe(8, 8.0)
    assert len(drafter.draft(7)) == 3


def test_a_pass_that_was_held_up_is_got_over() -> None:
    cost = PassCost()
    for _ in range(100):
        cost.observe(1, 1.0)
        cost.observe(4, 1.6)
    before = cost.of(4)
    cost.observe(4, 1000.0)
    assert cost.of(4) < before + 0.5
    for _ in range(100):
        cost.observe(4, 1000.0)
    assert cost.of(4) > 3.9
    for _ in range(1000):  # it is not tried, and yet not given up for ever
        cost.observe(1, 1.0)
    assert cost.of(4) < 2


# On the starter model

QUESTION = """Repeat this text word for word:

The lighthouse stood at the end of a long stone pier, a mile from the village. Every evening
the keeper climbed its hundred and twelve steps with a can of oil in one hand and a lantern in
the other. He trimmed the wick, polished the brass, and wound the clockwork of the lens."""


@needs_native
@pytest.mark.usefixtures("free_rows")
@pytest.mark.parametrize("temperature", [0.0, 0.6])
def test_a_quotation_is_foretold(starter_model: Path, temperature: float) -> None:
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
def test_it_can_be_turned_off_and_tells_what_it_did(starter_model: Path, tmp_path: Path) -> None:
    flags = ("-m", starter_model, "--temperature", "0", "--max-tokens", "60", "-v")
    on, off = (
        run("ask", QUESTION, *flags, flag, home=tmp_path) for flag in ("--lookup", "--no-lookup")
    )
    assert on.out == off.out
    assert " from drafts)" in on.err
    assert "from drafts" not in off.err
