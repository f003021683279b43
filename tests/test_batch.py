"""Sequences that are generated together are the same as those generated alone."""

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from llama_chat.checkpoints.generation_defaults import GenerationDefaults
from llama_chat.errors import LlamaChatError, PromptTooLongError
from llama_chat.generation.backend import Backend, TorchBackend
from llama_chat.generation.batch import BatchedSequence, Scheduler
from llama_chat.generation.continuation import Request
from llama_chat.generation.end_tokens import end_tokens
from llama_chat.generation.engine import Engine
from llama_chat.generation.events import Event, Finish, Token
from llama_chat.generation.prefix_store import MAX_PREFIXES, MIN_SHARED, total_bytes
from llama_chat.generation.sampling import Sampler
from llama_chat.kernels import native
from llama_chat.settings.sampling import Sampling
from tests import out_of_memory
from tests.model_files import byte_tokenizer
from tests.models import TINY, native_backend, packed_model, random_model

TOKENIZER = byte_tokenizer()
END_IDS = frozenset(end_tokens(TOKENIZER, GenerationDefaults()))
BACKENDS = ["torch", *(["grouped", "multi-head"] if native.is_available() else [])]
STEADY = ["grouped", "multi-head"] if native.is_available() else []
if native.has_matrix_units():
    level = next(name for name in reversed(native.supported_levels()) if name != "amx")
    STEADY = [f"{name} {level}" for name in STEADY]
STEADY = [*STEADY, "torch"]
"""Backends that compute a token of a prompt as they decode it: a reply that is continued has the
rows of decode, the same text alone those of prefill. Tiles round prompts in another way."""
HEADS = tuple([(11 * head + i * i) % 256 for i in range(n)] for head, n in enumerate((0, 40, 300)))
"""Beginnings that prompts share."""


@cache
def backend_of(name: str) -> Backend:
    if name == "torch":
        return TorchBackend(random_model(TINY))
    heads, _, level = name.partition(" ")
    config = TINY if heads == "grouped" else replace(TINY, n_kv_heads=TINY.n_heads)
    return native_backend(packed_model(config, (8, 4), torch.float32), level or None)


@cache
def alone(name: str, kv_dtype: Any, ids: tuple[int, ...], seed: int | None, n: int) -> list[int]:
    """Generate ``n`` tokens in an engine of their own."""
    backend = backend_of(name)
    engine = Engine(backend, TOKENIZER, backend.new_cache(kv_dtype))
    events = engine.generate(ids, sampler_of(seed), max_tokens=n, lookup=False)
    return [event.id for event in events if isinstance(event, Token)]


def sampler_of(seed: int | None) -> Sampler:
    """Sampler of the most likely token, or with a seed."""
    return Sampler(Sampling(temperature=0 if seed is None else 0.9, seed=seed))


def scheduler_of(name: str = BACKENDS[-1], **options: Any) -> Scheduler:
    return Scheduler(backend_of(name), TOKENIZER, END_IDS, **{"max_parallel": 4, **options})


def run(scheduler: Scheduler, requests: Sequence[Request]) -> list[list[int]]:
    sequences = [scheduler.add(request) for request in requests]
    while scheduler.n_waiting or scheduler.n_running:
        scheduler.step()
    return [sequence.text.ids[sequence.text.n_prompt :] for sequence in sequences]


class Company(RuleBasedStateMachine):
    """Sequences that join, are cancelled and continued at random."""

    @initialize(
        name=st.sampled_from(STEADY),
        kv_dtype=st.sampled_from([None, torch.int8]),
        n_rows=st.sampled_from([None, 700]),
    )
    def begin(self, name: str, kv_dtype: torch.dtype | None, n_rows: int | None) -> None:
        row_bytes = backend_of(name).new_cache(kv_dtype).row_bytes
        self.name, self.kv_dtype = name, kv_dtype
        self.scheduler = scheduler_of(
            name, cache_dtype=kv_dtype, max_bytes=n_rows and n_rows * row_bytes, keeps_replies=True
        )
        self.expected: dict[BatchedSequence, list[int]] = {}
        self.found: dict[BatchedSequence, list[int]] = {}
        self.ended: list[BatchedSequence] = []

    @rule(
        head=st.sampled_from(HEADS),
        rest=st.lists(st.integers(0, 255), min_size=1, max_size=30),
        seed=st.sampled_from([None, 5]),
        n=st.integers(1, 12),
    )
    def join(self, head: list[int], rest: list[int], seed: int | None, n: int) -> None:
        self.add((*head, *rest), seed, n)

    @rule(seeds=st.lists(st.integers(1, 3), min_size=2, max_size=3))
    def fork(self, seeds: list[int]) -> None:
        """Several continuations of one prompt."""
        for seed in seeds:
            self.add((*HEADS[1], 1, 2, 3), seed, 5)

    def add(self, ids: tuple[int, ...], seed: int | None, n: int) -> None:
        sequence = self.scheduler.add(Request(ids, sampler_of(seed), max_tokens=n))
        self.expected[sequence] = alone(self.name, self.kv_dtype, ids, seed, n)
        self.found[sequence] = []

    @rule(n=st.integers(1, 6))
    def step(self, n: int) -> None:
        for _ in range(n):
            for sequence, event in self.scheduler.step():
                assert not isinstance(event, LlamaChatError)
                if isinstance(event, Token):
                    self.found[sequence].append(event.id)
                else:
                    assert self.found[sequence] == self.expected[sequence]
                    self.ended.append(sequence)

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        open_ = [sequence for sequence in self.found if sequence not in self.ended]
        if open_:
            sequence = data.draw(st.sampled_from(open_))
            self.scheduler.cancel(sequence)
            self.ended.append(sequence)

    @rule(data=st.data(), rest=st.lists(st.integers(0, 255), min_size=9, max_size=20))
    def extend(self, data: st.DataObject, rest: list[int]) -> None:
        """Continue what has ended, as a client does that sends its whole dialog again."""
        if self.ended:
            ids = data.draw(st.sampled_from(self.ended)).text.ids
            self.add((*ids, *rest), None, 4)

    @invariant()
    def ids_so_far_are_those_alone(self) -> None:
        for sequence, ids in getattr(self, "found", {}).items():
            assert ids == self.expected[sequence][: len(ids)]

    def teardown(self) -> None:
        for sequence in getattr(self, "found", {}):
            self.scheduler.cancel(sequence)


