"""Models of the Hugging Face Hub: same logits as in transformers, and their tokenizers."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from llama_chat.checkpoints.huggingface import HuggingFaceCheckpoint
from llama_chat.checkpoints.meta import MetaCheckpoint
from llama_chat.loading.formats import open_checkpoint, open_tokenizer
from llama_chat.loading.plan import load
from llama_chat.model.rope import DynamicScaling, LinearScaling, Llama3Scaling
from llama_chat.model.transformer import Transformer
from tests.model_files import (
    META,
    edit_json,
    write_huggingface,
    write_llama2c,
    write_meta,
)
from tests.models import logits_of, random_model, reference_logits

IDS = list(range(3, 120))


def logits(path: Path) -> torch.Tensor:
    """Compute logits with our model, without a tokenizer."""
    checkpoint = open_checkpoint(path)
    with torch.device("meta"):
        model = Transformer(checkpoint.config)
    model.load_weights({name: checkpoint.read(name, torch.float32) for name in checkpoint.tensors})
    return logits_of(model, IDS)


def transformers_logits(folder: Path) -> torch.Tensor:
    """Compute logits with transformers, from the same files."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return reference_logits(model.eval(), IDS)


def assert_same_as_transformers(folder: Path) -> None:
    ours, theirs = logits(folder), transformers_logits(folder)
    assert (ours - theirs).abs().max() < 2e-4 * (theirs.max() - theirs.min())


# --- Logits and configuration -------------------------------------------------------------


def test_one_model_in_every_layout_has_the_same_logits(tmp_path: Path) -> None:
    for weights in ("safetensors", "shards", "bin", "bins"):
        write_huggingface(tmp_path / weights, weights=weights)
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 1
    write_huggingface(tmp_path / "older")
    assert "rope_parameters" in json.loads((tmp_path / "older/config.json").read_text())
    edit_json(tmp_path / "older/config.json", rope_parameters=None, rope_theta=10000.0)
    write_meta(tmp_path / "meta")
    write_llama2c(tmp_path / "c/model.bin")
    expected = load(tmp_path / "meta").logits(IDS)
    for name in ("safetensors", "shards", "bin", "bins", "older", "c/model.bin"):
        assert torch.allclose(load(tmp_path / name).logits(IDS), expected, rtol=0, atol=1e-5), name


CONFIGS = {
    "as many KV heads": replace(META, n_kv_heads=8, context_length=256),
    "one KV head": replace(META, n_kv_heads=1, norm_eps=1e-6, rope_theta=500_000.0),
    "tied": replace(META, tie_embeddings=True),
    "linear": replace(META, rope_scaling=LinearScaling(4.0)),
    "llama3": replace(META, rope_scaling=Llama3Scaling(8.0, 1.0, 4.0, 32)),
    "wide heads": replace(META, head_dim=16),
    "padded vocabulary": replace(META, vocab_size=416),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_logits_are_those_of_transformers(case: str, tmp_path: Path) -> None:
    config = CONFIGS[case]
    write_huggingface(tmp_path, config, seed=1)
    assert open_checkpoint(tmp_path).config == config
    assert_same_as_transformers(tmp_path)


OLDER: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "linear": (
        {"rope_scaling": {"type": "linear", "factor": 4.0}},
        {"rope_scaling": LinearScaling(4.0)},
    ),
    "dynamic": (
        {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "max_position_embeddings": 512},
        {"rope_scaling": DynamicScaling(2.0, 512), "context_length": 512},
    ),
    "llama3": (
        {
            "rope_theta": 500_000.0,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8,
                "low_freq_factor": 1,
                "high_freq_factor": 4,
                "original_max_position_embeddings": 64,
            },
        },
        {"rope_theta": 500_000.0, "rope_scaling": Llama3Scaling(8, 1, 4, 64)},
    ),
    "nulls": (
        {"rope_scaling": None, "head_dim": None, "num_key_value_heads": 4, "rope_theta": 2e4},
        {"rope_theta": 2e4},
    ),
}


