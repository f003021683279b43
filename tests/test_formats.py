"""Logits of the same model in every format, and losses of every GGUF type."""

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from llama_chat import Llama, load
from llama_chat.checkpoints.gguf_blocks import SUPPORTED, BlockType
from llama_chat.cli.app import run
from llama_chat.model.transformer import Transformer
from tests.model_files import (
    META,
    SMALL,
    gguf_name,
    write_gguf,
    write_huggingface,
    write_llama2c,
    write_meta,
)
from tests.models import logits_of, random_model
from tests.test_gguf_blocks import PACKED_AS, random_blocks

DATA = Path(__file__).parent / "data"

KINDS = [kind for kind in SUPPORTED.values() if isinstance(kind, BlockType)]
WIDE = replace(SMALL, dim=256, n_heads=8, n_kv_heads=4, head_dim=32, hidden_dim=512)
"""Config whose rows are whole blocks in every type."""

N_TOKENS = 160
"""Tokens of a fixed text, enough for the rounding of activations to average out."""


def loss(llama: Llama, ids: list[int], at_once: int = 8) -> float:
    """Compute the mean cross entropy of next tokens, with ``at_once`` tokens in a pass."""
    cache = llama.backend.new_cache()
    starts = range(0, len(ids), at_once)
    logits = torch.cat(
        [llama.backend.forward(ids[i : i + at_once], cache, all_logits=True) for i in starts]
    )
    return F.cross_entropy(logits[:-1], torch.tensor(ids[1:])).item()


def test_one_model_gives_the_same_logits_in_every_format(tmp_path: Path) -> None:
    write_meta(tmp_path / "meta", META)
    write_meta(tmp_path / "sharded", META, n_shards=2)
    write_huggingface(tmp_path / "safetensors", META)
    write_huggingface(tmp_path / "bin", META, weights="bin")
    write_llama2c(tmp_path / "llama2c" / "model.bin", META)
    for source, target in [("meta", "a.gguf"), ("safetensors", "b.gguf"), ("a.gguf", "back")]:
        assert run(["convert", str(tmp_path / source), str(tmp_path / target), "-q"]) == 0
    ids = [1, 5, 300, 7, 42, 42, 399, 11]
    expected = load(tmp_path / "meta", dtype="float32").logits(ids)
    assert expected.std() > 0.1
    others = ("sharded", "safetensors", "bin", "llama2c/model.bin", "a.gguf", "b.gguf", "back")
    texts = ["Hello, world!", "  naïve café 你好 🦙\n"]
    encode = load(tmp_path / "meta").tokenizer.encode
    for other in others:
        llama = load(tmp_path / other, dtype="float32")
        torch.testing.assert_close(llama.logits(ids), expected, rtol=1e-5, atol=1e-5)
        assert [llama.tokenizer.encode(text) for text in texts] == [*map(encode, texts)]


def write_blocks(path: Path, kind: BlockType) -> dict[str, torch.Tensor]:
    """Write a model of random blocks; returns its weights as dequantized by the gguf library."""
    number = gguf.GGMLQuantizationType[kind.name]
    writer = gguf.GGUFWriter(path, "llama")
    write_gguf(path.with_suffix(".floats"), WIDE)
    floats = gguf.GGUFReader(path.with_suffix(".floats"))
    for name, field in floats.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            kinds = [*field.types, None][:2]
            writer.add_key_value(name, field.contents(), kinds[0], sub_type=kinds[1])
    weights = {}
    for i, (name, weight) in enumerate(random_model(WIDE).named_parameters()):
        if weight.dim() == 1:
            writer.add_tensor(gguf_name(name), weight.numpy())
            weights[name] = weight.data
            continue
        rows, width = weight.shape
        data = random_blocks(kind, rows * width // kind.n_weights, 1.0, seed=i)
        spread = gguf.quants.dequantize(data.reshape(-1, kind.n_bytes), number).std()
        data = random_blocks(kind, len(data) // kind.n_bytes, width**-0.5 / spread, seed=i)
        stored = data.reshape(rows, -1)
        writer.add_tensor(gguf_name(name), stored, raw_dtype=number)
        weights[name] = torch.from_numpy(gguf.quants.dequantize(stored, number))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_type_computes_what_its_floats_do(kind: BlockType, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    reference = Transformer(WIDE)
    reference.load_weights(write_blocks(path, kind))
    ids = np.random.default_rng(0).integers(0, WIDE.vocab_size, 200).tolist()
    floats, packed = (load(path, dtype="float32", quantize=mode) for mode in ("none", "stored"))
    expected = logits_of(reference, ids)
    assert logits_of(floats.model, ids).equal(expected)
    assert packed.model.matrix_types == [f"W{PACKED_AS[kind.name][0]}"]
    assert packed.model.n_bytes < floats.model.n_bytes / 3
    exact = loss(floats, ids)
    assert exact > 5
    assert abs(loss(packed, ids) - exact) < 0.005 * exact


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0", "as it is"])
def test_packed_weights_of_a_trained_model_predict_a_text_as_well(
    kind: str, starter_model: Path, tmp_path: Path
) -> None:
    path = starter_model
    if kind != "as it is":
        path = tmp_path / "model.gguf"
        assert run(["convert", str(starter_model), str(path), "--type", kind, "-q"]) == 0
    floats, packed = (load(path, dtype="float32", quantize=mode) for mode in ("none", "stored"))
    ids = floats.tokenizer.encode((DATA / "markdown_reply.txt").read_text())[:N_TOKENS]
    exact = loss(floats, ids, at_once=100)  # the same in floats, and three times as fast
    assert 1 < exact < 5
    assert abs(loss(packed, ids) - exact) < 0.005 * exact
