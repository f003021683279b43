"""A draft model changes the number of forward passes of a text, but none of its tokens."""

from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import torch

from harness.program import assert_clean_error, run
from llama_chat.errors import ModelError, UsageError
from llama_chat.generation.draft_model import ModelDrafter
from llama_chat.generation.engine import choose_backend
from llama_chat.generation.events import Finish
from llama_chat.generation.speculation import PassCost
from llama_chat.kernels import native
from llama_chat.loading.plan import load, plan
from llama_chat.model.transformer import Transformer
from llama_chat.settings.sampling import Sampling
from tests.drafts import (
    LOOP,
    PROMPT,
    SAMPLINGS,
    TOKENIZER,
    assert_alike,
    generate,
    make_rows_free,
    needs_native,
    new_engine,
)
from tests.model_files import SMALL, write_gguf
from tests.models import packed_model

pytestmark = needs_native


@pytest.fixture(scope="module")
def model() -> Transformer:
    return packed_model(SMALL, (8, 8), torch.float32)


@pytest.fixture(scope="module")
def coarse() -> Transformer:
    """Make the same weights in four bits, which agree with the others on most tokens."""
    return packed_model(SMALL, (4, 4), torch.float32)


@pytest.fixture
def free_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    make_rows_free(monkeypatch)


@pytest.mark.usefixtures("free_rows")
@pytest.mark.parametrize("lookup", [False, True])
@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_results_are_the_same(
    model: Transformer, coarse: Transformer, sampling: Sampling, lookup: bool
) -> None:
    usage = assert_alike(model, sampling, draft=coarse, lookup=lookup).usage
    assert 0 < usage.accepted_tokens < usage.drafted_tokens


@pytest.mark.usefixtures("free_rows")
def test_a_model_that_always_agrees_saves_most_passes(model: Transformer) -> None:
    usage = assert_alike(model, draft=model, lookup=False).usage
    assert usage.accepted_tokens > 0.8 * usage.completion_tokens
    assert usage.accepted_tokens > 0.98 * usage.drafted_tokens - 7  # the last ones are not sampled


@pytest.mark.usefixtures("free_rows")
def test_later_turns_and_branches_are_the_same(model: Transformer, coarse: Transformer) -> None:
    plain, drafting = new_engine(model), new_engine(model, draft=coarse)
    beginnings = [PROMPT, PROMPT[:9], [*PROMPT, *LOOP], PROMPT[:4] + LOOP, PROMPT]
    for ids in beginnings:
        expected, _ = generate(plain, ids=ids, lookup=False, max_tokens=30)
        found, finish = generate(drafting, ids=ids, lookup=False, max_tokens=30)
        assert found == expected
        assert finish.usage.drafted_tokens > 0


@pytest.mark.usefixtures("free_rows")
@pytest.mark.parametrize("length", [32, 40, 64])
def test_nothing_is_drafted_past_the_context_of_the_draft_model(
    model: Transformer, length: int
) -> None:
    short = packed_model(SMALL, (8, 8), torch.float32, length)
    finish = assert_alike(model, draft=short, lookup=False)
    assert 0 < finish.usage.drafted_tokens <= length


@pytest.mark.usefixtures("free_rows")
def test_more_rows_than_tokens_are_never_drafted(model: Transformer) -> None:
    wide = packed_model(replace(SMALL, vocab_size=SMALL.vocab_size + 64), (8, 8), torch.float32)
    assert assert_alike(model, draft=wide, lookup=False).usage.drafted_tokens > 0


class Agreement:
    """A drafter beside a text in which each token is the most likely one, or never is."""

    def __init__(self, model: Transformer) -> None:
        cost = PassCost()
        cost.observe(1, 1.0)
        self.drafter = ModelDrafter(choose_backend(model), TOKENIZER.vocab_size, cost)
        self.drafter.set_ids(PROMPT)

    def run(self, n_tokens: int, *, agrees: bool) -> list[int]:
        """Append tokens; returns the lengths of the drafts before each of them."""
        lengths = []
        for _ in range(n_tokens):
            planned = self.drafter.plan(7).length
            likely = self.drafter.draft(max(planned, 1))[0]
            lengths.append(planned)
            self.drafter.append(likely if agrees else (likely + 1) % TOKENIZER.vocab_size)
        return lengths


