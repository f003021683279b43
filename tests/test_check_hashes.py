"""``llama-chat check``: files against the hashes that a publisher, a hub or a store states."""

import hashlib
import re
from pathlib import Path

import pytest

from llama_chat.library.starter import DEFAULT, STARTERS
from tests.model_files import edit_json, write_gguf, write_huggingface, write_meta
from tests.test_check import failed, results


def digest(file: Path, kind: str) -> str:
    data = file.read_bytes()
    if kind == "git":
        return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    return hashlib.new(kind, data, usedforsecurity=False).hexdigest()


def test_the_list_of_meta_is_compared(tmp_path: Path) -> None:
    write_meta(tmp_path, n_shards=2)
    names = ("consolidated.00.pth", "consolidated.01.pth", "params.json")
    lines = [f"{digest(tmp_path / name, 'md5')}  {name}\n" for name in names]
    (tmp_path / "checklist.chk").write_text("".join(lines))
    tokenizer = f"{digest(tmp_path / 'tokenizer.model', 'md5')} *tokenizer.model\n"
    (tmp_path / "tokenizer_checklist.chk").write_text(tokenizer)
    assert results(tmp_path)["hashes"].detail == (
        "4 files as of checklist.chk, tokenizer_checklist.chk"
    )
    edit_json(tmp_path / "params.json", norm_eps=2e-5)
    assert failed(tmp_path) == {"hashes": "it is not the file of checklist.chk"}
    named = f"'{tmp_path}/params.json': it is not the file of checklist.chk"
    assert results(tmp_path)["hashes"].detail == named
    (tmp_path / "checklist.chk").write_text("".join([*lines[:2], "0" * 32 + "  gone.pth\n"]))
    assert failed(tmp_path) == {"hashes": "no such file or directory"}
    odd = ("../../etc/passwd", "..", ".", "a/b", "")
    (tmp_path / "checklist.chk").write_text("".join(f"{'0' * 32}  {name}\n" for name in odd))
    assert results(tmp_path)["hashes"].detail == "1 file as of tokenizer_checklist.chk"


@pytest.mark.parametrize("kind", ["sha256", "git"])
def test_the_hash_in_a_hubs_cache_is_compared(kind: str, tmp_path: Path) -> None:
    model, blobs = tmp_path / "models--a--b/snapshots/c", tmp_path / "models--a--b/blobs"
    write_huggingface(model)
    blobs.mkdir()
    for file in list(model.iterdir()):
        blob = blobs / digest(file, kind)
        file.rename(blob)
        file.symlink_to(blob)
    detail = results(model)["hashes"].detail
    assert re.fullmatch(r"\d+ files as of its name in the hub's cache", detail)
    weights = (model / "model.safetensors").resolve()
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert failed(model) == {"hashes": "it is not the file of its name in the hub's cache"}


@pytest.mark.parametrize("quote", ['"', ""])
def test_the_hash_beside_a_download_is_compared(quote: str, tmp_path: Path) -> None:
    write_huggingface(tmp_path)
    folder = tmp_path / ".cache/huggingface/download"
    folder.mkdir(parents=True)
    etag = quote + digest(tmp_path / "model.safetensors", "sha256") + quote
    (folder / "model.safetensors.metadata").write_text(f"{'0' * 40}\n{etag}\n1700000000.0\n")
    assert results(tmp_path)["hashes"].detail == "1 file as of the hub"
    (folder / "config.json.metadata").write_text(f"{'0' * 40}\n{'1' * 40}\n1700000000.0\n")
    assert failed(tmp_path) == {"hashes": "it is not the file of the hub"}
    (folder / "config.json.metadata").write_text("no hash\n\n")
    assert failed(tmp_path) == {}


def test_the_name_in_the_store_of_ollama_is_compared(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf")
    right = tmp_path / f"sha256-{digest(tmp_path / 'm.gguf', 'sha256')}"
    (tmp_path / "m.gguf").rename(right)
    assert results(right)["hashes"].detail == "1 file as of its name in ollama's store"
    wrong = right.rename(tmp_path / f"sha256-{'0' * 64}")
    assert failed(wrong) == {"hashes": "it is not the file of its name in ollama's store"}


def test_every_part_of_a_model_is_compared(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", tensors_a_file=12)
    parts = sorted(tmp_path.glob("m-*.gguf"))
    folder = tmp_path / ".cache/huggingface/download"
    folder.mkdir(parents=True)
    for part in parts:
        (folder / f"{part.name}.metadata").write_text(f"0\n{digest(part, 'sha256')}\n")
    assert results(parts[0])["hashes"].detail == f"{len(parts)} files as of the hub"
    (folder / f"{parts[-1].name}.metadata").write_text(f"0\n{'0' * 64}\n")
    assert results(parts[0])["hashes"].detail.startswith(f"'{parts[-1]}': it is not")


def test_a_starter_has_a_known_hash(tmp_path: Path) -> None:
    write_gguf(tmp_path / STARTERS[DEFAULT].file_name)
    detail = "it is not the file of the starter SmolLM2-135M-Instruct"
    assert failed(tmp_path / STARTERS[DEFAULT].file_name) == {"hashes": detail}
