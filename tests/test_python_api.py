"""The Python API: arguments that do not suit are refused before anything is computed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from llama_chat import Llama, load
from llama_chat.errors import PromptTooLongError, UsageError
from tests.model_files import SMALL, write_gguf


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Llama:
    path = tmp_path_factory.mktemp("api") / "m.gguf"
    write_gguf(path, SMALL)
    return load(path)


@pytest.mark.parametrize(
    ("name", "value", "range_"),
    [
        ("quantize", "foo", "one of auto, none, stored, int8, int4"),
        ("dtype", "foo", "one of auto, float32, bfloat16, float16"),
        ("kv_dtype", "foo", "one of auto, int8"),
        ("context", 2.5, "a whole number from 2"),
        ("threads", 0, "a whole number from 1 to 1024"),
    ],
)
def test_a_load_refuses_what_the_program_refuses(
    name: str, value: Any, range_: str, gguf_model: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        load(gguf_model, **{name: value})
    flag = f"--{name.replace('_', '-')}"
    assert str(caught.value) == f"{flag}: {value!r} does not fit: give {range_}"


@pytest.mark.parametrize("ids", [[-1], [5, SMALL.vocab_size, 6], [5, 2**40]])
def test_tokens_of_another_vocabulary_are_refused(ids: Sequence[int], llama: Llama) -> None:
    for compute in (llama.logits, llama.generate):
        with pytest.raises(UsageError, match=rf"^token {min(ids) if ids[0] < 0 else ids[1]}: "):
            compute(ids)


def test_too_many_tokens_are_refused_at_once(llama: Llama) -> None:
    ids = [5] * (10 * llama.context)
    for compute in (llama.logits, llama.generate):
        with pytest.raises(PromptTooLongError, match=f"prompt: {len(ids)} tokens do not fit"):
            compute(ids)


def test_no_tokens_are_refused(llama: Llama) -> None:
    for compute in (llama.logits, llama.generate):
        with pytest.raises(ValueError, match=r"^no tokens$"):
            compute([])


def test_a_limit_that_is_no_whole_number_is_refused(llama: Llama) -> None:
    limit: Any = 2.5
    with pytest.raises(ValueError, match=r"max_tokens is 2\.5, not a whole number of 1 or more"):
        llama.generate([5], max_tokens=limit)
