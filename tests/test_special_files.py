"""Files that are not regular, or may not be read, are refused at once wherever a model has one."""

import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.program import Program, Result, assert_clean_error, run
from tests.execute import EXECUTE
from tests.model_files import (
    assert_refused,
    edit_json,
    write_gguf,
    write_huggingface,
    write_llama2c,
    write_meta,
)


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    before = Path.cwd()
    os.chdir(path.parent)  # the name of a socket is limited to a hundred bytes
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
    finally:
        os.chdir(before)


def make_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


KINDS: dict[str, Callable[[Path], None]] = {
    "pipe": make_pipe,
    "socket": make_socket,
    "device": make_device,
    "folder": Path.mkdir,
}

FILES = {
    "meta": ["params.json", "consolidated.00.pth", "tokenizer.model"],
    "safetensors": [
        "config.json",
        "model.safetensors",
        "tokenizer.model",
        "tokenizer.json",
        "tokenizer_config.json",
        "added_tokens.json",
        "chat_template.jinja",
    ],
    "shards": ["model.safetensors.index.json", "model-00002-of-*.safetensors"],
    "bin": ["pytorch_model.bin"],
    "bins": ["pytorch_model.bin.index.json", "pytorch_model-00002-of-00002.bin"],
    "gguf": ["m.gguf"],
    "parts": ["m-00001-of-00003.gguf", "m-00002-of-00003.gguf"],
    "llama2c": ["m.bin", "tokenizer.model", "tokenizer.bin"],
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in each layout."""
    folder = tmp_path_factory.mktemp("models")
    write_meta(folder / "meta")
    for layout in ("safetensors", "shards", "bin", "bins"):
        write_huggingface(folder / layout, weights=layout)
    edit_json(folder / "safetensors" / "tokenizer_config.json", add_bos_token=True)
    for name in ("gguf", "parts"):
        (folder / name).mkdir()
    write_gguf(folder / "gguf" / "m.gguf")
    write_gguf(folder / "parts" / "m.gguf", tensors_a_file=8)
    write_llama2c(folder / "llama2c" / "m.bin")
    return folder


def model_without(models: Path, layout: str, name: str, folder: Path) -> tuple[Path, Path]:
    """Copy a model without one file; returns the path to open, and that of the file."""
    copy = folder / "model"
    shutil.copytree(models / layout, copy)
    for file in copy.iterdir():
        file.chmod(0o644)
    missing = next(copy.glob(name), copy / name)
    if name == "tokenizer.bin":
        (copy / "tokenizer.model").unlink()
    missing.unlink(missing_ok=True)
    if name == "tokenizer.json":
        (copy / "tokenizer.model").unlink()
    first = {"gguf": "m.gguf", "parts": "m-00001-of-00003.gguf", "llama2c": "m.bin"}
    return copy / first.get(layout, ""), missing


def reason(layout: str, name: str, kind: str) -> str:
    """Part of the line with which ``kind`` is refused where a file is expected."""
    if name == "m-00002-of-00003.gguf":
        return f"beside it there is no {name!r}"
    is_model = name in ("m.gguf", "m-00001-of-00003.gguf", "m.bin")
    return "not a model of a known format" if is_model and kind == "folder" else "it is not a file"


@pytest.mark.timeout(10)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("layout", "name"), [(layout, name) for layout, names in FILES.items() for name in names]
)
def test_what_is_no_file_is_refused_at_once(
    layout: str, name: str, kind: str, models: Path, tmp_path: Path
) -> None:
    model, missing = model_without(models, layout, name, tmp_path)
    KINDS[kind](missing)
    assert_refused(model, reason(layout, name, kind))


COMMANDS = {
    "inspect": ("inspect", "{}"),
    "complete": ("complete", "-", "-m", "{}"),
    "convert": ("convert", "{}", "out"),
    "tokenize": ("tokenize", "-m", "{}"),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("layout", "name"), [("meta", "tokenizer.model"), ("gguf", "m.gguf")])
def test_each_command_refuses_a_pipe_in_one_line(
    layout: str, name: str, command: str, models: Path, tmp_path: Path
) -> None:
    model, missing = model_without(models, layout, name, tmp_path)
    make_pipe(missing)
    arguments = [part.format(model) for part in COMMANDS[command]]
    result = run(*arguments, home=tmp_path, folder=str(tmp_path), stdin=b"hi")
    assert_clean_error(result, 3, name, "it is not a file")


def test_a_tokenizer_file_alone_may_be_no_pipe(tmp_path: Path) -> None:
    for name in ("tokenizer.model", "tokenizer.json"):
        make_pipe(tmp_path / name)
        result = run("tokenize", "-m", tmp_path / name, home=tmp_path, stdin=b"hi")
        assert_clean_error(result, 3, name, "it is not a file")


# --- files and folders without permission -----------------------------------------------------

AS_NOBODY = """
import os, sys
if os.geteuid() == 0:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
from llama_chat.cli.app import run
sys.exit(run({arguments!r}))
"""
"""Program that root may not read everything in either."""


def run_as_nobody(folder: Path, *arguments: str | Path) -> Result:
    code = AS_NOBODY.format(arguments=[*map(str, arguments)])
    with Program(code, home=folder, command=EXECUTE) as program:
        out, err = program.communicate(b"hi")
        return Result(program.wait(0), out.decode(), err.decode())


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everyone may use, unlike those of pytest."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        yield Path(name)


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        *(("meta", name) for name in FILES["meta"]),
        ("safetensors", "config.json"),
        ("safetensors", "model.safetensors"),
        ("safetensors", "tokenizer.json"),
        ("bins", "pytorch_model.bin.index.json"),
        ("gguf", "m.gguf"),
        ("parts", "m-00002-of-00003.gguf"),
        ("llama2c", "tokenizer.bin"),
    ],
)
def test_a_file_without_permission_is_refused(
    layout: str, name: str, models: Path, open_folder: Path
) -> None:
    model, missing = model_without(models, layout, name, open_folder)
    missing.write_bytes(b"")
    missing.chmod(0)
    result = run_as_nobody(open_folder, "tokenize", "-m", model)
    assert_clean_error(result, 3, repr(str(missing)), "permission denied: check it")


@pytest.mark.parametrize(
    ("layout", "mode", "command"),
    [
        *(("meta", 0o000, command) for command in COMMANDS),
        *(("safetensors", mode, "tokenize") for mode in (0o000, 0o111, 0o444)),
        *(("gguf", mode, "tokenize") for mode in (0o000, 0o444)),
    ],
)
def test_a_folder_without_permission_is_refused(
    layout: str, mode: int, command: str, models: Path, open_folder: Path
) -> None:
    parent = open_folder / "model"
    shutil.copytree(models / layout, parent)
    model = parent / "m.gguf" if layout == "gguf" else parent
    parent.chmod(mode)
    arguments = [part.format(model) for part in COMMANDS[command]]
    result = run_as_nobody(open_folder, *arguments)
    assert_clean_error(result, 3, str(model), "permission denied: check it")


def test_a_model_is_converted_into_no_folder_without_permission(
    models: Path, open_folder: Path
) -> None:
    model, locked = open_folder / "m.gguf", open_folder / "locked"
    shutil.copy(models / "gguf" / "m.gguf", model)
    locked.mkdir()
    (locked / "config.json").touch()
    locked.chmod(0o500 if os.geteuid() else 0o700)
    for out in (locked / "out", locked / "out.gguf"):
        result = run_as_nobody(open_folder, "convert", model, out)
        assert_clean_error(result, 6, "permission denied")
    locked.chmod(0o000)
    result = run_as_nobody(open_folder, "convert", model, locked, "--force")
    assert_clean_error(result, 2, "permission denied")
    locked.chmod(0o700)
    assert [path.name for path in locked.iterdir()] == ["config.json"]
