"""Unsupported models: the error says what each is, and what to use instead."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from harness.program import assert_clean_error, run
from llama_chat.loading.formats import open_checkpoint
from llama_chat.loading.plan import load
from tests.model_files import (
    META,
    assert_refused,
    edit_json,
    write_gguf,
    write_huggingface,
    write_meta,
)

LAYER = "model.layers.0.self_attn.q_proj."
LORA = "base_model." + LAYER


def _folder(names: dict[str, torch.Tensor], file: str = "model.safetensors") -> object:
    """Write a Hugging Face folder with these tensors alone."""

    def write(folder: Path) -> Path:
        folder.mkdir()
        copies = {name: tensor.clone() for name, tensor in names.items()}
        safetensors.torch.save_file(copies, folder / file)
        values = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4}
        (folder / "config.json").write_text(json.dumps(values))
        return folder

    return write


def _adapter(folder: Path) -> Path:
    _folder({LORA + "lora_A.weight": torch.zeros(2, 2)}, "adapter_model.safetensors")(folder)  # type: ignore[operator]
    (folder / "config.json").rename(folder / "adapter_config.json")
    return folder


def _adapter_beside_a_config(folder: Path) -> Path:
    _adapter(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


def _file(name: str, data: bytes) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        path.mkdir()
        (path / name).write_bytes(data)
        return path / name

    return write


def _gguf(**metadata: object) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        path.mkdir()
        write_gguf(path / "m.gguf", metadata=metadata)
        return path / "m.gguf"

    return write


def _config(**values: object) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        write_huggingface(folder)
        edit_json(folder / "config.json", **values)
        return folder

    return write


def _params(**values: object) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        write_meta(folder)
        edit_json(folder / "params.json", **values)
        return folder

    return write


def _older(kind: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        write_huggingface(folder, weights="bin")
        file = folder / "pytorch_model.bin"
        if kind == "pickle":
            torch.save({"a": torch.zeros(2)}, file, _use_new_zipfile_serialization=False)
        else:
            with tarfile.open(file, "w") as archive:
                archive.addfile(tarfile.TarInfo("sys_info"), io.BytesIO())
        return folder

    return write


_ADAPTER = ("it is an adapter, which changes another model", "merge it into that model")
_GGUF_OF_IT = "take a GGUF file of the same model"
_EXPERTS = ("it is a mixture of experts", "take a dense model")
_INT32, _INT8 = torch.zeros(2, 2, dtype=torch.int32), torch.zeros(2, 2, dtype=torch.int8)
_FP8 = torch.zeros(2, 2, dtype=torch.float8_e4m3fn)
_ONE = torch.zeros(1)

KINDS: dict[str, tuple[object, tuple[str, ...]]] = {
    "adapter": (_adapter, _ADAPTER),
    "adapter beside a config": (_adapter_beside_a_config, _ADAPTER),
    "adapter as a file": (_file("adapter_model.safetensors", b"x"), _ADAPTER),
    "adapter as a model": (_folder({LORA + "lora_B.weight": _ONE}), (*_ADAPTER, "lora_B.weight")),
    "adapter as GGUF": (_gguf(general__type="adapter"), _ADAPTER),
    "adapter as GGLA": (_file("a.bin", b"algg" + bytes(60)), _ADAPTER),
    "importance matrix": (_gguf(general__type="imatrix"), ("its 'imatrix'", "file of the model")),
    "GGML": (_file("m.bin", b"lmgg" + bytes(60)), ("a GGML file", "take the same model as GGUF")),
    "GGMF": (_file("m.bin", b"fmgg" + bytes(60)), ("a GGML file", "take the same model as GGUF")),
    "GGJT": (_file("m.gguf", b"tjgg" + bytes(60)), ("a GGML file", "take the same model as GGUF")),
    "GPTQ": (
        _config(quantization_config={"quant_method": "gptq"}),
        ("quantized by 'gptq'", _GGUF_OF_IT),
    ),
    "fp8": (
        _config(quantization_config={"quant_method": "fp8"}),
        ("quantized by 'fp8'", _GGUF_OF_IT),
    ),
    "MLX": (_config(quantization={"group_size": 64, "bits": 4}), ("by MLX", _GGUF_OF_IT)),
    "GPTQ by its tensors": (_folder({LAYER + "qweight": _INT32}), ("GPTQ or AWQ", _GGUF_OF_IT)),
    "AWQ by its tensors": (
        _folder({LAYER + "scales": _ONE, LAYER + "weight": _ONE, "a.qzeros": _ONE}),
        ("GPTQ or AWQ", _GGUF_OF_IT),
    ),
    "bitsandbytes by its tensors": (
        _folder({LAYER + "weight": _ONE, LAYER + "weight.absmax": _ONE}),
        ("bitsandbytes", _GGUF_OF_IT),
    ),
    "fp8 by its tensors": (
        _folder({LAYER + "weight_scale": _ONE}),
        ("FP8 or the like", _GGUF_OF_IT),
    ),
    "fp8 by its type": (
        _folder({LAYER + "weight": _FP8}),
        ("of type float8_e4m3fn", "take a file of F32"),
    ),
    "8 bits by its type": (_folder({LAYER + "weight": _INT8}), ("of type int8", "take a file of")),
    "MLX by its tensors": (_folder({LAYER + "biases": _ONE}), ("by MLX", _GGUF_OF_IT)),
    "experts by its tensors": (
        _folder({"model.layers.0.block_sparse_moe.gate.weight": _ONE}),
        _EXPERTS,
    ),
    "other tensors": (
        _folder({"transformer.wte.weight": _ONE}),
        ("tensor 'transformer.wte.weight' belongs to no part", "take a model of the llama family"),
    ),
    "pickle": (_older("pickle"), ("before 2020, which may run programs", "take safetensors")),
    "tar": (_older("tar"), ("before 2020, which may run programs", "take safetensors")),
}


@pytest.mark.parametrize("case", KINDS)
def test_the_kind_of_a_model_is_said(case: str, tmp_path: Path) -> None:
    write, parts = KINDS[case]
    path = write(tmp_path / "m")  # type: ignore[operator]
    assert_refused(path, *parts)


def test_an_adapter_in_the_program(tmp_path: Path) -> None:
    folder = _adapter(tmp_path / "lora")
    for command in (("inspect", folder), ("ask", "hi", "-m", folder)):
        assert_clean_error(run(*command, home=tmp_path), 3, "it is an adapter")


def test_a_model_beside_its_adapter_is_read(tmp_path: Path) -> None:
    write_huggingface(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    assert open_checkpoint(tmp_path).config == META


def test_the_weights_alone_are_refused_with_their_folder(tmp_path: Path) -> None:
    folder = _folder({"a": _ONE})(tmp_path / "m")  # type: ignore[operator]
    assert_refused(folder / "model.safetensors", "give the folder that it is in")
    alone = (folder / "model.safetensors").rename(tmp_path / "weights.safetensors")
    assert_refused(alone, "give a folder of Meta, Mistral or")


# --- The size of the vocabulary -----------------------------------------------------------------


MISCOUNTED: dict[str, Callable[[Path], Path]] = {
    "Hugging Face, more rows than it says": _config(vocab_size=399),
    "Hugging Face, fewer rows than it says": _config(vocab_size=512),
    "Meta": _params(vocab_size=512),
    "GGUF": _gguf(llama__vocab_size=512),
}


@pytest.mark.parametrize("case", MISCOUNTED)
def test_the_rows_count_and_not_what_the_config_says(case: str, tmp_path: Path) -> None:
    path = MISCOUNTED[case](tmp_path / "m")
    checkpoint = open_checkpoint(path)
    rows = checkpoint.tensors["tok_embeddings.weight"].shape[0]
    assert checkpoint.config.vocab_size == rows
    assert load(path).logits([1, 2]).shape == (2, rows)


def test_rows_that_differ_are_refused(tmp_path: Path) -> None:
    write_huggingface(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = safetensors.torch.load_file(file)
    weights["lm_head.weight"] = weights["lm_head.weight"][:-1].clone()
    safetensors.torch.save_file(weights, file)
    assert_refused(tmp_path, "tensor output.weight has shape (399, 64), not (400, 64)")


# --- Biases ---------------------------------------------------------------------------------------

BIASES = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.up_proj",
)


def _with_biases(folder: Path, **values: float) -> Path:
    write_huggingface(folder)
    edit_json(folder / "config.json", attention_bias=True, mlp_bias=True)
    file = folder / "model.safetensors"
    weights = safetensors.torch.load_file(file)
    for name in BIASES:
        rows = weights[f"model.layers.1.{name}.weight"].shape[0]
        weights[f"model.layers.1.{name}.bias"] = torch.zeros(rows)
    for name, value in values.items():
        weights[f"model.layers.1.self_attn.{name}.bias"][-1] = value
    safetensors.torch.save_file(weights, file)
    return folder


def test_biases_of_zero_are_dropped(tmp_path: Path) -> None:
    write_huggingface(tmp_path / "plain")
    checkpoint = open_checkpoint(_with_biases(tmp_path / "m"))
    assert checkpoint.tensors.keys() == checkpoint.config.tensor_shapes().keys()
    ids = [1, 5, 9]
    assert load(tmp_path / "m").logits(ids).equal(load(tmp_path / "plain").logits(ids))


def test_other_biases_are_refused_by_name(tmp_path: Path) -> None:
    why = (
        "it has biases, which Llama 2 has not, as in tensor 'model.layers.1.self_attn.v_proj.bias'"
    )
    assert_refused(_with_biases(tmp_path / "m", v_proj=1e-30), why)


def test_biases_of_zero_in_gguf_are_dropped(tmp_path: Path) -> None:
    zero = {"blk.0.attn_q.bias": np.zeros(64, np.float32)}
    write_gguf(tmp_path / "zero.gguf", more_tensors=zero)
    write_gguf(tmp_path / "plain.gguf")
    ids = [1, 5, 9]
    without, dropped = (load(tmp_path / f"{n}.gguf").logits(ids) for n in ("plain", "zero"))
    assert without.equal(dropped)
    write_gguf(tmp_path / "m.gguf", more_tensors={"blk.0.attn_x.bias": zero["blk.0.attn_q.bias"]})
    assert_refused(tmp_path / "m.gguf", "it has biases", "'blk.0.attn_x.bias'")
