"""Any sequence of actions leaves a valid cache and a well-formed conversation."""

import contextlib
import itertools

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from llama_chat.chat.conversation import Example
from llama_chat.errors import PromptTooLongError, UsageError
from tests.sessions import (
    TOKENIZER,
    assert_cache_is_exact,
    finish_of,
    interrupt_after,
    new_session,
)


class Conversations(RuleBasedStateMachine):
    """Any sequence of user actions leaves a valid cache and a well-formed conversation."""

    def __init__(self) -> None:
        super().__init__()
        self.session = new_session()
        self.said: list[str] = []

    @rule(text=st.text(max_size=20))
    def send(self, text: str) -> None:
        before, n_dropped = self.session.ids, self.session.conversation.n_dropped
        finish = finish_of(self.session.send(text))
        self.said.append(text)
        assert finish.usage.cached_tokens < finish.usage.prompt_tokens
        if n_dropped == self.session.conversation.n_dropped:
            assert self.session.ids[: len(before)] == before

    @rule(text=st.text(max_size=20), questions=st.integers(0, 40))
    def interrupted_send(self, text: str, questions: int) -> None:
        finish = finish_of(self.session.send(text, interrupt_after(questions)))
        self.said.append(text)
        last = self.session.conversation.path()[-1]
        assert last.role == "assistant"
        assert last.interrupted == (finish.reason == "interrupted")

    @rule(text=st.text(max_size=20), tokens=st.integers(1, 5))
    def closed_send(self, text: str, tokens: int) -> None:
        events = self.session.send(text)
        shown = list(itertools.islice(events, tokens))
        events.close()  # type: ignore[attr-defined] # a generator
        self.said.append(text)
        assert shown

    @rule(turns=st.integers(1, 3))
    def undo(self, turns: int) -> None:
        undone = self.session.conversation.undo(turns)
        assert [message.content for message in undone] == self.said[::-1][:turns]
        del self.said[len(self.said) - len(undone) :]

    @rule()
    def retry(self) -> None:
        if not self.said:
            with pytest.raises(UsageError):
                next(self.session.retry())
            return
        before = self.session.conversation.versions()
        finish_of(self.session.retry())
        after = self.session.conversation.versions()
        assert after[: len(before)] == before
        assert len(after) == len(before) + 1

    @rule(reply_prefix=st.sampled_from(["Sure", "é", "<|im_end|>", "  two "]))
    def send_with_a_reply_prefix(self, reply_prefix: str) -> None:
        finish_of(self.session.send("x", reply_prefix=reply_prefix))
        self.said.append("x")
        reply = self.session.conversation.path()[-1]
        assert reply.text.startswith(reply_prefix.lstrip())
        assert not set(reply.ids or ()) & set(TOKENIZER.control_ids.values())

    @rule(questions=st.integers(0, 20))
    def continue_reply(self, questions: int) -> None:
        if not self.said:
            with pytest.raises(UsageError):
                next(self.session.continue_reply())
            return
        reply = self.session.conversation.path()[-1]
        before, known = reply.ids or (), reply.text.rstrip("\ufffd")
        with contextlib.suppress(PromptTooLongError):
            finish_of(self.session.continue_reply(interrupt_after(questions)))
        assert self.session.conversation.path()[-1] is reply
        assert (reply.ids or ())[: len(before)] == before
        assert reply.text.startswith(known)

    @rule(data=st.data())
    def switch_branch(self, data: st.DataObject) -> None:
        conversation = self.session.conversation
        if not conversation.all:
            return
        conversation.head = data.draw(st.sampled_from(conversation.branches()))
        self.said = [m.text for m in conversation.path() if m.role == "user"]
        self.session.prefill_next()
        assert list(self.session.engine.cache.ids) == self.session.ids

    @rule(system=st.sampled_from(["", "Be brief.", "Answer in French."]))
    def change_system(self, system: str) -> None:
        self.session.conversation.system = system

    @rule(n=st.integers(0, 2))
    def change_examples(self, n: int) -> None:
        self.session.conversation.examples = (Example("a", "b"), Example("in", "out"))[:n]
        self.session.prefill_next()

    @rule()
    def clear(self) -> None:
        self.session.conversation.clear()
        self.said.clear()

    @invariant()
    def roles_alternate(self) -> None:
        roles = [message.role for message in self.session.conversation.path()]
        assert roles == ["user", "assistant"] * (len(roles) // 2)

    @invariant()
    def cache_is_exact(self) -> None:
        assert_cache_is_exact(self.session)


Conversations.TestCase.settings = settings(max_examples=25, stateful_step_count=12)
TestConversations = Conversations.TestCase
