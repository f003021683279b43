"""Weights of 16 and 32 bits in C: what torch computes, exact in any batch, and as stored."""

from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import torch

from llama_chat.generation.backend import TorchBackend
from llama_chat.generation.native import NativeBackend
from llama_chat.kernels import native
from llama_chat.kernels.abi import MAX_EXACT_BATCH
from llama_chat.loading.plan import load, plan
from llama_chat.model.config import LlamaConfig
from llama_chat.model.transformer import Transformer
from llama_chat.quantization.linear import Linear
from tests.model_files import write_gguf
from tests.models import TINY, native_backend, random_model

pytestmark = pytest.mark.skipif(
    not native.is_available(), reason="no C compiler was there at installation"
)

TYPES = (torch.float32, torch.bfloat16, torch.float16)
CONFIGS = {
    "grouped": TINY,
    "rows and columns past whole vectors": replace(
        TINY, dim=100, hidden_dim=150, n_heads=5, n_kv_heads=5, head_dim=20, vocab_size=77
    ),
    "several chunks of columns": replace(TINY, n_layers=1, hidden_dim=4104),
}


@pytest.fixture(autouse=True)
def floats_in_c(monkeypatch: pytest.MonkeyPatch) -> None:
    """Multiply floats in C where only the portable level is supported, too."""
    monkeypatch.setattr(native, "multiplies_floats", native.is_available)


def model_of(config: LlamaConfig, dtype: torch.dtype) -> Transformer:
    model = random_model(replace(config, context_length=400))
    model.load_weights({n: w.to(dtype) for n, w in model.named_parameters()})
    return model


@pytest.mark.parametrize("level", native.supported_levels())
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@torch.inference_mode()
def test_logits_are_those_of_torch_in_float32(
    level: str, config: LlamaConfig, dtype: torch.dtype
) -> None:
    model = model_of(config, dtype)
    exact = random_model(model.config)
    exact.load_weights({name: weight.float() for name, weight in model.named_parameters()})
    fast, slow = native_backend(model, level), TorchBackend(exact)
    ids = [token_id % config.vocab_size for token_id in range(1, 90)]
    for n_new in (1, 2, 5, 7, 8, 9, 13, 60, 89):
        got = fast.forward(ids[:n_new], fast.new_cache(torch.float32), all_logits=True)
        expected = slow.forward(ids[:n_new], slow.new_cache(), all_logits=True)
        # Of many tokens, these round the input of products to bfloat16.
        rounds = (level, dtype) in (
            ("avx512_bf16", torch.bfloat16),
            ("amx", torch.bfloat16),
            ("amx", torch.float16),
        )
        if rounds and n_new > MAX_EXACT_BATCH:
            assert (got - expected).norm() < 0.01 * expected.norm()
        else:
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("level", native.supported_levels())
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("kv_dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int8])
@torch.inference_mode()
def test_a_few_tokens_together_give_what_they_give_one_by_one(
    level: str, dtype: torch.dtype, kv_dtype: torch.dtype
) -> None:
    backend = native_backend(model_of(CONFIGS["rows and columns past whole vectors"], dtype), level)
    ids = [token_id % 77 for token_id in range(1, 70)]
    one_by_one = backend.new_cache(kv_dtype)
    single = torch.stack([backend.forward([token_id], one_by_one) for token_id in ids])
    for n in range(2, 9):
        batched = backend.new_cache(kv_dtype)
        for at in range(0, len(ids), n):
            several = backend.forward(ids[at : at + n], batched, all_logits=True)
            assert several.equal(single[at : at + n])


@pytest.mark.parametrize("level", native.supported_levels())
@torch.inference_mode()
def test_a_cache_in_float16_keeps_what_torch_rounds(level: str) -> None:
    """Numbers out of its range become the largest."""
    model = model_of(TINY, torch.float32)
    with torch.no_grad():
        model.blocks[0].attention.wv.weight[0] *= 1e7
    backend = native_backend(model, level)
    exact, rounded = backend.new_cache(torch.float32), backend.new_cache(torch.float16)
    for cache in (exact, rounded):
        backend.forward(list(range(1, 60)), cache)
    for floats, halves in zip(
        exact.read(0, 59, torch.float32), rounded.read(0, 59, torch.float16), strict=True
    ):
        assert halves.equal(floats.clamp(-65504, 65504).half())
    assert exact.read(0, 59, torch.float32)[1].abs().max() > 65504


@pytest.mark.parametrize("stored", [gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.BF16])
def test_weights_of_16_bits_stay_as_stored(
    stored: gguf.GGMLQuantizationType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, quantization=stored)
    llama = load(path)
    expected = torch.float16 if stored.name == "F16" else torch.bfloat16
    assert isinstance(llama.backend, NativeBackend)
    assert llama.model.blocks[0].attention.wq.weight.dtype == expected
    assert llama.engine().cache.dtype == torch.float16
    assert plan(path).kernel == native.level_name()
    amx = llama.backend.prompts_in_torch
    prompts = f", prompts torch {str(expected)[6:]} on cpu" if amx else ""
    assert llama.kernel == f"{native.level_name()} {str(expected)[6:]}{prompts}"
    assert load(path, dtype="float32").model.dtype == torch.float32
    monkeypatch.setattr(native, "level_name", lambda: native.TORCH)
    assert load(path, "cpu", "bfloat16").kernel == "torch bfloat16 on cpu"


def test_only_portable_c_leaves_floats_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(native, "level_name", lambda: native.supported_levels()[0])
    assert NativeBackend.create(model_of(TINY, torch.float32)) is None


@pytest.mark.parametrize("dtype", TYPES[1:], ids=str)
def test_a_layer_multiplies_16_bits_with_32(dtype: torch.dtype) -> None:
    layer = Linear(100, 77)
    weight = torch.randn(77, 100).to(dtype)
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    for n_rows in (1, 5, 9, 60):
        x = torch.randn(2, n_rows, 100)
        expected = x @ weight.float().T
        assert torch.allclose(layer(x), expected, atol=1e-4)
    with pytest.raises(ValueError, match="no kernel"):
        layer(x.double())
