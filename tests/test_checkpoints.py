"""Checkpoints read back exactly, and hostile ones are refused in one line before they are read."""

import dataclasses
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import torch

from harness.program import Program
from llama_chat.checkpoints.meta import MetaCheckpoint
from llama_chat.checkpoints.small_files import JsonObject
from llama_chat.errors import ModelError
from llama_chat.loading.plan import load
from tests.execute import EXECUTE
from tests.model_files import META, TOKENS, assert_refused, edit_json, write_gguf, write_meta

Q = gguf.GGMLQuantizationType


# --- Meta's layout ------------------------------------------------------------------------


@pytest.mark.parametrize("n_shards", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_meta_weights_read_back_bit_for_bit(
    tmp_path: Path, n_shards: int, dtype: torch.dtype
) -> None:
    weights = write_meta(tmp_path, n_shards=n_shards, dtype=dtype)
    checkpoint = MetaCheckpoint.open(tmp_path)
    assert checkpoint.config == dataclasses.replace(META)
    assert checkpoint.dtype == dtype
    assert checkpoint.tensors.keys() == weights.keys()
    for name, weight in weights.items():
        assert checkpoint.read(name, dtype).equal(weight)
        assert checkpoint.read(name, torch.float32).equal(weight.float())


def test_meta_weights_of_the_wanted_type_are_not_copied(meta_model: Path) -> None:
    checkpoint = MetaCheckpoint.open(meta_model)
    for name in checkpoint.tensors:
        first = checkpoint.read(name, torch.float32)
        assert first.data_ptr() == checkpoint.read(name, torch.float32).data_ptr()


def test_code_llama_has_a_longer_context(tmp_path: Path) -> None:
    write_meta(tmp_path, dataclasses.replace(META, vocab_size=416))  # padded, too
    assert MetaCheckpoint.open(tmp_path).config.context_length == 4096
    edit_json(tmp_path / "params.json", rope_theta=1e6)
    config = MetaCheckpoint.open(tmp_path).config
    assert (config.rope_theta, config.context_length) == (1e6, 16_384)
    assert load(tmp_path).tokenizer.vocab_size == 400


@pytest.mark.parametrize(
    ("dim", "multiple_of", "multiplier", "hidden"),
    [
        (4096, 256, None, 11008),
        (5120, 256, None, 13824),
        (8192, 4096, 1.3, 28672),
        (4096, 1024, 1.3, 14336),
        (2048, 256, 1.5, 8192),
    ],
    ids=["7B", "13B", "70B", "Llama 3 8B", "Llama 3.2 1B"],
)
def test_hidden_size_of_metas_releases(
    dim: int, multiple_of: int, multiplier: float | None, hidden: int
) -> None:
    from llama_chat.checkpoints.meta_config import _hidden_dim

    values = {"multiple_of": multiple_of, "ffn_dim_multiplier": multiplier}
    assert _hidden_dim(JsonObject("params.json", values), dim) == hidden


class _Attack:
    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.sentinel}",)


def _repack(path: Path, compression: int) -> None:
    with zipfile.ZipFile(path) as archive:
        parts = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in parts:
            archive.writestr(name, data)


def _edit_shard(folder: Path, change: Callable[[dict[str, object]], object]) -> None:
    file = folder / "consolidated.00.pth"
    shard = torch.load(file, weights_only=True)
    changed = change(shard)
    torch.save(shard if changed is None else changed, file)


def _params(folder: Path, **changes: object) -> None:
    file = folder / "params.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def _shard(data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / "consolidated.00.pth").write_bytes(data)


def _text(data: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "params.json").write_text(data)


def _legacy(folder: Path) -> None:
    torch.save(
        {"a": torch.zeros(2)},
        folder / "consolidated.00.pth",
        _use_new_zipfile_serialization=False,
    )


def _cut(folder: Path) -> None:
    file = folder / "consolidated.00.pth"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