def test_drafts_are_shorter_the_less_the_models_agree(model: Transformer) -> None:
    agreement = Agreement(model)
    assert max(agreement.run(60, agrees=True)[-20:]) == 7
    assert max(agreement.run(60, agrees=False)[-20:]) == 0
    assert max(agreement.run(60, agrees=True)[-20:]) == 7


def test_what_was_not_drafted_is_learnt_from_too(model: Transformer) -> None:
    drafter = Agreement(model).drafter
    engine = new_engine(model)
    tokens, _ = generate(engine, ids=PROMPT, lookup=False, max_tokens=200)
    while drafter.plan(7).length:  # until it no longer drafts
        likely = drafter.draft(1)[0]
        drafter.append((likely + 1) % TOKENIZER.vocab_size)
    drafter.set_ids(PROMPT)
    lengths = []
    for token in tokens:
        drafter.append(token.id)
        lengths.append(drafter.plan(7).length)
        if lengths[-1]:
            drafter.draft(lengths[-1])
    assert lengths[:60] == [0] * 60
    assert 7 in lengths[:80]


# Loading


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Write a model and a smaller one of the same vocabulary."""
    folder = tmp_path_factory.mktemp("pair")
    kind = gguf.GGMLQuantizationType.Q8_0
    write_gguf(folder / "model.gguf", quantization=kind)
    write_gguf(folder / "small.gguf", replace(SMALL, n_layers=1), quantization=kind)
    return folder / "model.gguf", folder / "small.gguf"


def test_a_draft_model_is_loaded_by_name_and_path(pair: tuple[Path, Path], tmp_path: Path) -> None:
    flags = ("-m", pair[0], "--temperature", "0", "--max-tokens", "60", "--no-lookup", "-v")
    plain = run("ask", "the cat", *flags, home=tmp_path)
    drafted = run("ask", "the cat", *flags, "--draft", pair[1], home=tmp_path)
    assert (drafted.status, drafted.out) == (0, plain.out)
    named = run("ask", "the cat", *flags, "--draft", "small", home=tmp_path)
    assert_clean_error(named, 3, "small")
    folder = ("--model-paths", pair[1].parent)
    named = run("ask", "the cat", *flags, *folder, "--draft", "small", home=tmp_path)
    assert (named.status, named.out) == (0, plain.out)


def test_progress_counts_both_models(pair: tuple[Path, Path]) -> None:
    seen: list[tuple[int, int]] = []
    load(pair[0], draft=pair[1], report=lambda done, total: seen.append((done, total)))
    (total,) = {total for _, total in seen}
    assert max(done for done, _ in seen) == total
    assert len({done for done, _ in seen}) == len(seen)


def test_memory_of_both_models_is_counted(pair: tuple[Path, Path]) -> None:
    alone, both = plan(pair[0]), plan(pair[0], draft=pair[1])
    assert both.draft is not None
    more = both.bytes_needed - alone.bytes_needed
    assert more >= both.draft.weight_bytes
    replace(both, bytes_free=both.bytes_needed).check_fit()
    with pytest.raises(ModelError, match="needs"):
        replace(both, bytes_free=both.bytes_needed - 1).check_fit()


def test_memory_of_a_model_that_is_dropped_counts_for_both(pair: tuple[Path, Path]) -> None:
    planned = plan(pair[0], draft=pair[1], reclaimable=2**50)
    assert planned.draft is not None
    assert min(planned.bytes_free, planned.draft.bytes_free) >= 2**50


def test_another_vocabulary_is_refused(pair: tuple[Path, Path], shared_data: Path) -> None:
    other = shared_data / "models" / "stories260K"
    with pytest.raises(UsageError, match="its vocabulary is not that of the model"):
        plan(pair[0], draft=other)


def test_a_model_that_torch_computes_takes_no_drafts(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "level_name", lambda: native.TORCH)
    with pytest.raises(UsageError, match="drafts would change the text"):
        plan(pair[0], draft=pair[1])


def test_a_conversation_is_the_same_with_a_draft_model(pair: tuple[Path, Path]) -> None:
    replies = []
    for draft in (None, pair[1]):
        session = load(pair[0], draft=draft).chat(
            sampling=Sampling(temperature=0), max_tokens=40, lookup=False
        )
        for text in ("the cat", "and the hat"):
            *_, finish = session.send(text)
            assert isinstance(finish, Finish)
        replies.append(session.ids)
    assert replies[0] == replies[1]
