"""The ``convert`` command: its messages and refusals, and a model written completely or not."""

import os
import resource
import signal
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from harness.program import Program
from llama_chat import load
from llama_chat.cli.app import run
from llama_chat.conversion.output import appearing, check_space
from llama_chat.conversion.target import choose_target
from llama_chat.errors import SaveError, UsageError
from tests.model_files import write_meta


def convert(*arguments: str | Path) -> int:
    """Run the command in this process; returns its exit status."""
    return run(["convert", *map(str, arguments)])


def refused(
    capsys: pytest.CaptureFixture[str], status: int, why: str, *arguments: str | Path
) -> None:
    """Check that the command ends with ``status`` and one line that says ``why``."""
    assert convert(*arguments) == status
    shown = capsys.readouterr()
    assert shown.out == ""
    errors = [line for line in shown.err.splitlines() if "error:" in line]
    assert len(errors) == 1
    assert errors[0].startswith("llama-chat: error: ")
    assert why in errors[0]


def names(folder: Path) -> list[str]:
    """List the names in a folder."""
    return sorted(path.name for path in folder.iterdir())


def test_it_reports_what_it_wrote(
    gguf_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(gguf_model, tmp_path / "hf", "--type", "f16") == 0
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == f"written: {tmp_path / 'hf'} (F16; 384 KB before, 192 KB now)\n"
    stored = safetensors.torch.load_file(tmp_path / "hf" / "model.safetensors")
    assert {weight.dtype for weight in stored.values()} == {torch.float16}
    assert convert(gguf_model, tmp_path / "q.gguf", "--type", "Q4_0", "-q") == 0
    assert convert(tmp_path / "q.gguf", tmp_path / "f.gguf", "-q") == 0
    warning = "the weights are Q4_0: what these give is rounded again to F16"
    assert capsys.readouterr().err == f"llama-chat: warning: {warning}\n"
    assert convert(tmp_path / "q.gguf", tmp_path / "g.gguf", "-q", "--type", "F32") == 0
    assert capsys.readouterr().err == ""


def test_it_finds_a_model_by_name_in_the_folders_of_the_settings(
    gguf_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_CHAT_MODEL_PATHS", str(gguf_model.parent))
    assert convert(gguf_model.stem, tmp_path / "named.gguf", "-q") == 0
    assert names(tmp_path) == ["named.gguf"]


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--to", "onnx"], "no such format"),
        (["--type", "Q2_K"], "no such type"),
        (["--type", "Q8_0"], "safetensors has no such type"),
        (["--to", "gguf", "--shard-size", "1GB"], "a GGUF file is one file"),
        (["--shard-size", "0"], "not a size"),
    ],
)
def test_impossible_targets_are_refused(
    flags: list[str], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, 2, why, "/nowhere", tmp_path / "out", *flags)


def test_the_suffix_and_sizes_are_understood() -> None:
    assert choose_target(Path("a.GGUF"), None, "q8_0", None).format == "gguf"
    assert choose_target(Path("a.gguf"), "safetensors", None, "10 mb").shard_bytes == 10**7
    assert choose_target(Path("a"), None, None, None).shard_bytes == 5 * 10**9
    assert choose_target(Path("llama-3.2"), None, None, None).format == "safetensors"
    with pytest.raises(UsageError, match=r"'a\.bin': no model is written as \.bin: name a \.gguf"):
        choose_target(Path("a.bin"), None, None, None)
    assert choose_target(Path("a.bin"), "safetensors", None, None).format == "safetensors"


def test_nothing_is_replaced_without_force(
    gguf_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("m.gguf", "hf"):
        out = tmp_path / name
        assert convert(gguf_model, out) == 0
        before = sorted(os.walk(out))
        capsys.readouterr()
        refused(capsys, 2, "it is there already", gguf_model, out)
        assert sorted(os.walk(out)) == before
        assert convert(gguf_model, out, "--force", "--type", "F16") == 0
        assert sorted(os.walk(out)) == before
    assert names(tmp_path) == ["hf", "m.gguf"]
    assert load(tmp_path / "m.gguf").checkpoint.dtype == torch.float16


def test_force_replaces_neither_other_files_nor_the_source(
    gguf_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "mine.txt").touch()
    out = tmp_path / "letters"
    refused(capsys, 2, "a folder of other files", gguf_model, out, "--force")
    assert (tmp_path / "letters" / "mine.txt").exists()
    for name in ("notes.md", ".git"):
        assert convert(gguf_model, tmp_path / "hf", "--force") == 0
        (tmp_path / "hf" / name).touch()
        why = f"a folder of other files, such as '{name}'"
        refused(capsys, 2, why, gguf_model, tmp_path / "hf", "--force")
        (tmp_path / "hf" / name).unlink()
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "config.json").write_text('{"port": 8080}')
    refused(capsys, 2, "a folder of other files", gguf_model, tmp_path / "app", "--force")
    assert (tmp_path / "app" / "config.json").read_text() == '{"port": 8080}'
    refused(capsys, 2, "the model itself is there", gguf_model, gguf_model, "--force")
    refused(capsys, 2, "the model itself is there", gguf_model, gguf_model.parent, "--force")
    (tmp_path / "letter.txt").write_text("Dear Sir")
    write_meta(tmp_path / "meta")
    for other in (tmp_path / "letter.txt", tmp_path / "meta" / "consolidated.00.pth"):
        before = other.read_bytes()
        flags = ("--force", "--to", "gguf")
        refused(capsys, 2, "a file of another kind", tmp_path / "meta", other, *flags)
        assert other.read_bytes() == before