@pytest.mark.parametrize("case", OLDER)
def test_the_older_keys_of_the_configuration_are_read(case: str, tmp_path: Path) -> None:
    values, expected = OLDER[case]
    write_huggingface(tmp_path)
    path = tmp_path / "config.json"
    edit_json(path, rope_parameters=None, dtype=None)
    older = json.loads(path.read_text()) | {"rope_theta": 10_000.0, "torch_dtype": "float32"}
    path.write_text(json.dumps(older | values))  # nulls stay
    assert open_checkpoint(tmp_path).config == replace(META, **expected)  # type: ignore[arg-type]
    assert_same_as_transformers(tmp_path)


def test_max_sequence_length_is_the_context_of_a_fine_tuned_model(tmp_path: Path) -> None:
    write_huggingface(tmp_path)
    edit_json(
        tmp_path / "config.json",
        max_sequence_length=16384,
        rope_scaling={"type": "linear", "factor": 4.0},
    )
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config.context_length == 16384
    assert checkpoint.config.rope_scaling == LinearScaling(4.0)


MISTRAL = {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}


def test_the_window_of_mistral_limits_the_context(tmp_path: Path) -> None:
    write_huggingface(tmp_path)
    edit_json(tmp_path / "config.json", **MISTRAL, sliding_window=128)
    assert_same_as_transformers(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config == replace(META, context_length=128)
    assert len(checkpoint.warnings) == 1
    assert "context reduced from 4096 to 128 tokens" in checkpoint.warnings[0]


@pytest.mark.parametrize("window", [{"sliding_window": 4096}, {}, {"sliding_window": None}])
def test_a_mistral_without_a_shorter_window_has_its_whole_context(
    tmp_path: Path, window: dict[str, object]
) -> None:
    write_huggingface(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | MISTRAL | window))
    assert open_checkpoint(tmp_path).config == META
    assert open_checkpoint(tmp_path).warnings == ()


def test_a_mistral_without_the_key_has_the_window_of_transformers(tmp_path: Path) -> None:
    write_huggingface(tmp_path, replace(META, context_length=8192))
    edit_json(tmp_path / "config.json", **MISTRAL)
    from transformers import AutoModelForCausalLM

    window = AutoModelForCausalLM.from_pretrained(tmp_path).config.sliding_window
    assert open_checkpoint(tmp_path).config.context_length == window


def test_the_architecture_is_enough_without_model_type(tmp_path: Path) -> None:
    write_huggingface(tmp_path)
    edit_json(tmp_path / "config.json", model_type=None)
    assert open_checkpoint(tmp_path).config == META


TIED = replace(META, tie_embeddings=True)


def test_a_stored_output_matrix_wins_over_the_configuration(tmp_path: Path) -> None:
    write_huggingface(tmp_path, META)
    edit_json(tmp_path / "config.json", tie_word_embeddings=True)
    assert not open_checkpoint(tmp_path).config.tie_embeddings
    assert_same_as_transformers(tmp_path)


def test_a_tied_matrix_that_torch_saved_twice_is_kept_once(tmp_path: Path) -> None:
    write_huggingface(tmp_path, TIED, weights="bin")
    names = torch.load(tmp_path / "pytorch_model.bin", weights_only=True).keys()
    assert "lm_head.weight" in names
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config == TIED
    assert "output.weight" not in checkpoint.tensors
    assert_same_as_transformers(tmp_path)


@pytest.mark.parametrize("weights", ["safetensors", "bin"])
def test_stored_rotary_frequencies_are_ignored(tmp_path: Path, weights: str) -> None:
    write_huggingface(tmp_path, weights=weights)  # type: ignore[arg-type]
    plain = logits(tmp_path)
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.full((4,), 7.0)}
    if weights == "bin":
        file = tmp_path / "pytorch_model.bin"
        torch.save(torch.load(file, weights_only=True) | extra, file)
    else:
        file = tmp_path / "model.safetensors"
        safetensors.torch.save_file(safetensors.torch.load_file(file) | extra, file)
    assert logits(tmp_path).equal(plain)


