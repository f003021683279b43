"""``llama-chat check``: sound models of each format, and what it finds in others."""

import errno
import json
import mmap
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import safetensors.torch
import torch

from harness.program import Program, Result, assert_clean_error, run
from harness.terminal import Terminal
from llama_chat.checkpoints.gguf_blocks import SUPPORTED, BlockType
from llama_chat.checkpoints.gguf_files import StoredTensor
from llama_chat.cli import app
from llama_chat.loading.checks import CheckResult, ModelCheck
from llama_chat.loading.formats import load_tokenizer, open_checkpoint
from tests.model_files import (
    META,
    SMALL,
    TOKENS,
    edit_json,
    write_gguf,
    write_hollow_gguf,
    write_huggingface,
    write_llama2c,
    write_meta,
)
from tests.torch_archives import change_parts

CHECKS = ["headers", "tokenizer", "template", "ends", "hashes", "weights"]


def results(model: Path) -> dict[str, CheckResult]:
    found = {result.name: result for result in ModelCheck(model).run()}
    assert list(found) == CHECKS
    assert all(result.detail.isprintable() for result in found.values())
    return found


def failed(model: Path) -> dict[str, str]:
    """Return the details of the checks that fail, by their names."""
    found = {name: each.error for name, each in results(model).items() if each.error}
    assert all(each.state == "failed" for each in results(model).values() if each.error)
    return {name: error.why for name, error in found.items()}


def written(folder: Path, layout: str) -> Path:
    """Write a sound model of one of the formats."""
    match layout:
        case "meta":
            write_meta(folder, n_shards=2)
        case "hub":
            write_huggingface(folder, weights="shards", dtype=torch.bfloat16)
        case "bins":
            write_huggingface(folder, weights="bins", dtype=torch.float16)
        case "llama2c":
            write_llama2c(folder / "m.bin")
            return folder / "m.bin"
        case kind:
            folder.mkdir()
            quantization = gguf.GGMLQuantizationType[kind]
            config = replace(SMALL, dim=256, hidden_dim=256, n_layers=1)
            write_gguf(folder / "m.gguf", config, quantization=quantization)
            return folder / "m.gguf"
    return folder


@pytest.mark.parametrize("layout", ["meta", "hub", "bins", "llama2c", "F32", "Q4_0", "Q8_0"])
def test_sound_models_pass(layout: str, tmp_path: Path) -> None:
    found = results(written(tmp_path / "model", layout))
    assert {each.state for each in found.values()} <= {"ok", "skipped"}
    assert found["hashes"].detail == "nothing states what they should be"
    assert [found[name].state for name in ("headers", "tokenizer", "weights")] == ["ok"] * 3


def test_each_check_is_a_line_and_json_says_the_same(gguf_model: Path, tmp_path: Path) -> None:
    result = run("check", gguf_model, home=tmp_path)
    assert (result.status, result.err) == (0, "")
    lines = result.out.splitlines()
    assert [line.split()[1] for line in lines] == CHECKS
    assert all(re.match(r"(ok|skipped) +\w+ +\S", line) for line in lines)
    whole = run("check", "-m", gguf_model, "--json", home=tmp_path)
    report = json.loads(whole.out)
    assert (whole.status, whole.out.count("\n"), report["sound"]) == (0, 1, True)
    shown = [f"{each['state']:8} {each['name']:10} {each['detail']}" for each in report["checks"]]
    assert shown == lines


# ---- weights