BAD_META: dict[str, tuple[Callable[[Path], object], str]] = {
    "no shard": (lambda d: (d / "consolidated.00.pth").unlink(), "no consolidated.*.pth"),
    "first shard missing": (
        lambda d: (d / "consolidated.00.pth").rename(d / "consolidated.01.pth"),
        "consolidated.00.pth is missing",
    ),
    "empty": (_shard(b""), "it is empty"),
    "git-lfs": (_shard(b"version https://git-lfs.github.com/spec/v1\noid x"), "git lfs pull"),
    "web page": (_shard(b"<!DOCTYPE html><html>404</html>"), "a web page"),
    "noise": (_shard(bytes(range(256)) * 9), "not a checkpoint"),
    "cut off": (_cut, "cut off or damaged"),
    "legacy": (_legacy, "as torch wrote them before 2020"),
    "packed": (
        lambda d: _repack(d / "consolidated.00.pth", zipfile.ZIP_DEFLATED),
        "its parts are compressed or encrypted",
    ),
    "other zip": (
        lambda d: zipfile.ZipFile(d / "consolidated.00.pth", "w").writestr("a", "b"),
        "damaged",
    ),
    "not a table": (lambda d: _edit_shard(d, lambda s: [1, 2]), "not a table of weights"),
    "not tensors": (lambda d: _edit_shard(d, lambda s: s.update(x=1)), "more than named weights"),
    "tensor missing": (
        lambda d: _edit_shard(d, lambda s: s.__delitem__("norm.weight")),
        "tensor norm.weight is missing",
    ),
    "tensor extra": (
        lambda d: _edit_shard(d, lambda s: s.update({"x\x1b[31m": torch.zeros(2)})),
        "belongs to no part",
    ),
    "tensor misshapen": (
        lambda d: _edit_shard(d, lambda s: s.update({"norm.weight": torch.zeros(3)})),
        "tensor norm.weight has shape (3,), not (64,)",
    ),
    "integers": (
        lambda d: _edit_shard(
            d, lambda s: s.update({"norm.weight": torch.zeros(64, dtype=torch.int8)})
        ),
        "of type int8",
    ),
    "sparse": (
        lambda d: _edit_shard(d, lambda s: s.update({"norm.weight": torch.zeros(64).to_sparse()})),
        "",
    ),
    "stride 0": (
        lambda d: _edit_shard(d, lambda s: s.update({"norm.weight": torch.zeros(1).expand(64)})),
        "not stored row by row",
    ),
    "params missing": (lambda d: (d / "params.json").unlink(), "params.json': missing"),
    "params empty": (_text(""), "not JSON"),
    "params no JSON": (_text("{dim: 64}"), "not JSON"),
    "params array": (_text("[1]"), "not a JSON object"),
    "params deep": (_text("[" * 100_000), "not JSON"),
    "params long number": (_text('{"dim": ' + "9" * 5000 + "}"), "not JSON"),
    "params NaN": (lambda d: _params(d, norm_eps=float("nan")), "norm_eps is nan"),
    "params huge": (_text(" " * (2**20 + 1)), "larger than 1 MiB"),
    "dim 0": (lambda d: _params(d, dim=0), "dim"),
    "dim negative": (lambda d: _params(d, dim=-64), "dim"),
    "dim text": (lambda d: _params(d, dim="64"), "dim is '64'"),
    "dim missing": (lambda d: _text("{}")(d), "dim is missing"),
    "heads odd": (lambda d: _params(d, n_heads=7), "no multiple of n_heads 7"),
    "heads 0": (lambda d: _params(d, n_heads=0), "n_heads is 0"),
    "more KV heads": (lambda d: _params(d, n_kv_heads=16), "no multiple of n_kv_heads 16"),
    "KV heads true": (lambda d: _params(d, n_kv_heads=True), "n_kv_heads"),
    "layers 10^6": (lambda d: _params(d, n_layers=10**6), "1000000 layers"),
    "layers too few": (lambda d: _params(d, n_layers=1), "layers.1."),
    "no tokenizer": (lambda d: (d / "tokenizer.model").unlink(), "no tokenizer.model"),
    "tokenizer empty": (lambda d: (d / "tokenizer.model").write_bytes(b""), "it is empty"),
    "tokenizer web page": (
        lambda d: (d / "tokenizer.model").write_bytes(b"\n<html>"),
        "a web page",
    ),
    "tokenizer cut": (
        lambda d: (d / "tokenizer.model").write_bytes((d / "tokenizer.model").read_bytes()[:999]),
        "not a SentencePiece model",
    ),
    "tokenizer of Llama 3": (
        lambda d: (d / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n"),
        "it lacks tokens for single bytes",
    ),
}


@pytest.mark.parametrize("case", BAD_META)
def test_bad_meta_checkpoints_are_refused(case: str, meta_model: Path, tmp_path: Path) -> None:
    damage, why = BAD_META[case]
    folder = tmp_path / "model"
    shutil.copytree(meta_model, folder)
    damage(folder)
    assert_refused(folder, why)


def test_a_pickle_that_runs_a_program_does_not_run_it(meta_model: Path, tmp_path: Path) -> None:
    folder, sentinel = tmp_path / "model", tmp_path / "ran"
    shutil.copytree(meta_model, folder)
    torch.save({"a": _Attack(sentinel)}, folder / "consolidated.00.pth")
    assert_refused(folder, "more than weights")
    (folder / "consolidated.00.pth").write_bytes(pickle.dumps(_Attack(sentinel)))
    assert_refused(folder, "which may run programs: take safetensors")
    assert not sentinel.exists()


def test_missing_and_foreign_shards_are_refused(tmp_path: Path) -> None:
    two = tmp_path / "two"
    write_meta(two, n_shards=2)
    (two / "consolidated.01.pth").rename(two / "kept")
    assert_refused(two, "1 of 2 shards are there")
    write_meta(tmp_path / "other", dataclasses.replace(META, n_layers=3), n_shards=2)
    shutil.copy(tmp_path / "other" / "consolidated.01.pth", two)
    assert_refused(two, "shards 0 and 1 differ")


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path: Path) -> None:
    write_meta(tmp_path, dataclasses.replace(META, vocab_size=300))
    assert_refused(tmp_path, "400 tokens and the model 300")


