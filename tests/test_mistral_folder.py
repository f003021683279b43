"""Mistral's own folders: ``params.json``, ``consolidated.safetensors``, and ``tekken.json``."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from tokenizers import Regex, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from harness.program import assert_clean_error, run
from llama_chat.errors import ModelError
from llama_chat.library import installed_models
from llama_chat.loading.formats import open_checkpoint, open_tokenizer
from llama_chat.loading.plan import load
from llama_chat.tokenizers.bpe import byte_level_text
from tests.meta_folders import MISTRAL, RANKED, TEKKEN_PATTERN, tekken, write_mistral
from tests.model_files import (
    MERGES,
    assert_refused,
    edit_json,
    sentencepiece_model,
    write_meta,
)
from tests.models import logits_of, random_model
from tests.vocabularies import hard_texts

TEXT = "the other man, 12345 then\n[INST]é"
N_SPECIAL = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``tekken.json``."""
    return write_mistral(tmp_path_factory.mktemp("mistral") / "Mistral-Nemo")


def test_the_model_is_read_in_metas_order(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    assert checkpoint.config == MISTRAL
    assert checkpoint.warnings == ()
    llama = load(folder, dtype="float32")
    ids = llama.prompt_ids(TEXT)
    expected = logits_of(random_model(MISTRAL), ids)
    assert (llama.logits(ids) - expected).abs().max() < 1e-4


WINDOWED: dict[str, object] = {"rope_theta": None, "sliding_window": 128}

PARAMS: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "v0.1": (WINDOWED, {"context_length": 128}),
    "v0.3": ({"rope_theta": None}, {"rope_theta": 1e6}),
    "longer": ({"max_position_embeddings": 65_536}, {"context_length": 65_536}),
    "shorter": ({"max_seq_len": 4096}, {"context_length": 4096}),
    "no window": ({"sliding_window": 10**6}, {}),
    "windows by layer": ({"_sliding_window": [64, 200]}, {"context_length": 64}),
    "other rows": ({"vocab_size": 32_768}, {}),
}


@pytest.mark.parametrize("case", PARAMS)
def test_params_of_each_release(case: str, tmp_path: Path) -> None:
    params, expected = PARAMS[case]
    checkpoint = open_checkpoint(write_mistral(tmp_path, params=params))
    assert checkpoint.config == replace(MISTRAL, **expected)  # type: ignore[arg-type]
    if checkpoint.config.context_length < 1000:
        assert "context reduced from 32768 to" in checkpoint.warnings[0]


def test_weights_in_files_of_torch_are_read_too(tmp_path: Path) -> None:
    config = replace(MISTRAL, vocab_size=400)
    write_meta(tmp_path, config)
    edit_json(tmp_path / "params.json", head_dim=16, hidden_dim=96, rope_theta=10_000.0)
    assert open_checkpoint(tmp_path).config == config
    assert not open_checkpoint(tmp_path).templates.is_meta


def test_weights_in_shards_are_read(tmp_path: Path) -> None:
    folder = write_mistral(tmp_path / "m")
    whole = folder / "consolidated.safetensors"
    weights = safetensors.torch.load_file(whole)
    expected = load(folder).logits([1, 30, 40])
    names = {
        f"consolidated-0000{i}-of-00002.safetensors": list(weights)[i - 1 :: 2] for i in (1, 2)
    }
    for file, part in names.items():
        safetensors.torch.save_file({name: weights[name] for name in part}, folder / file)
    places = {name: file for file, part in names.items() for name in part}
    (folder / f"{whole.name}.index.json").write_text(json.dumps({"weight_map": places}))
    whole.unlink()
    assert load(folder).logits([1, 30, 40]).equal(expected)
    (found,) = [model for model in installed_models([str(tmp_path)]) if model.path == folder]
    assert len(found.files) == 5
    (folder / min(names)).unlink()
    assert_refused(folder, f"{min(names)!r} is missing: download all shards")