def spoil(model: Path, layout: str, value: float) -> str:
    """Make one number of a weight, or one scale, ``value``; returns the name of the weight."""
    if layout == "meta":
        file = model / "consolidated.01.pth"
        shard = torch.load(file, weights_only=True)
        shard["layers.1.feed_forward.w2.weight"][5, 7] = value
        torch.save(shard, file)
        return "layers.1.feed_forward.w2.weight"
    if layout == "hub":
        name = "model.layers.1.mlp.down_proj.weight"
        index = json.loads((model / "model.safetensors.index.json").read_text())
        file = model / index["weight_map"][name]
        weights = safetensors.torch.load_file(file)
        weights[name][-1, -1] = value
        safetensors.torch.save_file(weights, file, {"format": "pt"})
        return "layers.1.feed_forward.w2.weight"
    data = bytearray(model.read_bytes())
    if layout == "llama2c":
        data[28:32] = np.float32(value).tobytes()  # the first number of the first weight
        model.write_bytes(data)
        return "tok_embeddings.weight"
    tensor = next(t for t in gguf.GGUFReader(model).tensors if t.name == "blk.0.ffn_up.weight")
    block = {"F32": 0, "Q4_0": 18 * 8, "Q4_1": 20 * 3 + 2, "Q8_0": 34}[layout]
    number = np.array([value], np.float32 if layout == "F32" else np.float16)
    at = int(tensor.data_offset) + block
    data[at : at + number.nbytes] = number.tobytes()
    model.write_bytes(data)
    return "layers.0.feed_forward.w3.weight"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("layout", ["meta", "hub", "llama2c", "F32", "Q4_0", "Q4_1", "Q8_0"])
def test_a_number_that_is_not_finite_is_found_with_its_layer(
    layout: str, value: float, tmp_path: Path
) -> None:
    model = written(tmp_path / "model", layout)
    name = spoil(model, layout, value)
    assert failed(model) == {"weights": f"tensor {name} has numbers that are not finite"}


@pytest.mark.parametrize("kind", [k for k in SUPPORTED.values() if isinstance(k, BlockType)])
def test_every_scale_of_every_kind_of_block_is_looked_at(kind: BlockType) -> None:
    fields = [name for name in kind.layout.names or () if kind.layout[name] == np.float16]
    assert fields
    for name in fields:
        blocks = np.zeros(3, kind.layout)
        blocks[name][2] = np.nan
        memory = mmap.mmap(-1, blocks.nbytes)
        memory[:] = blocks.tobytes()
        stored = StoredTensor((3 * kind.n_weights,), kind, 0, memory)
        assert [bool(part.isnan().any()) for part in stored.floats()].count(True) == 1


@pytest.mark.parametrize("layout", ["meta", "F32", "Q4_0"])
def test_large_and_tiny_numbers_are_finite(layout: str, tmp_path: Path) -> None:
    model = written(tmp_path / "model", layout)
    for value in (65_504.0, -6e-8, 0.0):
        spoil(model, layout, value)
        assert failed(model) == {}


# ---- headers


def test_bytes_after_the_last_tensor_are_found(tmp_path: Path) -> None:
    model = written(tmp_path / "model", "Q4_0")
    data = model.read_bytes()
    model.write_bytes(data + bytes(40))
    assert "bytes after the last tensor belong to nothing" in failed(model)["headers"]
    assert failed(model).keys() == {"headers"}


@pytest.mark.parametrize(
    ("layout", "change", "why"),
    [
        ("Q4_0", lambda data: data[:-100], "it ends before tensor"),
        ("llama2c", lambda data: data + b"\0" * 4, "but its header requires"),
        ("llama2c", lambda data: data[:-4], "but its header requires"),
        ("Q4_0", lambda data: b"", "it is empty|not a model"),
        ("Q4_0", lambda data: data[:40], "it ends in the middle of something"),
    ],
)
def test_files_that_are_cut_off_or_too_long_fail(
    layout: str, change: Callable[[bytes], bytes], why: str, tmp_path: Path
) -> None:
    model = written(tmp_path / "model", layout)
    model.write_bytes(change(model.read_bytes()))
    found = results(model)
    assert re.search(why, found["headers"].detail)
    assert {found[name].state for name in ("tokenizer", "template", "weights")} == {"skipped"}
    assert found["weights"].detail == "the headers cannot be read"


