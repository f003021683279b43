"""``inspect``: its facts agree with the model, fit any width, and have no control characters."""

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import gguf
import pytest
from rich.cells import cell_len

from harness.program import assert_clean_error, run
from harness.terminal import Terminal
from llama_chat.cli import app
from llama_chat.cli.inspect import describe
from llama_chat.kernels import native
from llama_chat.loading.plan import plan
from llama_chat.model.config import LlamaConfig
from llama_chat.model.rope import (
    DynamicScaling,
    FrequencyDivisors,
    LinearScaling,
    Llama3Scaling,
    RopeScaling,
)
from llama_chat.settings.settings import Settings
from llama_chat.terminal.model_picture import draw_model
from tests.model_files import SMALL, TOKENS, gguf_name, write_gguf

_STYLE = re.compile(r"\x1b\[[\d;]*m")


def report_of(
    model: Path, available: int = 10**9, quantize: str = "none", **changes: object
) -> dict[str, Any]:
    """Make the report of a model in float32, with ``available`` bytes of free memory."""
    planned = plan(model, "cpu", "float32", quantize)
    checkpoint = planned.checkpoint
    checkpoint.config = dataclasses.replace(checkpoint.config, **changes)  # type: ignore[arg-type]
    changed = dataclasses.replace(planned, config=checkpoint.config, bytes_free=available)
    return describe(changed, Settings())


def picture_of(report: dict[str, Any], *, with_tensors: bool = False) -> str:
    return draw_model(report, colored=False, with_tensors=with_tensors)


def test_parameters_by_part_add_up(meta_model: Path) -> None:
    report = report_of(meta_model)
    parts = report["parameters_by_part"]
    assert sum(parts.values()) == report["parameters"]
    assert parts["embedding"] == parts["output"] == 400 * 64
    assert parts["attention"] == 2 * (2 * 64 * 64 + 2 * 32 * 64)
    assert parts["feed_forward"] == 2 * 3 * 64 * 192
    assert parts["norms"] == 5 * 64
    types = report["types_by_part"]
    assert sum(n for part in types.values() for n in part.values()) == len(report["tensors"])
    assert types["attention"] == {"F32": 8}
    text = picture_of(report)
    assert re.search(r"\n  feed-forward  73,728  49\.2%  █+.?\n", text)
    assert "\n  feed-forward  F32 × 6\n" in text


def test_memory_is_weights_and_cache_and_is_compared_with_what_is_free(meta_model: Path) -> None:
    report = report_of(meta_model)
    weights, cache = report["weights_memory"], report["cache_memory"]
    assert weights == 4 * report["parameters"]
    assert cache["4096"] == 4 * cache["1024"]
    buffers = report["buffers_memory"]
    for length, size in cache.items():
        assert report["memory"][length] == weights + size + buffers[length]
    assert (report["fits"], report["fitting_context"]) == (True, 4096)
    assert "fits: 539.7 MB of 1.0 GB free" in picture_of(report)
    scarce = report_of(meta_model, available=report["memory"]["1024"])
    assert (scarce["fits"], scarce["fitting_context"]) == (False, 1024)
    assert "fits up to 1,024 tokens: 538.0 MB free" in picture_of(scarce)
    none = report_of(meta_model, available=weights)
    assert (none["fits"], none["fitting_context"]) == (False, 0)
    why = "weights and buffers take 537.5 MB of 599 KB free"
    assert f"does not fit: {why}" in picture_of(none)


def test_a_model_fits_if_it_loads(starter_model: Path, tmp_path: Path) -> None:
    flags = ("-m", starter_model, "--memory", "700M")
    refused = run("ask", "hi", *flags, home=tmp_path)
    assert_clean_error(refused, 3, "--memory 734.0 MB: raise --memory")
    report = json.loads(run("inspect", *flags, "--json", home=tmp_path).out)
    assert (report["fits"], report["fitting_context"]) == (False, 0)


