"""Everything that parses data of unknown origin is within a gate, and what a gate does."""

import errno
import re
import struct
import tomllib
from pathlib import Path

import pytest
import torch

from harness.process import ROOT
from llama_chat.checkpoints.torch_archive import TORCH_FLOOR, open_archive
from llama_chat.documents import read_toml
from llama_chat.errors import LlamaChatError, ModelError, SaveError, UsageError
from llama_chat.gates import FETCH_AGAIN, gate
from llama_chat.loading.formats import open_checkpoint
from tests.model_files import SMALL, write_huggingface, write_meta
from tests.readers import OPENERS, PARSERS, readers_outside

PanicException = type("PanicException", (BaseException,), {})


def refused(error: BaseException, **options: str) -> str:
    """The line for an error that is raised within a gate."""
    with pytest.raises(ModelError) as caught, gate("'a file'", **options):  # type: ignore[arg-type]
        raise error
    assert caught.value.__cause__ is error
    return str(caught.value)


DAMAGED = f"'a file': it is cut off or damaged: {FETCH_AGAIN}"


@pytest.mark.parametrize(
    "error",
    [
        *(ValueError("x"), KeyError(1), IndexError(), TypeError(), AttributeError(), EOFError()),
        *(OverflowError(), RecursionError(), AssertionError(), RuntimeError("x"), struct.error()),
        *(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "\x1b[0m\n"), ZeroDivisionError()),
    ],
    ids=lambda error: type(error).__name__,
)
def test_each_exception_of_a_parser_is_one_line(error: Exception) -> None:
    assert refused(error) == DAMAGED


def test_the_operating_system_and_memory_have_their_own_lines() -> None:
    assert refused(OSError(errno.EIO, "Input/output error")) == (
        "'a file': input/output error: check it"
    )
    for error in (MemoryError(), RuntimeError("not enough memory: you tried to allocate 9 bytes")):
        assert refused(error) == "'a file': not enough memory to read it: free some memory"


def test_a_library_is_quoted_without_control_characters() -> None:
    line = refused(ValueError("bad \x1b]0;title\n" + "x" * 500), library="tokenizers", advice="go")
    assert line.isprintable()
    assert line.startswith("'a file': the tokenizers library cannot use it ('bad \\x1b]0;title\\n")
    assert line.endswith("): go")
    line = refused(ValueError("x" * 81), library="it", advice="go")
    assert line == f"'a file': the it library cannot use it ({'x' * 80!r}): go"


def test_a_panic_of_rust_is_refused() -> None:
    line = refused(PanicException("index out of bounds"), library="tokenizers")
    assert "index out of bounds" in line
    assert refused(PanicException()) == DAMAGED


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_signals_pass(kind: type[BaseException]) -> None:
    with pytest.raises(kind), gate("'a file'"):
        raise kind


@pytest.mark.parametrize("kind", [UsageError, SaveError, LlamaChatError])
def test_what_is_refused_already_passes_unchanged(kind: type[LlamaChatError]) -> None:
    error = kind("a", "b", "c")
    with pytest.raises(kind) as caught, gate("'a file'"):
        raise error
    assert caught.value is error


def test_the_class_of_the_error_is_that_of_the_format(tmp_path: Path) -> None:
    with (
        pytest.raises(UsageError, match=r"^it: broken: mend it$"),
        gate("it", "mend it", why="broken", refusal=UsageError),
    ):
        raise ValueError
    file = tmp_path / "a.toml"
    file.write_text("a = " + "9" * 5000)
    with pytest.raises(UsageError, match=r"^it: not TOML: a value cannot be read: correct it$"):
        read_toml(file, "it", "check it")


def test_a_gate_does_nothing_to_what_succeeds() -> None:
    with gate("'a file'"):
        found = 3
    assert found == 3


# ---- the floor of torch


def test_the_floor_of_torch_is_that_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    floor = ".".join(map(str, TORCH_FLOOR))
    assert f"torch>={floor}" in project["dependencies"]


@pytest.mark.parametrize("version", ["2.9.1+cpu", "2.5.1", "2.0.1", "2.9.0a0+git123"])
def test_an_older_torch_opens_no_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    write_meta(tmp_path / "meta")
    write_huggingface(tmp_path / "hub")
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(ModelError) as caught:
        open_checkpoint(tmp_path / "meta")
    assert f": torch {version} is installed, older than 2.10: install torch 2.10 or later" in str(
        caught.value
    )
    assert open_checkpoint(tmp_path / "hub").config.dim == SMALL.dim  # safetensors need no torch


@pytest.mark.parametrize("version", ["2.10.0", "2.13.0+cpu", "3.0"])
def test_a_later_torch_opens_an_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(ModelError, match="no such file"):
        open_archive(tmp_path / "missing.pth", re.compile("^$"))


# ---- the walk of the package


def test_no_reader_escapes_the_gates() -> None:
    found, unused = readers_outside(ROOT / "llama_chat")
    assert not found, "these parse data outside of a gate"
    assert not unused, "these exceptions are not needed any more"


@pytest.mark.parametrize("call", sorted(PARSERS | OPENERS))
def test_a_reader_without_a_gate_is_found(tmp_path: Path, call: str) -> None:
    source = (
        "from llama_chat.gates import gate\n"
        f"def careless(x):\n    return {call}(x)\n"
        f"def _inner(x):\n    return {call}(x)\n"
        "def careful(x):\n    with gate('x'):\n        return _inner(x)\n"
        f"class _Half:\n    def read(self, x):\n        return {call}(x)\n"
        "def one(x):\n    with gate('x'):\n        return _Half()\n"
        "def other(x):\n    return _Half()\n"
        f"def tried(x):\n    try:\n        {call}(x)\n"
        "    except (OSError, KeyError):\n        pass\n"
    )
    (tmp_path / "module.py").write_text(source)
    found, _ = readers_outside(tmp_path)
    tried = set() if call in OPENERS else {"module.tried"}
    assert {place for place, _ in found} == {"module.careless", "module._Half.read"} | tried


def test_no_archive_of_torch_is_opened_by_torch() -> None:
    for path in (ROOT / "llama_chat").rglob("*.py"):
        text = path.read_text()
        assert "weights_only" not in text
        assert "torch.load" not in text
