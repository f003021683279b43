"""Choices are scored as the whole texts would be, one by one."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from harness.program import assert_clean_error, run
from llama_chat.chat.choices import choose
from llama_chat.errors import PromptTooLongError
from llama_chat.generation.backend import TorchBackend
from llama_chat.generation.batch import generate_all
from llama_chat.generation.choices import score
from llama_chat.generation.continuation import Request
from llama_chat.generation.engine import Engine
from llama_chat.generation.events import Finish
from llama_chat.generation.native import NativeBackend
from llama_chat.kernels import native
from tests.models import TINY, random_model, reference_logits, to_hugging_face
from tests.sessions import TOKENIZER, new_session
from tests.test_batch import sampler_of, scheduler_of


@pytest.mark.parametrize("prompt_length", [1, 70])
@torch.inference_mode()
def test_scores_are_those_of_transformers(prompt_length: int) -> None:
    model = random_model(TINY)
    reference = to_hugging_face(model)
    prompt = [(7 * i) % 250 for i in range(prompt_length)]
    continuations = [[3], [3, 4], [9, 8, 7], [*range(100, 140)]]
    backends = [TorchBackend(model), *filter(None, [NativeBackend.create(model)])]
    assert len(backends) == 1 + native.is_available()
    for backend in backends:
        found = score(Engine(backend, TOKENIZER), prompt, continuations)
        for each, ids in zip(found, continuations, strict=True):
            logprobs = reference_logits(reference, [*prompt, *ids]).log_softmax(-1)
            expected = [float(logprobs[prompt_length + i - 1, t]) for i, t in enumerate(ids)]
            torch.testing.assert_close(list(each.logprobs), expected, rtol=0, atol=1e-3)
            assert each.logprob == pytest.approx(sum(expected), abs=1e-3 * len(ids))


@pytest.mark.parametrize("prompt_length", [1, 40, 400])
def test_a_scheduler_scores_choices_as_an_engine_does(prompt_length: int) -> None:
    prompt = [(7 * i) % 250 for i in range(prompt_length)]
    choices = [[3], [3, 4], [9, 8, 7], [*range(100, 140)]]
    scheduler = scheduler_of()
    expected = score(Engine(scheduler.backend, TOKENIZER), prompt, choices)
    others = [Request([5, *prompt], sampler_of(None), max_tokens=9) for _ in range(2)]
    asked = [Request(prompt, sampler_of(None), choices=choices) for _ in range(2)]
    keys = enumerate([others[0], *asked, others[1]])
    events = list(generate_all(scheduler, keys))
    ends = {key: event for key, event in events if isinstance(event, Finish)}
    assert [key for key, event in events if key in (1, 2)] == [1, 2]
    for key in (1, 2):
        assert list(ends[key].scored) == expected
        assert ends[key].usage.completion_tokens == 0
    assert (ends[0].scored, ends[0].usage.completion_tokens) == ((), 9)
    assert scheduler.n_running == 0
    with pytest.raises(PromptTooLongError):
        scheduler.add(Request(prompt, sampler_of(None), choices=[[1] * scheduler.backend.context]))


def probabilities(texts: Sequence[str], *, by_length: bool = False) -> dict[str, float]:
    session = new_session()
    found = choose(session, "is it?", texts, by_length=by_length)
    assert session.conversation.head is None
    assert [each.probability for each in found] == sorted(
        (each.probability for each in found), reverse=True
    )
    return {each.text: each.probability for each in found}


def test_a_choice_ends_its_turn_and_its_order_does_not_matter() -> None:
    session = new_session()
    [only] = choose(session, "is it?", ["yes"])
    assert only.scored.ids[-1] in session.template.end_ids | session.engine.end_ids
    assert only.probability == 1
    there, back = probabilities(["yes", "no", "maybe"]), probabilities(["maybe", "no", "yes"])
    assert there == pytest.approx(back)
    assert sum(there.values()) == pytest.approx(1)
    assert probabilities(["yes", "no, never at all"], by_length=True) != probabilities(
        ["yes", "no, never at all"]
    )


def test_choices_that_do_not_fit_are_refused() -> None:
    session = new_session(context=64)
    with pytest.raises(Exception, match="do not fit"):
        choose(session, "is it?", ["yes " * 60])


def test_the_command_prints_the_likeliest(tmp_path: Path, gguf_model: Path) -> None:
    flags = ("-m", gguf_model, "-q")
    (tmp_path / "choices.txt").write_text("the cat\na hat\n")
    done = run("ask", "what?", "--choices-file", "choices.txt", "--json", *flags,
               home=tmp_path, folder=str(tmp_path))  # fmt: skip
    found = json.loads(done.out)
    assert {choice["text"] for choice in found["choices"]} == {"the cat", "a hat"}
    assert found["text"] == found["choices"][0]["text"]
    plain = run("ask", "what?", "--choices", "the cat, a hat", *flags, home=tmp_path)
    assert plain.out == found["text"] + "\n"
    lines = run(
        "ask",
        "--lines",
        "--choices",
        "the cat,a hat",
        *flags,
        home=tmp_path,
        stdin=b"what?\nwhy?\n",
    )
    answers = [json.loads(line) for line in lines.out.splitlines()]
    assert [answer["line"] for answer in answers] == [1, 2]
    assert answers[0]["choices"] == found["choices"]


@pytest.mark.parametrize(
    ("choices", "why"), [("yes,,no", "one is empty"), ("yes,yes", "twice"), ("", "empty")]
)
def test_choices_that_are_none_are_refused(
    tmp_path: Path, gguf_model: Path, choices: str, why: str
) -> None:
    done = run("ask", "what?", "--choices", choices, "-m", gguf_model, home=tmp_path)
    assert_clean_error(done, 2, why)