def test_padded_embeddings_are_accepted(tmp_path: Path) -> None:
    write_meta(tmp_path, dataclasses.replace(META, vocab_size=416))
    llama = load(tmp_path)
    assert llama.tokenizer.token_bytes(410) == b""
    assert llama.logits([1, 5]).shape == (2, 416)


def test_paths_without_a_model_are_refused(tmp_path: Path, meta_model: Path) -> None:
    assert_refused(tmp_path / "nowhere", "no such file or folder")
    assert_refused(tmp_path, "not a model of a known format")
    assert_refused(meta_model / "params.json", "not a model of a known format")


def test_nan_weights_give_an_error_not_nonsense(tmp_path: Path) -> None:
    write_meta(tmp_path)
    _edit_shard(tmp_path, lambda s: s.update({"norm.weight": torch.full((64,), float("nan"))}))
    llama = load(tmp_path)
    with pytest.raises(ModelError, match="not a number"):
        list(llama.generate([1, 5]))


def test_memory_stays_near_one_copy_of_the_model(tmp_path: Path) -> None:
    # Anonymous memory of a separate process: mapped files do not count, copies do.
    config = dataclasses.replace(META, dim=512, n_heads=8, head_dim=64, hidden_dim=1408, n_layers=8)
    write_meta(tmp_path, config, n_shards=2)
    params = json.loads((tmp_path / "params.json").read_text()) | {"multiple_of": 64}
    (tmp_path / "params.json").write_text(json.dumps(params))
    program = f"""
import re
from llama_chat.loading.plan import load
def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
peaks = [anonymous()]
llama = load({str(tmp_path)!r}, report=lambda done, total: peaks.append(anonymous()))
weights = sum(p.nbytes for p in llama.model.parameters())
print((max(peaks) - peaks[0]) / weights)
"""
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc to tell anonymous memory from mapped files")
    with Program(program, home=tmp_path, command=EXECUTE) as process:
        out, _ = process.communicate()
    assert float(out) < 1.25


def test_the_same_model_in_both_formats_has_the_same_logits(tmp_path: Path) -> None:
    # Written from one seed: Meta's rotary order is GGUF's.
    config = dataclasses.replace(META, vocab_size=len(TOKENS) + 200)
    write_meta(tmp_path / "meta", config, seed=4)
    config = dataclasses.replace(config, context_length=4096)
    write_gguf(tmp_path / "m.gguf", config, seed=4)
    ids = list(range(3, 90))
    assert load(tmp_path / "meta").logits(ids).equal(load(tmp_path / "m.gguf").logits(ids))