def test_an_unknown_tensor_and_a_wrong_shape_fail(tmp_path: Path) -> None:
    write_meta(tmp_path / "more")
    file = tmp_path / "more" / "consolidated.00.pth"
    torch.save(torch.load(file, weights_only=True) | {"layers.0.extra": torch.zeros(2)}, file)
    assert "'layers.0.extra' belongs to no part" in failed(tmp_path / "more")["headers"]
    write_huggingface(tmp_path / "wide")
    edit_json(tmp_path / "wide" / "config.json", intermediate_size=96)
    assert "has shape (192, 64), not (96, 64)" in failed(tmp_path / "wide")["headers"]
    write_meta(tmp_path / "storage")
    archive = tmp_path / "storage/consolidated.00.pth"
    change_parts(archive, lambda parts: parts.update({"data/1": b""}))
    assert "has 0 bytes" in failed(tmp_path / "storage")["headers"]


# ---- tokenizer and template


def test_a_vocabulary_larger_than_the_model_fails(tmp_path: Path) -> None:
    write_meta(tmp_path, replace(META, vocab_size=380))
    found = results(tmp_path)
    assert found["tokenizer"].state == "failed"
    assert "380" in found["tokenizer"].detail
    assert found["template"].detail == "the tokenizer cannot be read"
    assert found["weights"].state == "ok"


def test_a_missing_tokenizer_fails(tmp_path: Path) -> None:
    write_huggingface(tmp_path)
    (tmp_path / "tokenizer.model").unlink()
    assert failed(tmp_path).keys() == {"tokenizer"}


@pytest.mark.parametrize(
    "template", ["{{ nothing.at.all() }}", "{% for %}", "{{ raise_exception('never') }}"]
)
def test_a_template_that_renders_no_dialog_fails(template: str, tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", metadata={"tokenizer__chat_template": template})
    assert failed(tmp_path / "m.gguf").keys() == {"template"}


def test_a_template_may_refuse_a_system_message(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}"
        "{% endif %}{{ m.content }}{% endfor %}"
    )
    write_gguf(tmp_path / "m.gguf", metadata={"tokenizer__chat_template": template})
    assert failed(tmp_path / "m.gguf") == {}


def test_a_model_without_a_template_needs_none(tmp_path: Path) -> None:
    write_gguf(
        tmp_path / "m.gguf",
        metadata={
            "tokenizer__chat_template": None,
            "tokenizer__ggml__tokens": ["a1", "b1", "c1", *TOKENS[3:]],
            "tokenizer__ggml__token_type": [1] * 268,
            "tokenizer__ggml__eos_token_id": None,
        },
    )
    found = results(tmp_path / "m.gguf")
    assert (found["template"].state, found["ends"].state) == ("skipped", "skipped")


def test_named_templates_without_a_default_fail(tmp_path: Path) -> None:
    write_huggingface(tmp_path)
    edit_json(
        tmp_path / "tokenizer_config.json", chat_template=[{"name": "tools", "template": "x"}]
    )
    assert failed(tmp_path) == {"template": "none of the model's is the default"}


