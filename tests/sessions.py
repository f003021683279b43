"""Sessions with a small random model, and checks of their cache."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from llama_chat.chat.conversation import Conversation, Example
from llama_chat.chat.local_session import LocalSession
from llama_chat.chat.templates.chatml import ChatMLTemplate
from llama_chat.generation.backend import TorchBackend
from llama_chat.generation.engine import Engine
from llama_chat.generation.events import Event, Finish, Hooks
from llama_chat.settings.sampling import Sampling
from tests.model_files import SMALL, byte_tokenizer
from tests.models import random_model

MODEL = random_model(SMALL)
BACKEND = TorchBackend(MODEL)
TOKENIZER = byte_tokenizer()


def new_session(
    max_tokens: int = 12,
    context: int = 512,
    system: str = "",
    examples: Sequence[Example] = (),
    **options: object,
) -> LocalSession:
    backend = BACKEND
    if context != 512:
        backend = TorchBackend(random_model(replace(SMALL, context_length=context)))
    return LocalSession(
        Engine(backend, TOKENIZER),
        ChatMLTemplate(TOKENIZER),
        Sampling(seed=1, temperature=1.0),
        conversation=Conversation(system, examples),
        max_tokens=max_tokens,
        **options,  # type: ignore[arg-type] # passed on
    )


def finish_of(events: Iterator[Event]) -> Finish:
    *_, last = events
    assert isinstance(last, Finish)
    return last


def assert_cache_is_exact(session: LocalSession) -> None:
    """Check that the cache gives the logits that its ids give with an empty cache."""
    engine = session.engine
    ids = list(engine.cache.ids)
    if not ids:
        return
    assert engine.cache.length == len(ids)
    probe = [TOKENIZER.control_ids["<|im_start|>"]]
    lost = ids[engine.context - 1 :]
    ids = ids[: engine.context - 1]
    engine.cache.trim(len(ids))
    warm = engine.backend.forward(probe, engine.cache)
    engine.cache.trim(len(ids))
    if lost:
        engine.prefill_cached(ids + lost)
    cold = engine.backend.forward(ids + probe, engine.backend.new_cache())
    torch.testing.assert_close(warm, cold, rtol=1e-4, atol=1e-4)


def interrupt_after(n_questions: int) -> Hooks:
    """Return hooks that stop after ``n_questions`` checks: between layers, chunks or tokens."""
    asked = itertools.count()
    return Hooks(should_stop=lambda: next(asked) >= n_questions)