FOREIGN: dict[str, tuple[dict[str, object], str]] = {
    "experts": ({"moe": {"num_experts": 8}}, "it is a mixture of experts (moe): take a dense"),
    "images": ({"vision_encoder": {}, "vision_model": {"a": 1}}, "it reads images too"),
    "fp8": ({"quantization": {"qformat_weight": "fp8_e4m3"}}, "quantized by another program"),
    "adapter": ({"lora": {"rank": 64}}, "it is an adapter"),
    "yarn": ({"yarn": {"factor": 4}}, "its rotary scaling is 'yarn'"),
    "mamba": ({"model_type": "mamba"}, "its architecture is 'mamba': take a model of the llama"),
    "hidden_dim a text": ({"hidden_dim": "9"}, "hidden_dim is '9'"),
    "head_dim odd": ({"head_dim": 7}, "head_dim 7 is odd"),
    "head_dim huge": ({"head_dim": 2**40}, "head_dim is 1099511627776"),
    "window 0": ({"sliding_window": 0}, "sliding_window is 0"),
    "no dim": ({"dim": None}, "dim is missing"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_other_models_of_mistral_are_named(case: str, tmp_path: Path) -> None:
    params, why = FOREIGN[case]
    write_mistral(tmp_path, params=params)
    assert_refused(tmp_path, why)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = write_mistral(tmp_path / "a" / "m")
    (folder / "tekken.json").unlink()
    assert_refused(folder, "no tokenizer.model or tekken.json in it or beside it: download it")


# --- The tokenizer --------------------------------------------------------------------------------


def test_ids_are_those_of_the_library_with_the_published_pattern(folder: Path) -> None:
    pieces = [byte_level_text(token) for token in RANKED]
    ids = {piece: N_SPECIAL + rank for rank, piece in enumerate(pieces)}
    merges = [(left, right) for left, right in (merge.split(" ") for merge in MERGES)]
    reference = Backend(BPE(ids, [*merges, ("Ġ", "Ġ"), ("Ċ", "Ċ")], ignore_merges=True))
    split = pre_tokenizers.Split(Regex(TEKKEN_PATTERN), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    reference.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer, source = open_tokenizer(folder / "tekken.json")
    assert not source.is_meta
    for text in hard_texts(200):
        plain = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
        if plain == text:
            assert tokenizer.encode(text) == reference.encode(text).ids


def test_special_tokens_come_first(folder: Path) -> None:
    tokenizer, _ = open_tokenizer(folder)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.add_bos) == (1, 2, True)
    assert tokenizer.vocab_size == len(RANKED) + N_SPECIAL
    assert {**tokenizer.control_ids}["[/INST]"] == 4
    assert min(tokenizer.encode("[INST]</s>")) >= N_SPECIAL


def test_special_tokens_of_newer_files_are_listed(tmp_path: Path) -> None:
    listed = [{"rank": i, "token_str": t, "is_control": True} for i, t in enumerate("ABCDE")]
    listed[1]["token_str"], listed[2]["token_str"] = "<s>", "</s>"
    path = tmp_path / "tekken.json"
    path.write_text(json.dumps(tekken(special_tokens=listed)))
    tokenizer, _ = open_tokenizer(path)
    assert [tokenizer.piece(i) for i in (0, 1, 2, 4, 5, 19)] == [
        *("A", "<s>", "</s>", "E", "<SPECIAL_5>", "<SPECIAL_19>")
    ]


def test_the_newest_tokenizer_of_several_is_taken(tmp_path: Path) -> None:
    write_mistral(tmp_path, replace(MISTRAL, vocab_size=400))
    (tmp_path / "tekken.json").unlink()
    for name in ("tokenizer.model", "tokenizer.model.v1", "tokenizer.model.v2"):
        (tmp_path / name).write_bytes(b"not this one")
    (tmp_path / "tokenizer.model.v11").write_bytes(sentencepiece_model())
    llama = load(tmp_path)
    assert llama.tokenizer.kind == "SentencePiece"
    assert open_tokenizer(tmp_path / "tokenizer.model.v11")[0].vocab_size == 400


def _config(**changes: object) -> dict[str, Any]:
    return tekken(config={**tekken()["config"], **changes})


def _token(at: int, **changes: object) -> dict[str, Any]:
    vocab = tekken()["vocab"]
    return tekken(vocab=[*vocab[:at], {**vocab[at], **changes}, *vocab[at + 1 :]])


BAD: dict[str, tuple[object, str]] = {
    "a list": ([], "the whole is not a table"),
    "no config": (tekken(config=None), "config is not a table"),
    "no pattern": (_config(pattern=None), "pattern is not a text"),
    "no regex": (_config(pattern="("), "the tokenizers library cannot use it"),
    "no sizes": (_config(default_vocab_size="9"), "default_vocab_size is no whole number"),
    "sizes huge": (_config(default_num_special_tokens=2**60), "is no whole number"),
    "vocab a table": (tekken(vocab={}), "vocab is not a list"),
    "a token a text": (tekken(vocab=["a"]), "token 0 is not a table"),
    "no base64": (_token(3, token_bytes="?"), "token 3 is no token in base64"),
    "no bytes": (_token(3, token_bytes=None), "token 3 is no token in base64"),
    "a gap": (_token(3, rank=4), "token 3 has another rank"),
    "a token twice": (_token(3, token_bytes="IQ=="), "tokens 0 and 3 are the same"),
    "special a text": (tekken(special_tokens=["a"]), "special token 0 is not a table"),
    "special out of place": (
        tekken(special_tokens=[{"rank": 1, "token_str": "a"}]),
        "special token 0 has no text, or another rank",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_damaged_tokenizers_are_refused(case: str, tmp_path: Path) -> None:
    content, why = BAD[case]
    path = tmp_path / "tekken.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ModelError) as caught:
        open_tokenizer(path)
    assert why in str(caught.value)
    assert str(caught.value).isprintable()


# --- In the program -------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["m.gguf", "m"])
def test_a_converted_model_has_the_same_ids_and_logits(
    target: str, folder: Path, tmp_path: Path
) -> None:
    result = run("convert", folder, tmp_path / target, home=tmp_path)
    assert result.status == 0, result.err
    before, after = load(folder), load(tmp_path / target)
    ids = before.prompt_ids(TEXT)
    assert after.prompt_ids(TEXT) == ids
    assert dict(after.tokenizer.control_ids) == dict(before.tokenizer.control_ids)
    assert (before.logits(ids) - after.logits(ids)).abs().max() < 1e-4


def test_the_template_is_asked_for(folder: Path, tmp_path: Path) -> None:
    # Its tokens are those of several templates, and Meta's is not among them.
    flags = ("-m", folder, "--temperature", "0", "--max-tokens", "2")
    assert_clean_error(run("ask", "hi", *flags, home=tmp_path), 2, "--template")
    assert run("ask", "hi", *flags, "--template", "mistral", home=tmp_path).status == 0
    assert run("complete", "-", *flags, home=tmp_path, stdin=b"the").status == 0


def test_the_models_on_this_machine_have_it(folder: Path) -> None:
    (found,) = [m for m in installed_models([str(folder.parent)]) if m.path == folder]
    names = sorted(file.name for file in found.files)
    assert names == ["consolidated.safetensors", "params.json", "tekken.json"]
