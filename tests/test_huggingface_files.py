"""Damaged and hostile folders of the Hugging Face Hub are refused in one line."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_chat.errors import ModelError
from llama_chat.loading.formats import load_tokenizer, open_checkpoint
from tests.model_files import META, assert_refused, edit_json, write_huggingface

MISTRAL = {"model_type": "mistral"}

Damage = Callable[[Path], object]


def _config(**changes: object) -> Damage:
    return lambda folder: edit_json(folder / "config.json", **changes)


def _rope(**values: object) -> Damage:
    return _config(rope_parameters=values)


def _write(name: str, text: str) -> Damage:
    return lambda folder: (folder / name).write_text(text)


def _remove(pattern: str) -> Damage:
    def damage(folder: Path) -> None:
        for file in folder.glob(pattern):
            file.unlink()

    return damage


def _move_in_index(file: object) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "model.safetensors.index.json"
        places = json.loads(path.read_text())["weight_map"]
        edit_json(path, weight_map=places | {"model.norm.weight": file})

    return damage


def _pipe(name: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return damage


def _untie(folder: Path) -> None:
    shutil.rmtree(folder)
    write_huggingface(folder, replace(META, tie_embeddings=True))
    edit_json(folder / "config.json", tie_word_embeddings=False)


def _bos_number(folder: Path) -> None:
    (folder / "tokenizer.model").rename(folder / "tokenizer.json")
    edit_json(folder / "tokenizer_config.json", bos_token=1)


INDEX = "model.safetensors.index.json"
FIRST = "model-00001-of-*.safetensors"

BAD: dict[str, tuple[Damage, str]] = {
    "config missing": (_remove("config.json"), "config.json': missing"),
    "config empty": (_write("config.json", ""), "not JSON"),
    "config no JSON": (_write("config.json", "{a: 1}"), "not JSON"),
    "config array": (_write("config.json", "[1]"), "not a JSON object"),
    "config deep": (_write("config.json", '{"a":' * 100_000), "not JSON"),
    "config deep list": (_write("config.json", "[" * 100_000), "not JSON"),
    "config long number": (_write("config.json", '{"a": ' + "9" * 5000 + "}"), "not JSON"),
    "config huge": (_write("config.json", " " * (2**20 + 1)), "larger than 1 MiB"),
    "config pipe": (_pipe("config.json"), "it is not a file"),
    "no architecture": (_config(model_type=None, architectures=None), "does not name"),
    "architecture a number": (_config(model_type=7), "model_type is 7, not a text"),
    "architectures numbers": (_config(model_type=None, architectures=[7]), "does not name"),
    "qwen2": (_config(model_type="qwen2"), "its architecture is 'qwen2': take a model of the"),
    "ESC": (_config(model_type="x\x1b[31m"), "its architecture is 'x\\x1b[31m'"),
    "mixtral": (
        _config(model_type=None, architectures=["MixtralForCausalLM"]),
        "its architecture is 'MixtralForCausalLM'",
    ),
    "gptq": (_config(quantization_config={"quant_method": "gptq"}), "'gptq': take a GGUF file"),
    "awq": (_config(quantization_config={"quant_method": "awq"}), "quantized by 'awq'"),
    "unnamed method": (_config(quantization_config={"bits": 4}), "quantized by"),
    "mlx": (_config(quantization={"bits": 4}), "quantized by MLX: take a GGUF file"),
    "quantization a text": (_config(quantization="4"), "quantization is '4', not an object"),
    "gelu": (_config(hidden_act="gelu"), "its activation is 'gelu'"),
    "hidden_size missing": (_config(hidden_size=None), "hidden_size is missing"),
    "hidden_size 0": (_config(hidden_size=0), "hidden_size is 0"),
    "hidden_size negative": (_config(hidden_size=-64), "hidden_size is -64"),
    "hidden_size a text": (_config(hidden_size="64"), "hidden_size is '64'"),
    "hidden_size true": (_config(hidden_size=True), "hidden_size is True"),
    "hidden_size a fraction": (_config(hidden_size=64.5), "hidden_size is 64.5"),
    "hidden_size a list": (_config(hidden_size=[64]), "hidden_size is [64]"),
    "hidden_size 10^4000": (_config(hidden_size=10**4000), "not a number that fits"),
    "head_dim odd": (_config(head_dim=7), "head_dim 7 is odd"),
    "head_dim 0": (_config(head_dim=0), "head_dim is 0"),
    "heads 0": (_config(num_attention_heads=0), "num_attention_heads is 0"),
    "heads odd": (
        _config(num_attention_heads=7, head_dim=None),
        "hidden_size 64 is no multiple of num_attention_heads 7",
    ),
    "more KV heads": (_config(num_key_value_heads=16), "no multiple of n_kv_heads 16"),
    "other KV heads": (_config(num_key_value_heads=2), "attention.wk.weight has shape"),
    "layers 10^6": (_config(num_hidden_layers=10**6), "1000000 layers"),
    "layers too few": (_config(num_hidden_layers=1), "layers.1."),
    "vocabulary 0": (_config(vocab_size=0), "vocab_size is 0"),
    "vocabulary 10^9": (_config(vocab_size=10**9), "vocab_size is 1000000000"),
    "norm NaN": (_config(rms_norm_eps=float("nan")), "norm_eps is nan"),
    "norm infinite": (_config(rms_norm_eps=float("inf")), "rms_norm_eps is inf"),
    "positions 0": (_config(max_position_embeddings=0), "max_position_embeddings is 0"),
    "positions NaN": (_config(max_position_embeddings=float("nan")), "is nan"),
    "window a text": (_config(**MISTRAL, sliding_window="x"), "sliding_window is 'x'"),
    "theta 0": (_rope(rope_theta=0), "rope_theta is 0"),
    "theta a text": (_rope(rope_theta="x"), "rope_theta is 'x'"),
    "yarn": (_rope(rope_type="yarn", factor=4), "its rotary scaling is 'yarn'"),
    "longrope": (_config(rope_scaling={"type": "longrope"}), "its rotary scaling is 'longrope'"),
    "scaling a list": (_config(rope_scaling=[1]), "rope_scaling is [1], not an object"),
    "scaling type a number": (_rope(rope_type=4), "rope_type is 4"),
    "no factor": (_rope(rope_type="linear"), "factor is missing"),
    "factor 0": (_rope(rope_type="linear", factor=0), "factor of the rotary scaling is 0"),
    "factor NaN": (_rope(rope_type="dynamic", factor=float("nan")), "factor is nan"),
    "llama3 turned round": (
        _rope(rope_type="llama3", factor=8, low_freq_factor=4, high_freq_factor=1),
        "is not below",
    ),
    "scaling by layer": (_rope(full_attention={"rope_type": "linear"}), "differs between layers"),
    "part of a head": (_rope(partial_rotary_factor=0.5), "only a part of each head"),
    "no lm_head": (_untie, "tensor output.weight is missing"),
    "no weights": (_remove("model*"), "no weights in it: download model.safetensors"),
    "no index": (_remove(INDEX), "model.safetensors.index.json"),
    "index empty": (_write(INDEX, ""), "not JSON"),
    "index array": (_write(INDEX, "[]"), "not a JSON object"),
    "index without a map": (_write(INDEX, "{}"), "it names no shard"),
    "index map a list": (_write(INDEX, '{"weight_map": [1]}'), "weight_map is [1]"),
    "index deep": (_write(INDEX, '{"a":' * 100_000), "not JSON"),
    "index a number": (_move_in_index(7), "7 is not the name of a shard"),
    "index above": (_move_in_index("../../etc/passwd"), "is not the name of a shard"),
    "index absolute": (_move_in_index("/etc/x.safetensors"), "is not the name of a shard"),
    "index ESC": (_move_in_index("\x1b.safetensors"), "is not the name of a shard"),
    "index odd file": (_move_in_index("config.json"), "is not the name of a shard"),
    "index missing shard": (
        _move_in_index("model-9.safetensors"),
        "'model-9.safetensors' is missing: download all shards",
    ),
    "index other shard": (_move_in_index("model-00001-of-00006.safetensors"), "differ in tensor"),
    "shard missing": (_remove(FIRST), "is missing: download all shards"),
    "tokenizer missing": (
        _remove("tokenizer.model"),
        "no tokenizer.model or tokenizer.json in it: download it",
    ),
    "tokenizer web page": (_write("tokenizer.model", "<html>"), "a web page"),
    "tokenizer of Llama 3": (_write("tokenizer.model", "IQ== 0\n"), "it lacks tokens"),
    "tokenizer_config broken": (_write("tokenizer_config.json", "{"), "not JSON"),
    "bos a number": (_bos_number, "bos_token is 1, not a text"),
    "template a number": (
        _write("tokenizer_config.json", '{"chat_template": 1}'),
        "chat_template is 1",
    ),
    "template huge": (_write("chat_template.jinja", " " * (2**20 + 1)), "larger than 1 MiB"),
    "template pipe": (_pipe("chat_template.jinja"), "it is not a file"),
    "added tokens broken": (_write("added_tokens.json", "[]"), "not a JSON object"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_folders_are_refused(case: str, huggingface_copy: Path) -> None:
    damage, why = BAD[case]
    damage(huggingface_copy)
    assert_refused(huggingface_copy, why)


SMALL_FILES = ["config.json", "tokenizer_config.json", "added_tokens.json", INDEX]
SMALL_FILES += ["special_tokens_map.json", "tokenizer.json"]
# fmt: off
KEYS = [
    "architectures", "model_type", "quantization_config", "attention_bias", "mlp_bias",
    "hidden_act", "hidden_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers",
    "intermediate_size", "head_dim", "vocab_size", "max_position_embeddings", "max_sequence_length",
    "original_max_position_embeddings", "sliding_window", "rms_norm_eps", "rope_theta",
    "rope_parameters", "rope_scaling", "rope_type", "type", "factor", "partial_rotary_factor",
    "low_freq_factor", "high_freq_factor", "tie_word_embeddings", "added_tokens_decoder",
    "bos_token", "chat_template", "content", "name", "template", "quant_method", "weight_map",
    "model.norm.weight", "tokenizer_class", "legacy", "add_prefix_space", "add_bos_token",
    "add_eos_token", "pad_token", "eos_token", "additional_special_tokens", "special", "lstrip",
    "extra_special_tokens", "7", "400", "500", "model", "vocab", "merges", "added_tokens", "id",
    "normalizer", "pre_tokenizer", "post_processor", "single", "SpecialToken", "normalizers",
]
# fmt: on
# fmt: off
WORDS = st.sampled_from([
    "llama", "mistral", "linear", "dynamic", "llama3", "default", "\x1b", "7", "LlamaTokenizer",
    "<s>", "the", "BPE", "Sequence", "Metaspace", "ByteLevel", "Replace", "TemplateProcessing",
])
# fmt: on
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)
    ),
    max_leaves=8,
)


@settings(max_examples=200)
@given(
    file=st.sampled_from(SMALL_FILES),
    changes=st.dictionaries(st.sampled_from(KEYS), VALUES, min_size=1, max_size=3),
)
def test_any_values_of_the_small_files_are_read_or_refused(
    file: str,
    changes: dict[str, object],
    huggingface_model: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("value")
    for source in huggingface_model.iterdir():
        (folder / source.name).symlink_to(source)
    path = huggingface_model / file
    values = json.loads(path.read_text()) if path.exists() else {}
    (folder / file).unlink(missing_ok=True)
    (folder / file).write_text(json.dumps(values | changes))
    said: tuple[str, ...]
    try:
        checkpoint = open_checkpoint(folder)
        said = checkpoint.warnings
        load_tokenizer(checkpoint).encode("a <|im_start|>b")
    except ModelError as error:
        said = (str(error),)
    assert all(line.isprintable() for line in said)


def test_a_pickle_that_runs_a_program_does_not_run_it(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[object, ...]:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    write_huggingface(tmp_path, weights="bin")
    torch.save({"model.norm.weight": Attack()}, tmp_path / "pytorch_model.bin")
    assert_refused(tmp_path, "more than weights")
    assert not (tmp_path / "ran").exists()


def test_incomplete_bins_are_refused(tmp_path: Path) -> None:
    write_huggingface(tmp_path, weights="bins")
    shard = tmp_path / "pytorch_model-00002-of-00002.bin"
    shard.write_bytes(shard.read_bytes()[:1000])
    assert_refused(tmp_path, "cut off or damaged")
    shard.unlink()
    assert_refused(tmp_path, f"'{shard.name}' is missing")


def test_an_unknown_tensor_is_refused_by_its_name(tmp_path: Path) -> None:
    write_huggingface(tmp_path)
    file = tmp_path / "model.safetensors"
    whole = safetensors.torch.load_file(file)
    for name in ("model.layers.0.mlp.x\x1b[31m.weight", "model.layers.00.input_layernorm.weight"):
        safetensors.torch.save_file(whole | {name: torch.zeros(64)}, file)
        assert_refused(tmp_path, "belongs to no part")


def test_a_layer_with_a_missing_tensor_is_refused(tmp_path: Path) -> None:
    write_huggingface(tmp_path)
    file = tmp_path / "model.safetensors"
    whole = safetensors.torch.load_file(file)
    del whole["model.layers.1.mlp.up_proj.weight"]
    safetensors.torch.save_file(whole, file)
    assert_refused(tmp_path, "tensor layers.1.feed_forward.w3.weight is missing")
