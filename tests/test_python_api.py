"""The Python API: what it has, and that it refuses unsuitable arguments before it computes."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import llama_chat
from llama_chat import Finish, Llama, LlamaChatError, Token, load
from llama_chat.chat.conversation import Conversation, Example
from llama_chat.errors import PromptTooLongError, UsageError
from tests.conftest import ROOT
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


def test_a_stop_string_that_is_no_list_is_refused(llama: Llama) -> None:
    for begin in (lambda: llama.generate([5], stop="abc"), lambda: llama.chat(stop="abc")):
        with pytest.raises(ValueError, match=r"stop is 'abc', not a list of texts"):
            begin()


def test_a_conversation_comes_without_what_it_has_itself(llama: Llama) -> None:
    conversation, shown = Conversation("Be kind."), [Example("Hello", "Hi")]
    with pytest.raises(ValueError, match="its own system message and examples"):
        llama.chat("Be brief.", conversation=conversation)
    with pytest.raises(ValueError, match="its own system message and examples"):
        llama.chat(examples=shown, conversation=conversation)
    assert llama.chat(conversation=conversation).conversation is conversation


def test_a_load_has_the_arguments_of_its_plan(gguf_model: Path) -> None:
    with pytest.raises(LlamaChatError, match=r"free of --memory 1\.0 MB"):
        load(gguf_model, memory=10**6)
    device = load(gguf_model, device_map="auto", memory=2**34).model.device
    assert device == load(gguf_model).model.device


def test_what_a_generation_yields_is_exported(llama: Llama) -> None:
    *tokens, last = llama.generate([5], max_tokens=3)
    assert all(isinstance(token, Token) for token in tokens)
    assert isinstance(last, Finish)
    assert all(hasattr(llama_chat, name) for name in llama_chat.__all__)


def test_the_package_lists_what_it_imports_later() -> None:
    code = "import sys, llama_chat; print(*dir(llama_chat)); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names, imported = done.stdout.splitlines()
    assert {*llama_chat.__all__} <= {*names.split()}
    assert imported == "False"


def test_a_load_imports_no_benchmark() -> None:
    code = "import sys, llama_chat.loading.plan; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = done.stdout.split()
    assert "llama_chat.llama" in modules
    assert not {f"llama_chat.generation.{name}" for name in ("measuring", "breakdown")} & {*modules}


def test_the_code_in_the_readme_runs(gguf_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, _, after = (ROOT / "README.md").read_text().partition("## From Python\n\n```python\n")
    code = after.partition("```")[0].replace("models/llama-2-7b-chat", str(gguf_model))
    exec(code, {})
    assert capsys.readouterr().out.splitlines()[-1].startswith("(")