def test_memory_depends_on_the_weight_format(starter_model: Path) -> None:
    packed, floats = report_of(starter_model, quantize="stored"), report_of(starter_model)
    assert packed["weights_memory"] < floats["weights_memory"] / 5
    assert "Memory, packed as stored, computed by " in picture_of(packed)
    assert "Memory, in float32, computed by " in picture_of(floats)
    anew = report_of(starter_model, quantize="int8")
    assert "Memory, packed to int8, computed by " in picture_of(anew)


def test_samples_are_those_of_the_tokenizer(starter_model: Path) -> None:
    report = report_of(starter_model)
    tokenizer = plan(starter_model).tokenizer
    for sample in report["samples"]["texts"]:
        assert sample["ids"] == tokenizer.encode(sample["text"])
        assert sample["pieces"] == [tokenizer.piece(i) for i in sample["ids"]]
    said = ["".join(each["text"] for each in dialog) for dialog in report["template"]["dialogs"]]
    assert said[0] == "<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n"
    assert said[1].startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")
    assert said[2].startswith(said[0])
    text = picture_of(report)
    assert "Hello│,│␣world│!" in text
    assert "<E4><BD>│<A0>│" in text
    assert "<|im_start|>user⏎\n  Hello!<|im_end|>⏎\n" in text
    assert "attention     Q4_1 × 120\n" in text
    assert "output tied\n" in text
    assert "rotary base 100,000, not scaled" in text
    assert "17 of them control" in text


SCALINGS: dict[str, RopeScaling] = {
    "positions divided by 4": LinearScaling(4),
    "a larger base past 4,096 tokens, for up to 2 times as many": DynamicScaling(2, 4096),
    "low frequencies divided by 8, made for 8,192 tokens first": Llama3Scaling(8, 1, 4, 8192),
    "frequencies divided by 1 to 8, ready-made": FrequencyDivisors((1.0, 2.0, 4.0, 8.0)),
}


@pytest.mark.parametrize("words", SCALINGS)
def test_rotary_scaling_is_described_in_words(words: str, meta_model: Path) -> None:
    report = report_of(meta_model, rope_scaling=SCALINGS[words])
    assert report["rope"] == f"base 10,000, {words}"
    json.dumps(report)


