"""Generations that take turns on one engine are the same as alone, bit for bit."""

import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import islice, zip_longest
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llama_chat import Grammar, Sampling, load
from llama_chat.generation.backend import Backend, TorchBackend
from llama_chat.generation.engine import Engine
from llama_chat.generation.events import Event, Finish, Token
from llama_chat.generation.native import NativeBackend
from llama_chat.generation.sampling import Sampler
from tests.drafts import TOKENIZER, make_rows_free, needs_native, without_times
from tests.model_files import SMALL
from tests.models import packed_model, random_model

N_TOKENS = 24


class Text(NamedTuple):
    """A text to generate."""

    prompt: str
    pattern: str = ""
    sampling: Sampling = Sampling(temperature=0, seed=1)


# No two begin alike: a prefix that another has computed need not have the same bits.
TEXTS = (
    Text("x"),
    Text("the cat and the hat and the cat and the hat"),
    Text("a cat", "(so|and so) it said that all of this was forced (to|on)+"),
    Text("and the hat " * 5, sampling=Sampling(temperature=1, top_k=3, seed=5)),
)


@cache
def make_backend(kind: str) -> Backend:
    if kind == "torch":
        return TorchBackend(random_model(SMALL))
    backend = NativeBackend.create(packed_model(SMALL, (8, 8), torch.float32))
    assert backend is not None
    return backend


def new_engine(kind: str, max_saved_bytes: int | None = None) -> Engine:
    backend = make_backend(kind)
    cache = backend.new_cache(max_saved_bytes=max_saved_bytes)
    engine = Engine(backend, TOKENIZER, cache, draft=backend if kind == "native" else None)
    engine.end_ids = frozenset()  # random weights would end a text anywhere
    return engine


class Taken:
    """A generation, and the events that were taken from it."""

    def __init__(self, engine: Engine, text: Text) -> None:
        """Begin a text, of which nothing is computed yet."""
        self.events: list[Event] = []
        self._source = engine.generate(
            TOKENIZER.encode(text.prompt),
            Sampler(text.sampling, with_logprobs=True),
            max_tokens=N_TOKENS,
            grammar=Grammar.regex(text.pattern) if text.pattern else None,
        )

    def take(self, n: int | None = None) -> None:
        """Take ``n`` events, or all that are left."""
        for event in islice(self._source, n):
            self.events.append(without_times(event) if isinstance(event, Finish) else event)


@cache
def alone(kind: str, text: Text) -> Sequence[Event]:
    taken = Taken(new_engine(kind), text)
    taken.take()
    return taken.events


@pytest.fixture(scope="module", autouse=True)
def free_rows() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        make_rows_free(monkeypatch)
        yield


KINDS = ["torch", pytest.param("native", marks=needs_native)]


@pytest.mark.parametrize("kind", KINDS)
@given(
    texts=st.lists(st.sampled_from(TEXTS), min_size=2, max_size=3, unique=True),
    turns=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 5)), max_size=30),
    max_saved_bytes=st.sampled_from([None, 0, 5000]),
)
def test_texts_that_take_turns_are_those_alone(
    kind: str, texts: Sequence[Text], turns: list[tuple[int, int]], max_saved_bytes: int | None
) -> None:
    engine = new_engine(kind, max_saved_bytes)
    all_taken = [Taken(engine, text) for text in texts]
    for which, n_events in turns:
        all_taken[which % len(texts)].take(n_events)
    for text, taken in zip(texts, all_taken, strict=True):
        taken.take()
        assert taken.events == alone(kind, text)


@pytest.mark.parametrize("kind", KINDS)
def test_texts_of_several_threads_are_those_alone(kind: str) -> None:
    barrier = threading.Barrier(len(TEXTS))

    def generate(taken: Taken) -> Sequence[Event]:
        barrier.wait()
        taken.take()
        return taken.events

    with ThreadPoolExecutor(len(TEXTS)) as pool:
        for _ in range(3):
            engine = new_engine(kind)
            found = pool.map(generate, [Taken(engine, text) for text in TEXTS])
            for text, events in zip(TEXTS, found, strict=True):
                assert events == alone(kind, text)


def test_stories_take_turns(shared_data: Path) -> None:
    llama = load(shared_data / "models/stories260K")

    def story(prompt: str) -> Iterator[Event]:
        ids = llama.prompt_ids(prompt)
        return llama.generate(ids, Sampling(temperature=0), max_tokens=40)

    def written(events: Iterable[Event | None]) -> str:
        return "".join(event.text for event in events if isinstance(event, Token))

    prompts = "Once upon a time", "Once upon a hill", "The dog was"
    expected = [written(story(prompt)) for prompt in prompts]
    rounds = zip_longest(*map(story, prompts))
    assert [written(events) for events in zip(*rounds, strict=True)] == expected
