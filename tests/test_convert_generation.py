"""``convert`` keeps what ends a reply and the suggested sampling, or says what it cannot keep."""

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from llama_chat.cli.app import run
from llama_chat.loading.plan import load
from llama_chat.settings.sampling import Sampling
from tests.folders import decoder_of, write_chain, write_tokenizer_files
from tests.model_files import edit_json, sentencepiece_model
from tests.vocabularies import added, piece_json

MODEL = sentencepiece_model()
SIZE = len(piece_json(MODEL)["model"]["vocab"])
NAMES = ["<turn>", "<|eom_id|>", "<x>", "<y>", "<|eot_id|>"]
IDS = {name: SIZE + i for i, name in enumerate(NAMES)} | {"</s>": 2}
SAMPLING = {"temperature": 0.7, "top_p": 0.85, "top_k": 40, "min_p": 0.1}
SAMPLING["repetition_penalty"] = 1.05
OURS = Sampling(temperature=0.7, top_p=0.85, top_k=40, min_p=0.1, repeat_penalty=1.05)
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}<x>\n{% endfor %}"


def source(folder: Path, *ends: str, **generation: object) -> Path:
    """Write a model whose ``generation_config.json`` names ``ends``."""
    tokens = [added(i, name) for name, i in IDS.items() if name != "</s>"]
    config = {
        "added_tokens_decoder": decoder_of(tokens),
        "eos_token": "</s>",
        "add_bos_token": False,
        "chat_template": TEMPLATE,
    }
    write_tokenizer_files(folder, model=MODEL, config=config)
    write_chain(folder, SIZE + len(tokens), [50, 51, 2], eos_token_id=2)
    ids = [IDS[end] for end in ends]
    edit_json(folder / "generation_config.json", eos_token_id=ids, **generation)
    return folder


def convert(*arguments: Path) -> None:
    assert run(["convert", "-q", *map(str, arguments)]) == 0


def facts(path: Path) -> dict[str, Any]:
    """Return all that a converted model must have in common with its source."""
    llama = load(path, dtype="float32")
    session = llama.chat()
    return {
        "ends": sorted(llama.engine().end_ids),
        "declared": {i for i, _ in llama.checkpoint.generation.end_ids(IDS)},
        "sampling": llama.sampling,
        "bos, eos": (llama.tokenizer.bos_id, llama.tokenizer.eos_id, llama.tokenizer.add_bos),
        "template": llama.checkpoint.templates.texts,
        "ends of the template": session.template.end_ids,
        "ids": [llama.prompt_ids(text) for text in ("Hello <turn>", "naïve 你好")],
        "logits": llama.logits([5, 60, 2]).tolist(),
    }


CASES = {
    "a message": ("</s>", "<|eom_id|>"),
    "three": ("<turn>", "<|eom_id|>", "</s>"),
    "known names give way": ("</s>", "<|eom_id|>", "<x>", "<|eot_id|>", "<y>"),
}


@pytest.mark.parametrize("case", CASES)
def test_ends_and_sampling_are_kept_both_ways(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = source(tmp_path / "start", *CASES[case], **SAMPLING)
    expected = facts(start)
    convert(start, tmp_path / "folder")
    assert facts(tmp_path / "folder") == expected
    convert(start, tmp_path / "m.gguf")
    if case == "known names give way":
        del expected["declared"]
    assert expected.items() <= facts(tmp_path / "m.gguf").items()
    convert(tmp_path / "m.gguf", tmp_path / "again")
    convert(tmp_path / "again", tmp_path / "again.gguf")
    for name in ("again", "again.gguf"):
        assert expected.items() <= facts(tmp_path / name).items()
    assert expected["sampling"] == OURS
    assert capsys.readouterr().err == ""


def test_files_have_the_usual_names_and_transformers_reads_them(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, GenerationConfig

    ends = ("</s>", "<turn>", "<|eom_id|>")
    start = source(tmp_path / "start", *ends, **SAMPLING)
    convert(start, tmp_path / "m.gguf")
    convert(tmp_path / "m.gguf", tmp_path / "folder")
    fields = {
        name: field.contents()
        for name, field in gguf.GGUFReader(tmp_path / "m.gguf").fields.items()
    }
    assert {key: fields[f"tokenizer.ggml.{key}_token_id"] for key in ("eos", "eot", "eom")} == {
        "eos": 2,
        "eot": IDS["<turn>"],
        "eom": IDS["<|eom_id|>"],
    }
    assert fields["general.sampling.temp"] == pytest.approx(0.7)
    assert fields["general.sampling.top_p"] == pytest.approx(0.85)
    assert fields["general.sampling.top_k"] == 40
    assert fields["general.sampling.min_p"] == pytest.approx(0.1)
    assert fields["general.sampling.penalty_repeat"] == pytest.approx(1.05)
    theirs = GenerationConfig.from_pretrained(tmp_path / "folder")
    assert sorted(theirs.eos_token_id) == sorted(IDS[end] for end in ends)
    assert {name: getattr(theirs, name) for name in SAMPLING} == SAMPLING
    assert theirs.do_sample is True
    written = json.loads((tmp_path / "folder" / "config.json").read_text())
    assert sorted(written["eos_token_id"]) == sorted(IDS[end] for end in ends)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "folder")
    before = load(start, dtype="float32").logits([5, 60, 2])
    torch.testing.assert_close(model(torch.tensor([[5, 60, 2]])).logits[0], before)


def test_ends_that_gguf_has_no_place_for_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = source(tmp_path / "start", "</s>", "<|eot_id|>", "<turn>", "<x>", "<y>")
    convert(start, tmp_path / "m.gguf")
    said = capsys.readouterr().err
    assert said == (
        "llama-chat: warning: GGUF has no place for more end tokens: '<y>' no longer ends a reply\n"
    )
    ends = load(tmp_path / "m.gguf").engine().end_ids
    assert ends == {IDS[name] for name in ("</s>", "<|eot_id|>", "<|eom_id|>", "<turn>", "<x>")}


def test_a_meta_model_declares_nothing_but_eos(meta_model: Path, tmp_path: Path) -> None:
    convert(meta_model, tmp_path / "folder")
    convert(meta_model, tmp_path / "m.gguf")
    for path in (meta_model, tmp_path / "folder", tmp_path / "m.gguf"):
        llama = load(path)
        assert (set(llama.engine().end_ids), llama.sampling) == ({2}, Sampling())
    written = json.loads((tmp_path / "folder" / "generation_config.json").read_text())
    assert written == {"bos_token_id": 1, "eos_token_id": 2}


@pytest.mark.parametrize("values", [{"temperature": 0}, {"temperature": 2, "do_sample": False}])
def test_greedy_is_kept(
    values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = source(tmp_path / "start", "</s>", **values)
    convert(start, tmp_path / "folder")
    assert load(tmp_path / "folder").sampling == Sampling(temperature=values["temperature"])
    written = json.loads((tmp_path / "folder" / "generation_config.json").read_text())
    assert written["do_sample"] is False
    assert capsys.readouterr().err == ""
    convert(start, tmp_path / "m.gguf")
    assert ("cannot say do_sample" in capsys.readouterr().err) == ("do_sample" in values)
