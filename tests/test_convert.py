"""``convert``: the written model has the same logits and ids as the source."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest
import sentencepiece
import torch

from llama_chat import load
from llama_chat.checkpoints.base import Checkpoint
from llama_chat.cli.app import run
from llama_chat.conversion.gguf import GGUFFile
from llama_chat.conversion.huggingface import HuggingFaceFolder
from llama_chat.conversion.tokenizer_files import write_tokenizer
from llama_chat.conversion.vocabulary import gguf_vocabulary
from llama_chat.errors import ModelError
from llama_chat.loading.formats import load_tokenizer, open_checkpoint
from llama_chat.model.rope import (
    DynamicScaling,
    FrequencyDivisors,
    LinearScaling,
    Llama3Scaling,
    RopeScaling,
)
from llama_chat.model.transformer import Transformer
from llama_chat.tokenizers.tokenizer_json import read_json
from llama_chat.tokenizers.vocabulary import MergeModel, PieceModel, Vocabulary
from tests.model_files import CHATML, META, SMALL, byte_vocabulary, gguf_name, write_gguf
from tests.models import logits_of, reference_logits

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

Q = gguf.GGMLQuantizationType
IDS = [1, 5, 300, 7, 42, 42, 399, 11]
TEXTS = ["Hello, world!", "the thin hen", "  two  spaces\n\n", "naïve café 你好 🦙", "12345", ""]


def convert(*arguments: str | Path) -> int:
    """Run the command in this process; returns its exit status."""
    return run(["convert", *map(str, arguments)])


def contents(path: Path) -> dict[str, Any]:
    """Read the metadata of a GGUF file with the gguf library."""
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def weights(path: Path) -> dict[str, np.ndarray]:
    """Read the weights of a GGUF file with the gguf library."""
    return {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        for tensor in gguf.GGUFReader(path).tensors
    }


def logits(checkpoint: Checkpoint, ids: list[int]) -> torch.Tensor:
    """Compute logits of a checkpoint with our model in float32, ``(len(ids), vocab_size)``."""
    model = Transformer(checkpoint.config)
    model.load_weights({name: checkpoint.read(name, torch.float32) for name in checkpoint.tensors})
    return logits_of(model, ids)


# --- Logits and weights ------------------------------------------------------------------------


def test_a_gguf_file_of_a_meta_model_holds_its_weights_and_vocabulary(
    meta_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "m.gguf"
    assert convert(meta_model, out) == 0
    source = open_checkpoint(meta_model)
    stored = weights(out)
    assert stored.keys() == {gguf_name(name) for name in source.tensors}
    for name in source.tensors:
        assert np.array_equal(stored[gguf_name(name)], source.read(name, torch.float32).numpy())
    found = contents(out)
    assert found["general.architecture"] == "llama"
    assert found["general.file_type"] == gguf.LlamaFileType.ALL_F32
    expected = {
        "block_count": META.n_layers,
        "context_length": 4096,
        "embedding_length": META.dim,
        "feed_forward_length": META.hidden_dim,
        "attention.head_count": META.n_heads,
        "attention.head_count_kv": META.n_kv_heads,
        "attention.key_length": META.head_dim,
        "rope.dimension_count": META.head_dim,
        "rope.freq_base": META.rope_theta,
        "vocab_size": META.vocab_size,
    }
    assert {key: found[f"llama.{key}"] for key in expected} == expected
    model = sentencepiece.SentencePieceProcessor(model_file=str(meta_model / "tokenizer.model"))
    ids = range(model.vocab_size())
    assert found["tokenizer.ggml.model"] == "llama"
    assert found["tokenizer.ggml.tokens"] == [model.id_to_piece(i) for i in ids]
    assert found["tokenizer.ggml.scores"] == [model.get_score(i) for i in ids]
    types = found["tokenizer.ggml.token_type"]
    assert types[:3] == [2, 3, 3]
    assert [i for i, kind in enumerate(types) if kind == 6] == [i for i in ids if model.is_byte(i)]
    assert set(types[3 + 256 :]) == {1}
    assert (found["tokenizer.ggml.bos_token_id"], found["tokenizer.ggml.eos_token_id"]) == (1, 2)
    assert found["tokenizer.ggml.add_bos_token"] is True
    assert found["tokenizer.ggml.add_space_prefix"] is True


def by_transformers(folder: Path) -> "LlamaForCausalLM":
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.mark.parametrize("type_name", ["F32", "BF16"])
def test_transformers_computes_the_same_of_a_meta_model(
    type_name: str, meta_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "hf"
    assert convert(meta_model, out, "--type", type_name, "--shard-size", "200KB") == 0
    assert len(list(out.glob("model-*-of-*.safetensors"))) > 1
    reference = by_transformers(out)
    ours = logits(open_checkpoint(meta_model), IDS)
    error = (reference_logits(reference, IDS) - ours).abs().max() / (ours.max() - ours.min())
    assert error < (2e-4 if type_name == "F32" else 2e-2)
    assert reference.config.eos_token_id == 2


SCALINGS = [
    LinearScaling(4.0),
    DynamicScaling(2.0, 512),
    Llama3Scaling(8.0, 1.0, 4.0, 8192),
]


@pytest.mark.parametrize("scaling", SCALINGS)
def test_rotary_scaling_is_kept(scaling: RopeScaling, meta_model: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(meta_model)
    checkpoint.config = dataclasses.replace(checkpoint.config, rope_scaling=scaling)
    vocabulary = checkpoint.read_vocabulary()
    HuggingFaceFolder(checkpoint, vocabulary, "F32", 10**9).write(tmp_path / "hf", print)
    if isinstance(scaling, DynamicScaling):
        length = scaling.original_context
        checkpoint.config = dataclasses.replace(checkpoint.config, context_length=length)
    reference = by_transformers(tmp_path / "hf")
    ours = logits(checkpoint, IDS)
    error = (reference_logits(reference, IDS) - ours).abs().max() / (ours.max() - ours.min())
    assert error < 2e-4
    # ``rope_scaling`` is the key of transformers 4.
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["rope_scaling"]["rope_type"] == config["rope_parameters"]["rope_type"]


def test_gguf_stores_divisors_of_frequencies(meta_model: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(meta_model)
    plain = checkpoint.config.rope_frequencies()
    scaling = Llama3Scaling(8.0, 1.0, 4.0, 8192)
    checkpoint.config = dataclasses.replace(checkpoint.config, rope_scaling=scaling)
    GGUFFile(checkpoint, checkpoint.read_vocabulary(), "F32").write(tmp_path / "m.gguf", print)
    divisors = torch.tensor(weights(tmp_path / "m.gguf")["rope_freqs.weight"])
    torch.testing.assert_close(plain / divisors, checkpoint.config.rope_frequencies())


def test_gguf_keeps_a_linear_factor_and_loses_the_context_of_a_dynamic_one(
    meta_model: Path, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(meta_model)
    config, vocabulary = checkpoint.config, checkpoint.read_vocabulary()
    checkpoint.config = dataclasses.replace(config, rope_scaling=LinearScaling(4.0))
    GGUFFile(checkpoint, vocabulary, "F32").write(tmp_path / "linear.gguf", print)
    found = contents(tmp_path / "linear.gguf")
    assert found["llama.rope.scaling.type"] == "linear"
    assert found["llama.rope.scaling.factor"] == 4.0
    checkpoint.config = dataclasses.replace(config, rope_scaling=DynamicScaling(2.0, 2048))
    dynamic = GGUFFile(checkpoint, vocabulary, "F32")
    assert "one of 2048 tokens" in dynamic.warnings[0]
    dynamic.write(tmp_path / "dynamic.gguf", print)
    assert contents(tmp_path / "dynamic.gguf")["llama.context_length"] == 2048


def test_config_json_takes_only_divisors_of_a_known_rule(meta_model: Path) -> None:
    checkpoint = open_checkpoint(meta_model)
    vocabulary = checkpoint.read_vocabulary()
    checkpoint.config = dataclasses.replace(checkpoint.config, rope_theta=500_000.0)
    plain = checkpoint.config.rope_frequencies()
    named = Llama3Scaling(32.0, 1.0, 4.0, 8192)
    divisors = tuple((plain / named.apply(plain, 500_000.0, 4096)).tolist())
    scaling = FrequencyDivisors(divisors)
    checkpoint.config = dataclasses.replace(checkpoint.config, rope_scaling=scaling)
    HuggingFaceFolder(checkpoint, vocabulary, "F32", 10**9)
    scaling = FrequencyDivisors((1.0, 2.0, 1.0, 3.0))
    checkpoint.config = dataclasses.replace(checkpoint.config, rope_scaling=scaling)
    with pytest.raises(ModelError, match="cannot express its rotary scaling"):
        HuggingFaceFolder(checkpoint, vocabulary, "F32", 10**9)


@pytest.mark.parametrize("type_name", ["Q8_0", "Q4_0", "Q4_1"])
def test_quantized_bytes_are_those_of_the_gguf_library(
    type_name: str, gguf_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "m.gguf"
    assert convert(gguf_model, out, "--type", type_name) == 0
    source = open_checkpoint(gguf_model)
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(out).tensors}
    for name, shape in source.config.tensor_shapes().items():
        tensor = stored[gguf_name(name)]
        kind = Q[type_name] if len(shape) > 1 else Q.F32
        assert tensor.tensor_type == kind
        expected = gguf.quants.quantize(source.read(name, torch.float32).numpy(), kind)
        assert np.array_equal(tensor.data.view(np.uint8), expected.view(np.uint8))
    assert np.isfinite(load(out, dtype="float32").logits([3, 4, 5]).numpy()).all()


def test_rows_that_do_not_divide_into_blocks_stay_floats(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_gguf(tmp_path / "m.gguf", dataclasses.replace(SMALL, hidden_dim=100))
    assert convert(tmp_path / "m.gguf", tmp_path / "q.gguf", "--type", "Q8_0") == 0
    assert "as F16, since rows are no multiple of a block: 2 of" in capsys.readouterr().err
    kinds = {t.name: t.tensor_type for t in gguf.GGUFReader(tmp_path / "q.gguf").tensors}
    assert kinds["blk.0.ffn_down.weight"] == Q.F16
    assert kinds["blk.0.ffn_up.weight"] == Q.Q8_0
    load(tmp_path / "q.gguf")


@pytest.mark.parametrize(("type_name", "tolerance"), [("F32", 1e-5), ("F16", 2e-2)])
def test_a_round_trip_keeps_logits_ids_and_template(
    type_name: str, tolerance: float, gguf_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "again.gguf"
    assert convert(gguf_model, out, "--type", type_name) == 0
    before, after = load(gguf_model, dtype="float32"), load(out, dtype="float32")
    ids = [4, 80, 81, 200, 7]
    torch.testing.assert_close(after.logits(ids), before.logits(ids), atol=tolerance, rtol=0)
    for text in TEXTS:
        assert after.tokenizer.encode(text) == before.tokenizer.encode(text)
    assert after.tokenizer.control_ids == before.tokenizer.control_ids
    assert after.checkpoint.templates.texts == before.checkpoint.templates.texts
    assert before.checkpoint.templates.stored == CHATML
    assert after.tokenizer.eos_id == before.tokenizer.eos_id


# --- Vocabularies ------------------------------------------------------------------------------


def same_ids(folder: Path, checkpoint: Checkpoint) -> None:
    """Check that the tokenizer in ``folder`` gives the ids of ours."""
    from transformers import AutoTokenizer

    theirs, ours = AutoTokenizer.from_pretrained(folder), load_tokenizer(checkpoint)
    bos = [ours.bos_id] if ours.add_bos else []
    for text in TEXTS:
        assert theirs(text).input_ids == [*bos, *ours.encode(text)], text
    assert theirs.bos_token_id == ours.bos_id
    assert theirs.eos_token_id == ours.eos_id
    assert theirs.chat_template == checkpoint.templates.stored


def test_transformers_reads_the_tokenizer_of_a_meta_model(
    shared_data: Path, meta_model: Path, tmp_path: Path
) -> None:
    for name in ("random", "stories"):
        path = meta_model if name == "random" else shared_data / "models" / "stories260K"
        checkpoint = open_checkpoint(path)
        (tmp_path / name).mkdir()
        write_tokenizer(tmp_path / name, checkpoint, checkpoint.read_vocabulary())
        model = (tmp_path / name / "tokenizer.model").read_bytes()
        assert model == (path / "tokenizer.model").read_bytes()
        same_ids(tmp_path / name, checkpoint)


def test_transformers_reads_the_tokenizer_of_a_gguf_file(gguf_model: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(gguf_model)
    write_tokenizer(tmp_path, checkpoint, checkpoint.read_vocabulary())
    same_ids(tmp_path, checkpoint)


def test_a_written_tokenizer_json_is_read_as_the_same_tables(
    gguf_model: Path, meta_model: Path, tmp_path: Path
) -> None:
    expected = open_checkpoint(gguf_model).read_vocabulary()
    write_tokenizer(tmp_path, open_checkpoint(gguf_model), expected)
    found = gguf_vocabulary(read_json(tmp_path / "tokenizer.json"))
    assert (found.pieces, found.types) == (expected.pieces, expected.types)
    assert isinstance(found.model, MergeModel)
    assert isinstance(expected.model, MergeModel)
    assert (found.model.merges, found.model.name) == (expected.model.merges, "gpt-2")
    # JSON does not keep SentencePiece's scores, but the order of merges that follows from them.
    expected = open_checkpoint(meta_model).read_vocabulary()
    write_tokenizer(tmp_path, open_checkpoint(meta_model), expected)
    found = gguf_vocabulary(read_json(tmp_path / "tokenizer.json"))
    assert (found.pieces, found.types) == (expected.pieces, expected.types)
    joined = [i for i, piece in enumerate(found.pieces) if len(piece) > 1 and found.types[i] == 1]
    assert isinstance(found.model, PieceModel)
    assert isinstance(expected.model, PieceModel)
    in_order = sorted(joined, key=expected.model.scores.__getitem__)
    assert sorted(joined, key=found.model.scores.__getitem__) == in_order


def test_a_tokenizer_that_gguf_cannot_hold_is_refused() -> None:
    divided = {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}
    vocabulary = dataclasses.replace(byte_vocabulary(), model=MergeModel([], divided))
    with pytest.raises(ModelError, match="divides text in a way that GGUF has no name for"):
        gguf_vocabulary(vocabulary)


def test_every_row_of_the_embedding_gets_a_token() -> None:
    one = Vocabulary(what="", pieces=["a"], types=[1], model=PieceModel([0.5]))
    padded = one.padded(3)
    assert padded.pieces == ["a", "[PAD1]", "[PAD2]"]
    assert padded.types == [1, 5, 5]
    assert padded.model == PieceModel([0.5, 0.0, 0.0])