@pytest.mark.parametrize("columns", [40, 60, 100, 200])
def test_it_is_as_wide_as_the_terminal_at_most(
    columns: int, starter_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = picture_of(report_of(starter_model))
    assert max(map(cell_len, text.splitlines())) <= columns
    assert re.search(r"└ feed_forward\n    ├ w1 gate +1,536 × 576\n", text)
    assert re.search(r"feed-forward  79,626,240  59\.2%  █+", text)


def test_into_a_pipe_no_line_is_broken(gguf_model: Path, tmp_path: Path) -> None:
    model = tmp_path / ("long " * 30) / ("name " * 20 + ".gguf")
    model.parent.mkdir()
    model.symlink_to(gguf_model)
    lines = run("inspect", model, home=tmp_path, COLUMNS="50").out.splitlines()
    assert str(model) in lines
    assert max(map(len, lines)) < 500
    with Terminal("inspect", model, home=tmp_path, size=(50, 90)) as terminal:
        assert terminal.wait_for_end() == 0
        assert str(model).replace(" ", "") in re.sub(r"\s", "", terminal.text)


def test_colours_change_nothing_but_colours(gguf_model: Path) -> None:
    report = report_of(gguf_model)
    plain, colored = picture_of(report), draw_model(report, colored=True)
    assert "\x1b" not in plain
    assert "\x1b[1;36mrandom" in colored
    assert [line.rstrip() for line in _STYLE.sub("", colored).split("\n")] == plain.split("\n")


def test_every_tensor_is_listed_on_demand(meta_model: Path) -> None:
    report = report_of(meta_model)
    text = picture_of(report, with_tensors=True)
    assert [t for t in report["tensors"] if f"  {t['name']} " not in text] == []
    assert "Tensors" not in picture_of(report)


def test_names_of_a_file_are_shown_without_control_characters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = ["<|\x1b]52;c;aGk=\x07|>", "<|\u202e\x9b|>", "a\nb", *TOKENS[3:]]
    model = tmp_path / "m.gguf"
    metadata = {"tokenizer__ggml__tokens": tokens, "tokenizer__chat_template": "{% \x1b[2J %}"}
    write_gguf(model, metadata=metadata)
    assert app.run(["inspect", str(model), "--json"]) == 0
    as_json = capsys.readouterr().out
    report = json.loads(as_json)
    assert report["tokenizer"]["control_tokens"] == {tokens[i]: i for i in range(3)}
    text = picture_of(report)
    assert "name another with --template" in " ".join(text.split())
    for shown in (as_json, text, _STYLE.sub("", draw_model(report, colored=True))):
        assert not set("\x1b\x07\x9b\u202e") & set(shown)


def test_a_terminal_gets_colours(gguf_model: Path, tmp_path: Path) -> None:
    with Terminal("inspect", gguf_model, home=tmp_path, size=(60, 70)) as terminal:
        assert terminal.wait_for_end() == 0
        assert re.search(r"\n  2 × layer\n  ├ attention_norm +64\n", terminal.text)
        assert b"\x1b[1;36m" in terminal.raw


_LARGE = LlamaConfig(
    dim=4096,
    n_layers=4,
    n_heads=32,
    n_kv_heads=8,
    head_dim=128,
    hidden_dim=14336,
    vocab_size=len(TOKENS),
    context_length=2**24,
)


def _write_hollow(path: Path, config: LlamaConfig) -> None:
    """Write a model whose weights are a hole in the file, which takes no disk space."""
    writer = gguf.GGUFWriter(None, "llama")
    tiny = path.with_name("tiny.gguf")
    write_gguf(tiny, dataclasses.replace(SMALL, n_layers=1))
    reader = gguf.GGUFReader(tiny)
    for field in reader.fields.values():
        if field.name.startswith(("tokenizer.", "llama.")):
            kind = field.types[0]
            inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), kind, inner)
    shape = {"block_count": config.n_layers, "embedding_length": config.dim}
    shape |= {"feed_forward_length": config.hidden_dim, "attention.head_count": config.n_heads}
    shape |= {"attention.head_count_kv": config.n_kv_heads, "attention.key_length": 128}
    for key, value in shape.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_uint64("llama.context_length", config.context_length)
    for name, dims in config.tensor_shapes().items():
        kind = gguf.GGMLQuantizationType.F16
        writer.add_tensor_info(gguf_name(name), dims, float, 2 * math.prod(dims), kind)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("ab") as file:
        file.truncate(file.tell() + 2 * config.n_parameters + 32 * len(config.tensor_shapes()))


def test_a_model_is_described_without_its_weights_being_read(tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    _write_hollow(model, _LARGE)
    done = run("inspect", model, home=tmp_path)
    assert (done.status, done.err) == (0, "")
    assert f"{_LARGE.n_parameters:,} parameters" in done.out
    assert re.search(r"  fits up to [\d,]+ tokens: [\d.]+ [GM]B free\n", done.out)
    assert model.stat().st_blocks * 512 < 2**20


@pytest.mark.parametrize(("quantize", "packed"), [("none", False), ("int8", True)])
def test_the_code_that_multiplies_the_matrices_is_named(
    gguf_model: Path, quantize: str, packed: bool
) -> None:
    report = report_of(gguf_model, quantize=quantize)
    in_c = packed or native.multiplies_floats()
    assert report["kernel"] == (native.level_name() if in_c else "torch")
    assert f", computed by {report['kernel']}\n" in picture_of(report)
