"""Bad models, tokenizers, settings and prompts, as a user's script meets them.

Each case gets all that a bad input must: its exit status, one line on stderr without control
characters or words of Python, nothing on stdout, little time and memory, and no file is touched.
Most are cases of the tests of a reader, which has more of them.
"""

import json
import os
import shutil
import struct
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from harness.campaigns.text import memory_figure
from harness.program import Result, assert_clean_error, run
from llama_chat.cli import app
from tests.model_files import META, edit_json, write_gguf, write_huggingface, write_meta
from tests.test_checkpoints import BAD_META
from tests.test_gguf_format import BAD_METADATA, RAW_GGUF
from tests.test_prompt_files import BAD_TEXTS, BAD_TOML
from tests.test_safetensors import BAD as BAD_SAFETENSORS
from tests.test_settings import BAD_FILES
from tests.test_zip_entries import DAMAGE
from tests.torch_archives import Stored, pickled, write_archive

MAX_SECONDS = 2.0
MAX_BYTES = 300 * 2**20

Change = Callable[[Path], object]
"""Makes a folder bad; in one that was empty it returns the path of the model."""


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with sound models: of Meta, of the Hub, and none."""
    folder = tmp_path_factory.mktemp("sound")
    write_meta(folder / "meta")
    write_huggingface(folder / "hub")
    (folder / "nothing").mkdir()
    return folder


def raw(name: str, data: bytes) -> Change:
    return lambda folder: [folder / name, (folder / name).write_bytes(data)][0]


def shard(data: bytes) -> Change:
    return lambda folder: (folder / "consolidated.00.pth").write_bytes(data)


def weights(data: bytes) -> Change:
    return lambda folder: (folder / "model.safetensors").write_bytes(data)


def archive(damage: str) -> Change:
    def change(folder: Path) -> None:
        write_archive(folder / "consolidated.00.pth", {"a": Stored()})
        DAMAGE[damage][0](folder / "consolidated.00.pth")

    return change


def index(**places: str) -> Change:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        file = folder / "model.safetensors.index.json"
        file.write_text(json.dumps({"weight_map": places}))

    return change


def metadata(case: str) -> Change:
    def change(folder: Path) -> Path:
        write_gguf(folder / "m.gguf", metadata=BAD_METADATA[case][0])
        return folder / "m.gguf"

    return change


def flip(folder: Path) -> None:
    file = folder / "consolidated.00.pth"
    data = bytearray(file.read_bytes())
    data[data.index(b"attention.wq") + 3] ^= 1
    file.write_bytes(data)


def other_shard(folder: Path) -> None:
    write_meta(folder / "other", replace(META, n_layers=3), n_shards=2)
    write_meta(folder, n_shards=2)
    shutil.copy(folder / "other/consolidated.01.pth", folder)


def one_shard(folder: Path) -> None:
    write_meta(folder, n_shards=2)
    (folder / "consolidated.01.pth").unlink()


def folder_for_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.model").unlink()
    (folder / "tokenizer.model").mkdir()


def long_piece(folder: Path) -> None:
    def field(text: bytes) -> bytes:
        n = len(text)
        return bytes((0x0A, n & 0x7F | 0x80, n >> 7 & 0x7F | 0x80, n >> 14)) + text

    (folder / "tokenizer.model").write_bytes(field(field(b"a" * 200_000)))


MODELS: dict[str, tuple[str, Change, str]] = {
    "no such folder": ("nothing", lambda d: d / "nowhere", "neither a path nor a known name"),
    "a file": ("nothing", raw("x.txt", b"text"), "not a model of a known format"),
    "a folder without a model": ("nothing", lambda d: None, "not a model of a known format"),
    "an old tar": ("meta", shard(bytes(257) + b"ustar" + bytes(900)), "wrote them before 2020"),
    "a flipped byte": ("meta", flip, "is damaged"),
    "a pickle that calls": (
        "meta",
        lambda d: write_archive(d / "consolidated.00.pth", pickled({"a": os.system})),
        "may be harmful",
    ),
    "one shard of two": ("meta", one_shard, "1 of 2 shards are there"),
    "a shard of another model": ("meta", other_shard, "shards 0 and 1 differ"),
    "deflated": ("meta", archive("packed"), "its parts are compressed or encrypted"),
    "overlapping": ("meta", archive("one in the other"), "its parts overlap"),
    "an index of nothing": ("hub", index(), "it names no shard"),
    "an index of a missing shard": ("hub", index(a="gone.safetensors"), "is missing"),
    "an index of another folder": ("hub", index(a="../../etc/passwd"), "not the name of a shard"),
    "a folder for a tokenizer": ("hub", folder_for_tokenizer, "it is not a file"),
    "a piece of 200 KB": ("meta", long_piece, "it is not a SentencePiece model, or damaged"),
    "an id past all tokens": (
        "hub",
        lambda d: edit_json(
            d / "tokenizer_config.json", added_tokens_decoder={"1048575": {"content": "zz"}}
        ),
        "it has an id of 1048575",
    ),
    "GGUF, keys of 2^64": (
        "nothing",
        raw("m.gguf", b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**64 - 1)),
        "it ends in the middle",
    ),
    **{f"Meta, {case}": ("meta", change, why) for case, (change, why) in BAD_META.items()},
    **{
        f"safetensors, {case}": ("hub", weights(data), "")
        for case, (data, _) in BAD_SAFETENSORS.items()
    },
    **{
        f"GGUF, {case}": ("nothing", metadata(case), why) for case, (_, why) in BAD_METADATA.items()
    },
    **{
        f"GGUF, {case} ": ("nothing", raw("m.gguf", data), why)
        for case, (data, why) in RAW_GGUF.items()
    },
}

SETTINGS: dict[str, tuple[str | bytes | None, str]] = {
    **BAD_FILES,
    "missing": (None, "no such file"),
    "UTF-32": ("top_k = 3".encode("utf-32"), "UTF-8"),
    "infinity in an integer": ("top_k = inf", "does not fit"),
    "minus": ("seed = -1", "does not fit"),
}

PROMPTS: dict[str, tuple[str, str | bytes]] = {
    **{case: (".txt", data) for case, (data, _) in BAD_TEXTS.items()},
    **{f"{case}, structured": (".toml", data) for case, (data, _) in BAD_TOML.items()},
}


def spoiled(folder: Path, base: str, change: Change) -> Path:
    """Change a copy of a sound model; returns the path to name."""
    found = change(folder)
    return found if base == "nothing" and isinstance(found, Path) else folder


def files_below(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path): (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
    }


def refused(
    capsys: pytest.CaptureFixture[str], folder: Path, status: int, why: str, *command: str | Path
) -> None:
    """Run a command in this process, and check all that a bad input must get."""
    before = files_below(folder)
    for _ in range(2):  # twice if it is slow: the machine may be busy
        Path("/proc/self/clear_refs").write_text("5")
        memory, began = memory_figure("VmRSS"), time.monotonic()
        found = app.run(list(map(str, command)))
        seconds, shown = time.monotonic() - began, capsys.readouterr()
        if seconds < MAX_SECONDS:
            break
    assert_clean_error(Result(found, shown.out, shown.err), status, why)
    assert (seconds < MAX_SECONDS, memory_figure("VmHWM") - memory < MAX_BYTES) == (True, True)
    assert files_below(folder) == before


@pytest.mark.parametrize("case", MODELS)
def test_bad_models_and_tokenizers(
    case: str,
    sound: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base, change, why = MODELS[case]
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = tmp_path / "model"
    shutil.copytree(sound / base, folder)
    model = spoiled(folder, base, change)
    refused(capsys, folder, 3, why, "inspect", model)


@pytest.mark.parametrize("case", SETTINGS)
def test_bad_settings(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, why = SETTINGS[case]
    file = tmp_path / "config.toml"
    if data is not None:
        file.write_bytes(data if isinstance(data, bytes) else data.encode())
    refused(capsys, tmp_path, 2, why, "config", "show", "--config", file)


@pytest.mark.parametrize("case", PROMPTS)
def test_bad_prompts(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suffix, data = PROMPTS[case]
    file = tmp_path / f"prompt{suffix}"
    file.write_bytes(data if isinstance(data, bytes) else data.encode())
    refused(capsys, tmp_path, 2, "prompt", "complete", file, "-m", "/nowhere")


@pytest.mark.parametrize(
    "case", ["Meta, params deep", "safetensors, twice", "GGUF, nested arrays "]
)
def test_the_program_does_so_too(case: str, sound: Path, tmp_path: Path) -> None:
    base, change, why = MODELS[case]
    shutil.copytree(sound / base, tmp_path / "model")
    model = spoiled(tmp_path / "model", base, change)
    for command in (
        ("complete", "-", "-m", model),
        ("tokenize", "-m", model),
        ("bench", "-m", model),
    ):
        assert_clean_error(run(*command, home=tmp_path, stdin=b"hi"), 3, why)