# --- Reading ------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["safetensors", "bin"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_read_back_bit_for_bit(tmp_path: Path, weights: str, dtype: torch.dtype) -> None:
    write_huggingface(tmp_path, weights=weights, dtype=dtype)  # type: ignore[arg-type]
    checkpoint = open_checkpoint(tmp_path)
    assert (checkpoint.format, checkpoint.name, checkpoint.dtype) == (
        "Hugging Face",
        tmp_path.name,
        dtype,
    )
    expected = dict(random_model(META).named_parameters())
    assert checkpoint.tensors.keys() == expected.keys()
    for name, weight in expected.items():
        assert checkpoint.read(name, dtype).equal(weight.to(dtype))
        assert checkpoint.read(name, torch.float32).equal(weight.to(dtype).float())
        assert checkpoint.tensors[name].n_bytes == weight.numel() * dtype.itemsize


def test_weights_of_the_wanted_type_are_not_copied(huggingface_model: Path) -> None:
    checkpoint = HuggingFaceCheckpoint.open(huggingface_model)
    for name in checkpoint.tensors:
        first, again = (checkpoint.read(name, torch.float32).data_ptr() for _ in range(2))
        permuted = name.endswith(("wq.weight", "wk.weight"))
        assert permuted or first == again, name


def test_a_folder_answers_end_to_end(huggingface_model: Path) -> None:
    llama = load(huggingface_model)
    prompt = llama.prompt_ids("Once upon a time")
    assert prompt[0] == 1
    assert llama.logits(prompt).shape == (len(prompt), META.vocab_size)
    tokenizer, templates = open_tokenizer(huggingface_model)
    assert tokenizer.encode("Once upon a time") == prompt[1:]
    assert not templates.texts


def test_config_json_decides_between_two_layouts_in_a_folder(tmp_path: Path) -> None:
    write_meta(tmp_path)
    edit_json(tmp_path / "config.json", model_type="llama")
    assert isinstance(open_checkpoint(tmp_path), MetaCheckpoint)
    write_huggingface(tmp_path)
    assert isinstance(open_checkpoint(tmp_path), HuggingFaceCheckpoint)
    (tmp_path / "config.json").unlink()
    assert isinstance(open_checkpoint(tmp_path), MetaCheckpoint)


# --- The template -------------------------------------------------------


TEXT = "{% for message in messages %}<|im_start|>{% endfor %}"
TEMPLATES: dict[str, tuple[object, str | None]] = {
    "none": (None, None),
    "text": (TEXT, TEXT),
    "several": (
        [{"name": "tool_use", "template": "x"}, {"name": "default", "template": TEXT}],
        TEXT,
    ),
    "no default": ([{"name": "tool_use", "template": "x"}, 7], None),
}


@pytest.mark.parametrize("case", TEMPLATES)
def test_the_chat_template(huggingface_copy: Path, case: str) -> None:
    value, expected = TEMPLATES[case]
    edit_json(huggingface_copy / "tokenizer_config.json", chat_template=value)
    assert open_checkpoint(huggingface_copy).templates.texts.get("default") == expected
    (huggingface_copy / "chat_template.jinja").write_text("in a file\n")
    assert open_checkpoint(huggingface_copy).templates.texts["default"] == "in a file\n"


def test_a_model_in_the_cache_of_the_hub_has_its_own_name(
    huggingface_model: Path, tmp_path: Path
) -> None:
    snapshot = tmp_path / "models--whose--Tiny-Llama" / "snapshots" / ("0" * 40)
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(huggingface_model)
    assert open_checkpoint(snapshot).name == "Tiny-Llama"
