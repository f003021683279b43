"""Numbers that a model file states are checked before they take memory or time."""

from itertools import islice
from pathlib import Path

import pytest

from harness.campaigns.model_numbers import (
    COMMANDS,
    Run,
    bare_run,
    changed_numbers,
    finding,
    run_command,
)
from harness.campaigns.numbered_files import Number, of_gguf, of_llama2c, of_meta
from llama_chat.errors import ModelError
from llama_chat.loading.plan import plan

EVERY = 7
"""One of so many cases of the campaign runs here; numbers have eleven values each."""


def test_extreme_numbers_are_refused_in_one_line(tmp_path: Path) -> None:
    n_cases = 0
    for number, value in islice(changed_numbers(tmp_path / "models"), 0, None, EVERY):
        n_cases += 1
        line = refusal(number.model)
        assert line.isprintable(), (number.name, value)
        assert line or number.may_be(value), (number.name, value)
    assert n_cases > 100


def refusal(model: Path) -> str:
    """Return the line with which a model is refused; empty if it is not."""
    try:
        plan(model)
    except ModelError as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that does nothing; the first one of all is slower, since it starts the server."""
    return bare_run(tmp_path_factory.mktemp("bare"))


FORMATS = {
    "GGUF": (of_gguf, "llama.context_length"),
    "Meta": (of_meta, "params.json n_layers"),
    "llama2.c": (of_llama2c, "context"),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("kind", "value"),
    [("GGUF", 2**31), ("GGUF", 2**32), ("GGUF", 2**63), ("Meta", 2**31), ("llama2.c", 2**31 - 1)],
)
def test_a_number_takes_no_memory(
    kind: str, value: int, command: str, bare: Run, tmp_path: Path
) -> None:
    write, name = FORMATS[kind]
    number = next(number for number in write(tmp_path / "model") if number.name == name)
    changed(number, value)
    result = run_command(tmp_path, command, number.model)
    assert result.status == 3
    assert not finding(result, bare, number.file.stat().st_size, possible=False)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_longest_context_takes_memory_as_it_is_used(
    command: str, bare: Run, tmp_path: Path
) -> None:
    number = next(n for n in of_gguf(tmp_path / "model") if n.name == "llama.context_length")
    changed(number, 2**24)
    result = run_command(tmp_path, command, number.model)
    assert result.status == 0
    assert not finding(result, bare, number.file.stat().st_size, possible=True)


def changed(number: Number, value: int) -> None:
    number.file.write_bytes(number.replaced(value))
