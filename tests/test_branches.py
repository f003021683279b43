"""Branches and their saved suffixes: switching back reads nothing, and restored rows are exact."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_chat.chat.conversation import Attachment, Message
from llama_chat.errors import PromptTooLongError
from llama_chat.generation.backend import TorchBackend
from llama_chat.generation.engine import Engine
from llama_chat.generation.kv_cache import MAX_SUFFIXES
from tests import out_of_memory
from tests.model_files import SMALL, byte_tokenizer
from tests.models import random_model
from tests.sessions import BACKEND, MODEL, finish_of, interrupt_after, new_session

TOKENIZER = byte_tokenizer()


@contextmanager
def counted_reads() -> Iterator[list[int]]:
    """Count the tokens of each forward pass."""
    read: list[int] = []
    hook = MODEL.register_forward_pre_hook(lambda _, arguments: read.append(arguments[0].shape[1]))
    try:
        yield read
    finally:
        hook.remove()


def test_going_back_and_forth_between_branches_reads_nothing() -> None:
    session = new_session()
    conversation = session.conversation
    for text in ("one", "two", "three"):
        finish_of(session.send(text))
    first = conversation.head
    conversation.undo(2)
    for text in ("zwei", "drei"):
        finish_of(session.send(text))
    second = conversation.head
    for head in (first, second, first, second):
        conversation.head = head
        with counted_reads() as read:
            session.prefill_next()
        assert read == []
        assert list(session.engine.cache.ids) == session.ids
        warm = session.engine.prefill(session.ids)
        cold = session.engine.logits(session.ids)[-1]
        torch.testing.assert_close(warm, cold, rtol=1e-4, atol=1e-4)


def test_a_branch_of_a_branch_is_restored_from_two_suffixes() -> None:
    session = new_session()
    conversation = session.conversation
    for text in ("a", "b", "c"):
        finish_of(session.send(text))
    deep = conversation.head
    conversation.undo()
    finish_of(session.send("C"))  # saves the suffix of c
    conversation.undo(2)
    finish_of(session.send("B"))  # saves the suffix from b on
    conversation.head = deep
    with counted_reads() as read:
        session.prefill_next()
    assert read == []
    assert list(session.engine.cache.ids) == session.ids


def test_switching_versions_reads_one_token() -> None:
    session = new_session()
    finish_of(session.send("question"))
    finish_of(session.retry())
    one, two = session.conversation.versions()
    for head in (one, two, one):
        session.conversation.head = head
        with counted_reads() as read:
            session.prefill_next()
            session.engine.prefill(session.ids)
        assert read == [1]


def test_saved_suffixes_take_at_most_half_of_a_full_cache() -> None:
    engine = Engine(BACKEND, TOKENIZER)
    for first in range(3, 100):
        engine.prefill([first] * 100)
    suffixes = engine.cache._suffixes
    rows = [len(suffix.ids) - suffix.start for suffix in suffixes]
    assert sum(rows) <= SMALL.context_length // 2
    assert len(suffixes) == 2
    for first in range(3, 100):
        engine.prefill([first] * 2)
    assert len(engine.cache._suffixes) <= MAX_SUFFIXES


def test_a_suffix_over_its_limit_is_not_saved_and_costs_no_other() -> None:
    row = SMALL.kv_cache_bytes(1, 4)
    engine = Engine(BACKEND, TOKENIZER, BACKEND.new_cache(max_saved_bytes=10 * row))
    engine.prefill_cached([3] * 10)
    engine.prefill_cached([4] * 30)
    assert engine.cache.saved_bytes == 10 * row
    engine.prefill_cached([5] * 11)
    assert engine.cache.saved_bytes == 10 * row
    with counted_reads() as read:
        engine.prefill_cached([3] * 10)
    assert read == []


def test_saved_suffixes_are_dropped_when_memory_runs_out() -> None:
    *steps, error = out_of_memory.lines_of("suffixes")
    assert steps == [f"{3996 * 8192} 100", "0 4196", "0 50"]
    assert error == "562 tokens of context: not enough memory: use a smaller model or --context"


@settings(max_examples=40)
@given(st.lists(st.lists(st.integers(3, 5), min_size=1, max_size=12), min_size=2, max_size=10))
def test_restored_suffixes_are_exact(targets: list[list[int]]) -> None:
    engine = Engine(BACKEND, TOKENIZER)
    for ids in targets:
        engine.prefill_cached(ids)
        assert list(engine.cache.ids) == ids
        probe = engine.backend.forward([3], engine.cache)
        cold = BACKEND.forward([*ids, 3], BACKEND.new_cache())
        torch.testing.assert_close(probe, cold, rtol=1e-4, atol=1e-4)


def test_a_reply_goes_on_where_it_was_interrupted() -> None:
    whole = new_session(max_tokens=30)
    expected = "".join(event.text for event in whole.send("x"))
    session = new_session(max_tokens=30)
    finish_of(session.send("x", interrupt_after(20)))
    reply = session.conversation.path()[-1]
    begun = len(reply.ids or ())
    assert 0 < begun < 30
    assert reply.interrupted
    session.max_tokens = 30 - begun
    with counted_reads() as read:
        finish = finish_of(session.continue_reply())
    assert read[0] == 1  # the last token, for its logits; then the new ones
    assert finish.usage.cached_tokens == finish.usage.prompt_tokens - 1
    assert session.conversation.path()[-1] is reply
    assert len(reply.ids or ()) == 30
    assert reply.text == expected
    assert not reply.interrupted
    assert reply.logprobs is not None
    assert [reply.logprobs.token(i)[0] for i in range(30)] == list(reply.ids or ())


def test_a_continued_reply_completes_a_character_that_was_cut() -> None:
    euro = TOKENIZER.encode("€")
    assert len(euro) == 3
    session = new_session()
    finish_of(session.send("x", interrupt_after(0)))
    reply = session.conversation.path()[-1]
    reply.ids, reply.text = (*TOKENIZER.encode("a "), euro[0]), "a \ufffd"
    finish_of(session.continue_reply())
    assert len(reply.ids or ()) > 3
    assert reply.text == TOKENIZER.decode(reply.ids or ())


def test_a_reply_without_ids_can_be_continued() -> None:
    session = new_session()
    session.conversation.add(Message("user", "hello"))
    reply = session.conversation.add(Message("assistant", "I was"))
    finish_of(session.continue_reply())
    assert reply.text.startswith("I was")
    assert len(reply.text) > len("I was")
    assert reply.ids is None


def test_a_reply_prefix_begins_the_reply_and_keeps_its_ids() -> None:
    session = new_session()
    shown = "".join(event.text for event in session.send("x", reply_prefix="Sure, "))
    reply = session.conversation.path()[-1]
    opening = tuple(TOKENIZER.encode("Sure, "))
    assert reply.text == "Sure, " + shown
    assert (reply.ids or ())[: len(opening)] == opening
    assert list(session.engine.cache.ids) == session.ids


def test_attachments_come_before_the_text_and_are_prefilled() -> None:
    session = new_session()
    files = [Attachment("line one\nline two\n", "a.txt"), Attachment("piped")]
    session.prefill_next(session.next_prefix(files))
    known = session.engine.cache.length
    assert known > 20
    finish = finish_of(session.send("What is it?", attachments=files))
    assert finish.usage.cached_tokens == known
    message = session.conversation.path()[0]
    assert message.content == "a.txt:\nline one\nline two\n\npiped\n\nWhat is it?"
    assert message.preview == "[a.txt] [document] What is it?"
    assert session.count("x", files) > session.count("x") > session.count()


def test_a_refused_retry_changes_nothing() -> None:
    session = new_session(max_tokens=20, context=96)
    finish_of(session.send("word " * 6))
    head = session.conversation.head
    session.conversation.system = "long " * 40
    with pytest.raises(PromptTooLongError):
        next(session.retry())
    assert session.conversation.head is head


def test_switching_back_shows_dropped_turns_to_the_model_again() -> None:
    session = new_session(max_tokens=12, context=128)
    finish_of(session.send("one"))
    early = session.conversation.head
    before = session.ids
    for turn in range(8):
        finish_of(session.send(f"turn {turn}"))
    assert session.conversation.n_dropped > 0
    session.conversation.head = early
    assert session.ids == before
    assert session.conversation.n_dropped == 0


def test_a_message_without_an_answer_leaves_roles_alternating() -> None:
    session = new_session()
    session.conversation.add(Message("user", "lost"))
    finish_of(session.send("again"))
    roles = [message.role for message in session.conversation.path()]
    assert roles == ["user", "assistant", "user", "assistant"]
    session.conversation.undo()
    session.conversation.undo()
    session.conversation.add(Message("user", "lost"))
    finish_of(session.continue_reply())
    assert [message.role for message in session.conversation.path()] == ["user", "assistant"]


def test_undo_goes_back_to_a_dropped_turn_without_an_answer() -> None:
    session = new_session(max_tokens=20, context=96)
    session.conversation.add(Message("user", "lost " * 5))
    finish_of(session.send("again " * 6))
    assert session.conversation.n_dropped == 1
    session.conversation.undo()
    assert session.conversation.n_dropped == 0
    assert finish_of(session.continue_reply()).usage.completion_tokens


def test_logprobs_have_the_likeliest_tokens_of_each_position() -> None:
    session = new_session(max_tokens=5)
    prompt = session.count("x")
    finish_of(session.send("x"))
    reply = session.conversation.path()[-1]
    trace = reply.logprobs
    assert trace is not None
    assert len(trace) == 5
    logprobs = session.engine.logits(session.ids).log_softmax(-1)
    for i in range(5):
        expected = logprobs[prompt + i - 1].topk(10)
        alternatives = trace.alternatives(i)
        assert [token_id for token_id, _ in alternatives] == expected.indices.tolist()
        found = torch.tensor([logprob for _, logprob in alternatives])
        torch.testing.assert_close(found, expected.values, rtol=1e-4, atol=1e-4)
        assert trace.token(i)[0] == (reply.ids or ())[i]


def test_a_small_vocabulary_has_fewer_alternatives() -> None:
    model = random_model(replace(SMALL, vocab_size=len(byte_tokenizer().control_ids) + 4))
    engine = Engine(TorchBackend(model), byte_tokenizer())
    from llama_chat.generation.sampling import Sampler
    from llama_chat.settings.sampling import Sampling

    choice = Sampler(Sampling(seed=1), with_logprobs=True)(engine.prefill([3, 4]), [])
    assert len(choice.alternatives) == 7
