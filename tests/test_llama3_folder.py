"""Meta's folders of Llama 3: ``params.json``, shards of rows, and a tokenizer of ranks."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harness.program import run
from llama_chat.checkpoints.base import Checkpoint
from llama_chat.loading.formats import open_checkpoint
from llama_chat.loading.plan import load
from llama_chat.model.rope import Llama3Scaling
from tests.meta_folders import LLAMA_3, N_RANKED, RANKED, write_llama_3
from tests.model_files import assert_refused, edit_json, write_meta

TEXT = "the other man, 12345 then\n<|eot_id|>é"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as of Llama 3.1."""
    path = tmp_path_factory.mktemp("llama") / "Llama-3.1"
    write_llama_3(path, use_scaled_rope=True)
    return path


PARAMS: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "3.0": ({}, {}),
    "3.0, stated": ({"use_scaled_rope": False, "vocab_size": N_RANKED}, {}),
    "3.1": (
        {"use_scaled_rope": True},
        {"context_length": 131_072, "rope_scaling": Llama3Scaling(8.0, 1.0, 4.0, 8192)},
    ),
    "3.2": (
        {"use_scaled_rope": True, "rope_scale_factor": 32},
        {"context_length": 131_072, "rope_scaling": Llama3Scaling(32, 1.0, 4.0, 8192)},
    ),
    "the newer name": (
        {"use_scaled_rope": True, "rope_scaling_factor": 16, "rope_high_freq_factor": 2},
        {"context_length": 131_072, "rope_scaling": Llama3Scaling(16, 1.0, 2, 8192)},
    ),
    "shorter": ({"max_seq_len": 1000}, {"context_length": 1000}),
}


def test_params_of_each_release(folder: Path, tmp_path: Path) -> None:
    write_llama_3(tmp_path)
    whole = (tmp_path / "params.json").read_text()
    for params, expected in PARAMS.values():
        (tmp_path / "params.json").write_text(whole)
        edit_json(tmp_path / "params.json", **params)
        checkpoint = open_checkpoint(tmp_path)
        assert checkpoint.config == replace(LLAMA_3, **expected)  # type: ignore[arg-type]
        assert len(checkpoint.warnings) == (params == {"use_scaled_rope": True})


@pytest.mark.parametrize("n_shards", [1, 2, 4])
def test_shards_of_rows_read_back(n_shards: int, tmp_path: Path) -> None:
    weights = write_llama_3(tmp_path, n_shards=n_shards)
    checkpoint = open_checkpoint(tmp_path)
    for name, weight in weights.items():
        assert checkpoint.read(name, torch.float32).equal(weight), name


def test_params_may_be_nested(tmp_path: Path) -> None:
    write_llama_3(tmp_path)
    file = tmp_path / "params.json"
    file.write_text(json.dumps({"model": json.loads(file.read_text())}))
    assert open_checkpoint(tmp_path).config == LLAMA_3


def test_a_tied_model_has_no_output_matrix(tmp_path: Path) -> None:
    config = replace(LLAMA_3, tie_embeddings=True)
    write_llama_3(tmp_path, config)
    assert open_checkpoint(tmp_path).config == config


def test_a_missing_shard_is_told(tmp_path: Path) -> None:
    write_llama_3(tmp_path, n_shards=2)
    (tmp_path / "consolidated.01.pth").unlink()
    assert_refused(tmp_path, "1 of 2 shards are there: download the missing ones")


def test_a_prompt_begins_with_bos_and_typed_tokens_are_text(folder: Path) -> None:
    llama = load(folder)
    ids = llama.prompt_ids(TEXT)
    assert ids[0] == len(RANKED)
    assert max(ids[1:]) < len(RANKED)
    assert llama.tokenizer.decode(ids[1:]) == TEXT
    assert llama.tokenizer.control_ids["<|eom_id|>"] == len(RANKED) + 8


def test_the_template_is_that_of_llama_3(folder: Path, tmp_path: Path) -> None:
    flags = ("-m", folder, "--temperature", "0", "--max-tokens", "2")
    result = run("ask", "hi", *flags, home=tmp_path)
    assert result.status == 0, result.err
    assert "llama3" in result.err
    assert run("inspect", folder, home=tmp_path).status == 0


@pytest.mark.parametrize("target", ["m.gguf", "m"])
def test_a_converted_model_has_the_same_ids_and_logits(
    target: str, folder: Path, tmp_path: Path
) -> None:
    result = run("convert", folder, tmp_path / target, home=tmp_path)
    assert result.status == 0, result.err
    before, after = load(folder, kv_dtype="auto"), load(tmp_path / target)
    ids = before.prompt_ids(TEXT)
    assert after.prompt_ids(TEXT) == ids
    control = dict(before.tokenizer.control_ids)
    assert dict(after.tokenizer.control_ids) == control
    difference = (before.logits(ids) - after.logits(ids)).abs().max()
    assert difference < 1e-4


def test_the_tokenizer_of_llama_3_in_a_folder_of_the_hub(folder: Path, tmp_path: Path) -> None:
    run("convert", folder, tmp_path / "m", home=tmp_path)
    (tmp_path / "m/tokenizer.json").rename(tmp_path / "kept.json")
    (tmp_path / "m/tokenizer.model").write_bytes((folder / "tokenizer.model").read_bytes())
    expected = load(folder).prompt_ids(TEXT)
    assert load(tmp_path / "m").prompt_ids(TEXT) == expected


def test_llama_2_is_as_it_was(tmp_path: Path) -> None:
    write_meta(tmp_path)
    checkpoint: Checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config.context_length == 4096
    assert checkpoint.templates.is_meta
    assert checkpoint.warnings == ()