TestCompany = Company.TestCase
TestCompany.settings = settings(
    max_examples=25,
    stateful_step_count=25,
    suppress_health_check=[HealthCheck.too_slow],
)


def test_a_common_beginning_is_evaluated_and_kept_once() -> None:
    scheduler = scheduler_of()
    prompts = [[*HEADS[2], 50 + i, *range(20)] for i in range(8)]
    run(scheduler, [Request(ids, sampler_of(None), max_tokens=3) for ids in prompts])
    evaluated = len(prompts[0]) + 7 * 21 + 8 * 2  # the first, the rests, two tokens of each
    assert scheduler.n_evaluated == evaluated
    assert len(scheduler.store) == 8
    one = total_bytes(scheduler.store.caches[:1])
    assert scheduler.n_bytes < 2 * one + 7 * 256 * scheduler.store.caches[0].row_bytes


def test_a_dialog_that_is_sent_again_costs_what_is_new() -> None:
    scheduler = scheduler_of(keeps_replies=True)
    ids = [*HEADS[1]]
    for turn in range(5):
        before = scheduler.n_evaluated
        ids += [turn, *range(10)]
        ids += run(scheduler, [Request(ids, sampler_of(None), max_tokens=6)])[0]
        if turn:  # the last token of the reply before, the message, and the reply
            assert scheduler.n_evaluated - before == 1 + 11 + 5
    assert len(scheduler.store) == 1
    assert not scheduler.store.caches[0].segments


def test_what_does_not_fit_into_memory_waits() -> None:
    notes: list[str] = []
    row_bytes = backend_of(BACKENDS[-1]).new_cache().row_bytes
    scheduler = scheduler_of(max_bytes=300 * row_bytes, notify=notes.append)
    requests = [Request([i] * 20, sampler_of(None), max_tokens=4) for i in range(3)]
    for request in requests:
        scheduler.add(request)
    scheduler.step()
    assert scheduler.n_running == 1
    assert "not enough memory" in notes[0]
    while scheduler.n_waiting or scheduler.n_running:
        scheduler.step()
        assert scheduler.n_running <= 1
    assert len(notes) == 1


def test_the_latest_prefixes_are_kept_and_none_that_is_too_short_to_share() -> None:
    scheduler = scheduler_of(max_parallel=32, keeps_replies=True)
    run(scheduler, [Request([i, *range(6)], sampler_of(None), max_tokens=4) for i in range(8)])
    assert len(scheduler.store) == 0
    prompts = [[i, *range(MIN_SHARED)] for i in range(MAX_PREFIXES + 40)]
    run(scheduler, [Request(ids, sampler_of(None), max_tokens=1) for ids in prompts])
    assert len(scheduler.store) == MAX_PREFIXES
    kept = [cache.ids[0] for cache in scheduler.store.caches]
    assert sorted(kept) == [ids[0] for ids in prompts[-MAX_PREFIXES:]]


def test_stored_prefixes_are_dropped_when_memory_runs_out() -> None:
    assert out_of_memory.lines_of("prefixes") == ["0", "3", "1", "3"]


def test_one_sequence_is_given_up_when_memory_runs_out() -> None:
    short, long, later = out_of_memory.lines_of("answers")
    assert short.split() == ["short", "101"]
    assert re.match("long 1 [0-9]+ tokens of context: not enough memory", long)
    assert later.split() == ["later", "6"]


def test_a_prompt_is_refused_if_it_is_too_long() -> None:
    scheduler = scheduler_of()
    with pytest.raises(PromptTooLongError):
        scheduler.add(Request([1] * (scheduler.backend.context + 1), sampler_of(None)))


def test_a_stopped_pass_changes_nothing() -> None:
    scheduler = scheduler_of()
    request = Request([*HEADS[1], 1], sampler_of(None), max_tokens=4)
    sequence = scheduler.add(request)
    assert scheduler.step(lambda: True) == []
    ids = run(scheduler, [])
    assert ids == []
    expected = alone(BACKENDS[-1], None, tuple(request.ids), None, 4)
    assert sequence.text.ids[sequence.text.n_prompt :] == expected


def test_events_are_those_of_an_engine() -> None:
    scheduler = scheduler_of()
    request = Request([65, 66, 67], sampler_of(3), max_tokens=12, stop=("\n", "e"))
    sequence = scheduler.add(request)
    events: list[Event] = []
    while sequence.cache is not None or not events:
        events += [event for _, event in scheduler.step() if not isinstance(event, LlamaChatError)]
    engine = Engine(backend_of(BACKENDS[-1]), TOKENIZER)
    expected = list(engine.generate([65, 66, 67], sampler_of(3), max_tokens=12, stop=("\n", "e")))
    assert events[:-1] == expected[:-1]
    finish, wanted = events[-1], expected[-1]
    assert isinstance(finish, Finish)
    assert isinstance(wanted, Finish)
    assert (finish.reason, finish.text, finish.usage) == (wanted.reason, wanted.text, wanted.usage)