@pytest.mark.parametrize(
    ("changes", "check", "why"),
    [
        ({"bos_id": 400}, "tokenizer", "BOS or EOS has id 400, past the 400 rows of the embedding"),
        ({"encode": lambda text: [3, 400]}, "tokenizer", "the text 'Hello, world!' has id 400,"),
        ({"encode": lambda text: [-1]}, "tokenizer", "the text 'Hello, world!' has id -1,"),
        ({"encode": lambda text: [1]}, "tokenizer", "'Hello, world!' becomes a control token"),
    ],
)
def test_ids_without_a_row_fail(
    changes: dict[str, Any],
    check: str,
    why: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_meta(tmp_path)
    tokenizer = load_tokenizer(open_checkpoint(tmp_path))
    for name, value in changes.items():
        monkeypatch.setattr(tokenizer, name, value)
    monkeypatch.setattr("llama_chat.loading.checks.load_tokenizer", lambda _: tokenizer)
    assert why in failed(tmp_path)[check]


# ---- the command


def refused(result: Result, *parts: str) -> None:
    """Check a run that found something: its lines, one error, and status 3."""
    assert_clean_error(replace(result, out=""), 3, *parts)


def test_a_script_gets_status_3_and_one_error(tmp_path: Path) -> None:
    model = written(tmp_path / "model", "F32")
    spoil(model, "F32", float("nan"))
    result = run("check", model, home=tmp_path)
    refused(result, "tensor layers.0.feed_forward.w3.weight has numbers", "download the file again")
    assert [line.split()[0] for line in result.out.splitlines()].count("failed") == 1
    result = run("check", model, "--json", home=tmp_path)
    refused(result, "layers.0.feed_forward.w3.weight")
    report: dict[str, Any] = json.loads(result.out)
    assert not report["sound"]
    assert [each["name"] for each in report["checks"] if each["state"] == "failed"] == ["weights"]


def test_nothing_of_a_model_reaches_the_terminal_raw(tmp_path: Path) -> None:
    model = tmp_path / "a\x1b]0;b\x07.safetensors"
    model.write_bytes(b"<html>")
    result = run("check", model, home=tmp_path)
    refused(result, "not a model of a known format")
    assert "\x1b" not in result.out
    write_gguf(tmp_path / "m.gguf", more_tensors={"x\x1b[2J": np.zeros(2, np.float32)})
    result = run("check", tmp_path / "m.gguf", home=tmp_path)
    refused(result)
    assert "\x1b" not in result.out


def test_what_is_no_model_is_named(tmp_path: Path) -> None:
    assert_clean_error(run("check", "/nowhere", home=tmp_path), 3, "neither a path nor a known")
    assert_clean_error(run("check", home=tmp_path), 3, "none is configured")
    refused(run("check", tmp_path, home=tmp_path), "not a model of a known format")


def test_a_large_file_takes_little_memory(tmp_path: Path) -> None:
    config = replace(SMALL, dim=4096, n_layers=1, n_heads=32, head_dim=128, hidden_dim=8192)
    model = tmp_path / "m.gguf"
    write_hollow_gguf(model, config)
    assert model.stat().st_size > 5e8
    small = written(tmp_path / "small", "F32")
    peaks = []
    for path in (small, model):
        with Program("check", path, home=tmp_path) as program:
            out, err = program.communicate()
            assert program.wait(0) == 0, err
            assert b"failed" not in out
            peaks.append(program.peak_rss)
    assert peaks[1] - peaks[0] < 64 * 2**20


def test_a_bar_shows_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llama_chat.loading.checks._PART", 512)
    seen: list[tuple[int, int]] = []
    checks = ModelCheck(written(tmp_path / "model", "llama2c"))
    checks.report = lambda done, total: seen.append((done, total))
    assert [result.state for result in checks.run()].count("failed") == 0
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == seen[-1][1] > 0


def test_what_cannot_be_read_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_meta(tmp_path / "meta")
    (tmp_path / "meta/tokenizer.model").unlink()
    os.mkfifo(tmp_path / "meta/tokenizer.model")
    assert failed(tmp_path / "meta") == {"tokenizer": "it is not a file"}
    (tmp_path / "meta/checklist.chk").mkdir()
    (tmp_path / "meta/loop").symlink_to("loop")
    assert failed(tmp_path / "meta") == {"tokenizer": "it is not a file"}

    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert failed(tmp_path / "meta")["headers"] == "permission denied"


def test_warnings_of_the_model_are_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_gguf(tmp_path / "m.gguf", metadata={"tokenizer__ggml__pre": None})
    assert app.run(["check", str(tmp_path / "m.gguf")]) == 0
    assert "does not name its pre-tokenizer" in capsys.readouterr().err


def test_it_is_drawn_in_a_terminal(gguf_model: Path, tmp_path: Path) -> None:
    with Terminal("check", gguf_model, home=tmp_path) as terminal:
        assert terminal.wait_for_end() == 0
        assert "ok       weights" in terminal.text