@pytest.mark.parametrize("flags", [(), ("--force",)])
@pytest.mark.parametrize("kind", ["model folder", "empty folder", "link to a folder", "pipe"])
def test_a_gguf_file_replaces_files_only(
    kind: str,
    flags: tuple[str, ...],
    gguf_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out.gguf"
    if kind == "pipe":
        os.mkfifo(out)
    elif kind == "link to a folder":
        (tmp_path / "folder").mkdir()
        out.symlink_to(tmp_path / "folder")
    else:
        out.mkdir()
    if kind == "model folder":
        for name in ("config.json", "thesis.txt"):
            (out / name).write_text("mine")
    before = sorted(os.walk(tmp_path))
    refused(capsys, 2, "it is no file", gguf_model, out, *flags)
    assert sorted(os.walk(tmp_path)) == before


@pytest.mark.parametrize("flags", [(), ("--force",)])
@pytest.mark.parametrize("kind", ["file", "link to a file", "dangling link", "pipe"])
def test_a_folder_of_safetensors_replaces_folders_only(
    kind: str,
    flags: tuple[str, ...],
    gguf_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, file = tmp_path / "out", tmp_path / "file"
    if kind == "pipe":
        os.mkfifo(out)
    elif kind == "file":
        out.write_text("mine")
    else:
        out.symlink_to(file)
    if kind == "link to a file":
        file.write_text("mine")
    before = sorted(os.walk(tmp_path))
    refused(capsys, 2, "it is no folder", gguf_model, out, *flags)
    assert sorted(os.walk(tmp_path)) == before


def test_a_file_never_takes_the_place_of_a_folder(tmp_path: Path) -> None:
    # Made by another program after the place was checked.
    out = tmp_path / "out.gguf"
    out.mkdir()
    (out / "mine.txt").touch()
    with pytest.raises(SaveError, match="is a directory"), appearing(out) as made:
        made.write_bytes(b"GGUF")
    assert names(tmp_path) == ["out.gguf"]
    assert names(out) == ["mine.txt"]


def test_a_damaged_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    refused(capsys, 3, "it ends in the middle", tmp_path / "m.gguf", tmp_path / "out")
    assert names(tmp_path) == ["m.gguf"]


@pytest.mark.parametrize("name", ["m.gguf", "hf"])
def test_a_place_that_cannot_be_written_is_refused(
    name: str, gguf_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, 6, "its folder does not exist: create", gguf_model, tmp_path / "no" / name)
    (tmp_path / "file").touch()
    refused(capsys, 6, "not a directory", gguf_model, tmp_path / "file" / name)
    with pytest.raises(SaveError, match="it takes 1,000,000,000,000,000,000 bytes"):
        check_space(tmp_path / name, 10**18)


@pytest.mark.parametrize("name", ["m.gguf", "hf"])
def test_a_full_disk_leaves_what_was_there(
    name: str, gguf_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / name
    assert convert(gguf_model, out) == 0
    capsys.readouterr()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        refused(capsys, 6, "choose another place", gguf_model, out, "--force")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names(tmp_path) == [name]
    found = out if name == "m.gguf" else out / "model.safetensors"
    assert found.stat().st_size > 384_000


@pytest.mark.parametrize("name", ["m.gguf", "hf"])
def test_an_interrupt_leaves_nothing(name: str, starter_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    command = ("convert", starter_model, out / name, "--type", "F32")
    with Program(*command, home=tmp_path) as child:
        while not names(out):  # until it writes
            assert child.poll() is None
            time.sleep(0.01)
        child.kill(signal.SIGINT)
        _, errors = child.communicate()
    assert child.returncode == 130, errors
    assert b"Traceback" not in errors
    assert names(out) == []


def test_a_failure_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with appearing(tmp_path / "folder") as made:
            made.mkdir()
            (made / "half").touch()
            raise UsageError("a", "b", "c")

    with pytest.raises(UsageError):
        fail()
    assert names(tmp_path) == []


def test_a_type_that_cannot_hold_the_numbers_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = write_meta(tmp_path / "m")
    stored["layers.1.attention.wv.weight"][3, 4] = 1e5
    torch.save(stored, tmp_path / "m" / "consolidated.00.pth")
    for name in ("o.gguf", "o"):
        why = "tensor layers.1.attention.wv.weight has numbers above 65504"
        refused(capsys, 2, why, tmp_path / "m", tmp_path / name, "--type", "F16")
    assert names(tmp_path) == ["m"]


@pytest.mark.filterwarnings("error")  # each would be a line on stderr
@pytest.mark.parametrize(("kind", "number"), [("Q8_0", 1e7), ("Q4_0", 6e5), ("Q4_1", 7e4)])
def test_a_block_that_cannot_hold_the_numbers_is_refused(
    kind: str, number: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = write_meta(tmp_path / "m")
    stored["layers.1.attention.wv.weight"][3, :33] = number
    torch.save(stored, tmp_path / "m" / "consolidated.00.pth")
    why = f"tensor layers.1.attention.wv.weight has numbers that blocks of {kind} cannot hold"
    refused(capsys, 2, why, tmp_path / "m", tmp_path / "o.gguf", "--type", kind)
    assert names(tmp_path) == ["m"]
