"""Packed weights: their unpacked values and their products."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.program import assert_clean_error, environment, run
from llama_chat.generation.native import NativeBackend
from llama_chat.kernels import native
from llama_chat.loading.plan import load
from llama_chat.quantization import linear
from llama_chat.quantization.linear import packed_linear, to_panels, torch_has_matrix_units
from llama_chat.quantization.packed import LAYOUTS, SUPER_BLOCK, PackedWeight, packed_bytes
from llama_chat.quantization.quantize import quantize
from llama_chat.settings.sampling import Sampling
from tests.conftest import ROOT
from tests.model_files import write_meta
from tests.models import TINY, random_model

Layout = tuple[Literal[4, 5, 6, 8], int, bool, bool, bool]
EVERY_LAYOUT = pytest.mark.parametrize("layout", sorted(LAYOUTS))


def random_packed(layout: Layout, rows: int, n_spans: int, seed: int = 0) -> PackedWeight:
    """Make a matrix with rows of ``n_spans`` super-blocks, or groups if the layout has none."""
    bits, group, has_mins, stepped, is_iq4 = layout
    n_groups = n_spans * SUPER_BLOCK // group if stepped else n_spans
    generator = torch.Generator().manual_seed(seed)
    low, high, dtype = (-128, 128, torch.int8) if bits == 8 or is_iq4 else (0, 256, torch.uint8)
    shape = rows, n_groups, group * bits // 8
    quants = torch.randint(low, high, shape, generator=generator).to(dtype)
    if not stepped:
        scales, mins = torch.randn(2, rows, n_groups, generator=generator).mul(0.01).half()
        return PackedWeight(bits, quants, scales, mins if has_mins else None)
    numbers = torch.randint(-128, 128, (2, rows, n_groups), generator=generator).to(torch.int8)
    steps = torch.randn(2, rows, n_spans, generator=generator).mul(2e-4).half()
    tensors = zip(numbers, steps, strict=True)
    (scales, super_scales), (mins, super_mins) = tensors
    if not has_mins:
        return PackedWeight(bits, quants, scales, None, super_scales)
    return PackedWeight(bits, quants, scales, mins, super_scales, super_mins)


def rounded(x: torch.Tensor, group: int) -> torch.Tensor:
    """Round activations as the kernel does, to 8 bits with a scale for each group."""
    groups = x.view(len(x), -1, group)
    steps = groups.abs().amax(-1, keepdim=True) / 127
    return ((groups / steps.clamp_min(1e-30)).round() * steps).view(x.shape)


@pytest.mark.parametrize("level", native.supported_levels())
@EVERY_LAYOUT
@settings(max_examples=12)
@given(rows=st.integers(1, 70), n_spans=st.integers(1, 20), n_x=st.integers(1, 40))
def test_products_are_those_of_the_unpacked_weights(
    level: str, layout: Layout, rows: int, n_spans: int, n_x: int
) -> None:
    packed = random_packed(layout, rows, n_spans)
    weights = packed.unpack(torch.float32)
    matrix = to_panels(packed, level)
    ids = torch.randint(rows, (50,), generator=torch.Generator().manual_seed(2))
    for dtype in (torch.float32, torch.bfloat16):
        assert matrix.unpack_rows(ids, torch.empty(50, weights.shape[1], dtype=dtype)).equal(
            weights[ids].to(dtype)
        )
    x = torch.randn(n_x, packed.shape[1], generator=torch.Generator().manual_seed(1))
    expected = rounded(x, packed.group).double() @ weights.double().T
    # A value half-way between two steps may be rounded either way.
    step = x.abs().max() / 127 * weights.abs().max()
    assert (matrix.multiply(x) - expected).abs().max() < step * 1.01 + 1e-4
    rounded_once = matrix.multiply(x.bfloat16())
    assert rounded_once.equal(matrix.multiply(x.bfloat16().float()).bfloat16())


@pytest.mark.parametrize("level", native.supported_levels())
@EVERY_LAYOUT
def test_rows_of_several_blocks_have_the_products_of_each_alone(layout: Layout, level: str) -> None:
    packed = random_packed(layout, 83, 8)  # an odd number of panels, of which the last is not full
    matrix = to_panels(packed, level)
    x = torch.randn(531, matrix.shape[1])  # a block has at most 512
    alone = torch.cat([matrix.multiply(x[i : i + 1]) for i in range(len(x))])
    assert matrix.multiply(x).equal(alone)


@pytest.mark.parametrize("level", native.supported_levels())
def test_rows_so_wide_that_a_block_has_few_have_the_products_of_each_alone(level: str) -> None:
    packed = random_packed((4, 32, False, False, False), 35, 90_112 // 32)
    matrix = to_panels(packed, level)
    x = torch.randn(67, matrix.shape[1])
    alone = torch.cat([matrix.multiply(x[i : i + 1]) for i in range(0, len(x), 6)])
    assert matrix.multiply(x)[::6].equal(alone)


@pytest.mark.parametrize("level", native.supported_levels())
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_not_rounded_away(level: str, value: float) -> None:
    packed = random_packed((4, 32, True, False, False), 20, 4)
    matrix = to_panels(packed, level)
    x = torch.ones(3, 128)
    x[1, 70] = value
    product = matrix.multiply(x)
    assert product[1].isnan().all()
    assert product[[0, 2]].isfinite().all()


@pytest.mark.parametrize("level", native.supported_levels())
def test_no_rows_have_no_products_and_tiny_numbers_tiny_ones(level: str) -> None:
    packed = random_packed((4, 32, False, False, False), 20, 4)
    matrix = to_panels(packed, level)
    assert matrix.multiply(torch.empty(0, 128)).shape == (0, 20)
    x = torch.zeros(1, 128)
    x[0, 32:60] = 1e-37  # 127 divided by it is infinite
    assert matrix.multiply(x).abs().max() < 1e-30


@pytest.mark.skipif(not native.is_available(), reason="no C compiler was there at installation")
@EVERY_LAYOUT
def test_a_product_is_close_to_that_of_floats(layout: Layout) -> None:
    packed = random_packed(layout, 300, 64)
    x = torch.randn(1, 3, packed.shape[1])
    product = packed_linear(x, to_panels(packed))
    exact = x @ packed.unpack(torch.float32).T
    assert product.shape == (1, 3, 300)
    assert (product - exact).norm() < 0.01 * exact.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_rows_are_multiplied_by_the_unpacked_weights(dtype: torch.dtype) -> None:
    packed = random_packed((4, 32, True, False, False), 700, 512)  # more than one part is unpacked
    x = torch.randn(20, 512 * 32).to(dtype)
    exact = x.float() @ packed.unpack(dtype).float().T
    assert (packed_linear(x, packed).float() - exact).norm() < 0.004 * exact.norm()


@pytest.mark.parametrize(("bits", "steps"), [(4, 15), (8, 254)])
def test_quantizing_moves_no_weight_by_more_than_half_a_step(
    bits: Literal[4, 8], steps: int
) -> None:
    weights = torch.randn(130, 96, generator=torch.Generator().manual_seed(0))
    weights[3, :32] = 0.25  # a group of equal weights
    weights[4, 32:64] = 0
    packed = quantize(weights, bits)
    assert packed.shape == (130, 96)
    assert packed.n_bytes == packed_bytes((130, 96), bits, 32, mins=bits == 4)
    groups = weights.view(130, -1, 32)
    spans = groups.amax(-1) - groups.amin(-1) if bits == 4 else 2 * groups.abs().amax(-1)
    moved = (packed.unpack(torch.float32) - weights).abs().view(130, -1, 32).amax(-1)
    rounding = groups.abs().amax(-1) * 2**-9  # of scales and minima to float16
    assert (moved <= spans / steps / 2 + rounding).all()


def test_impossible_shapes_are_refused() -> None:
    scales = torch.zeros(2, 2, dtype=torch.float16)
    for shape, dtype in (
        ((2, 2, 32), torch.float32),
        ((2, 64), torch.int8),
        ((2, 2, 24), torch.int8),
    ):
        with pytest.raises(ValueError, match=r"W8 needs|such groups of 24"):
            PackedWeight(8, torch.zeros(shape, dtype=dtype), scales)
    quants = torch.zeros(2, 8, 32, dtype=torch.uint8)
    scales, steps = torch.zeros(2, 8, dtype=torch.int8), torch.zeros(2, 1, dtype=torch.float16)
    with pytest.raises(ValueError, match="float16, one for each group"):
        PackedWeight(8, quants.view(torch.int8), scales)
    with pytest.raises(ValueError, match="int8, one for each group"):
        PackedWeight(4, quants[..., :16], scales, scales[:, :7], steps, steps)
    with pytest.raises(ValueError, match="minima have super-block scales"):
        PackedWeight(4, quants[..., :16], scales, scales, steps)
    with pytest.raises(ValueError, match="one for 256 weights"):
        PackedWeight(4, quants[..., :16], scales, scales, steps, steps[:1])
    with pytest.raises(ValueError, match="one for 256 weights"):
        PackedWeight(4, quants[:, :7, :16], scales[:, :7], scales[:, :7], steps, steps)
    with pytest.raises(ValueError, match="rows of 40 weights"):
        quantize(torch.zeros(2, 40), 8)


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_a_quantized_model_answers_like_the_floats(quantization: str, starter_model: Path) -> None:
    llama = load(starter_model, quantize=quantization, dtype="float32")
    ids = llama.tokenizer.encode("The capital of France is")
    words = llama.generate(ids, Sampling(temperature=0), max_tokens=2)
    assert "".join(event.text for event in words).startswith(" Paris")
    floats = load(starter_model, quantize="none", dtype="float32")
    assert llama.model.n_bytes < floats.model.n_bytes * (0.4 if quantization == "int8" else 0.25)


@pytest.mark.parametrize("level", [*native.supported_levels(), "torch"])
def test_every_kernel_level_answers(level: str, gguf_model: Path, tmp_path: Path) -> None:
    arguments = ["complete", "-", "-m", str(gguf_model), "--quantize", "int8", "--json"]
    greedy = ["--temperature", "0", "--max-tokens", "4"]
    done = run(*arguments, *greedy, home=tmp_path, stdin=b"in the hin", LLAMA_CHAT_KERNEL=level)
    assert (done.status, done.err) == (0, "")
    assert '"completion_tokens": 4' in done.out


def test_an_unknown_kernel_level_is_refused_by_name(gguf_model: Path, tmp_path: Path) -> None:
    done = run(
        "complete", "-", "-m", gguf_model, home=tmp_path, stdin=b"in", LLAMA_CHAT_KERNEL="abacus"
    )
    assert_clean_error(done, 2, "LLAMA_CHAT_KERNEL: 'abacus' is not here: give one of ")


@pytest.mark.parametrize(("weight_format", "number"), [("int8", 1e7), ("int4", -7e4)])
def test_numbers_too_large_to_quantize_are_refused(
    weight_format: str, number: float, tmp_path: Path
) -> None:
    stored = write_meta(tmp_path / "m")
    stored["layers.1.attention.wv.weight"][3, 4] = number
    torch.save(stored, tmp_path / "m" / "consolidated.00.pth")
    done = run(
        *("complete", "-", "-m", tmp_path / "m", "--quantize", weight_format, "--no-server"),
        home=tmp_path,
        stdin=b"in",
    )
    why = "tensor layers.1.attention.wv.weight has numbers that cannot be quantized"
    assert_clean_error(done, 2, f"--quantize {weight_format}: {why}: give none")


@pytest.mark.skipif(not native.supported_levels(), reason="no C compiler was there")
def test_float16_with_packed_weights_in_portable_c(huggingface_model: Path, tmp_path: Path) -> None:
    done = run(
        *("complete", "-", "-m", huggingface_model, "--dtype", "float16", "--quantize", "int8"),
        *("--max-tokens", "1", "--no-server", "-q"),
        home=tmp_path,
        stdin=b"more tokens than those that are multiplied at once as they are",
        LLAMA_CHAT_KERNEL="portable",
    )
    assert (done.status, done.err) == (0, "")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_many_rows_are_multiplied_by_unpacked_weights_of_any_type(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "prefers_unpacked", lambda *_: True)
    monkeypatch.setattr(linear, "UNPACKED_BYTES", 2**12)  # several parts
    weight, rows = torch.randn(100, 64), torch.randn(20, 64)
    packed = to_panels(quantize(weight, 8))
    got = packed_linear(rows.to(dtype), packed)
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), rows @ weight.T, atol=0.2, rtol=0.05)


@pytest.mark.parametrize("quantize", ["none", "stored"])
def test_a_cache_in_8_bits_takes_half_and_answers_as_well(
    quantize: str, starter_model: Path
) -> None:
    texts, sizes = [], []
    for kv_dtype in ("auto", "int8"):
        llama = load(starter_model, dtype="bfloat16", quantize=quantize, kv_dtype=kv_dtype)
        session = llama.chat(sampling=Sampling(temperature=0), max_tokens=12)
        texts.append(
            "".join(event.text for event in session.send("What is the capital of France?"))
        )
        sizes.append(session.engine.cache.n_bytes)
    assert all("Paris" in text for text in texts)
    assert sizes[1] / sizes[0] == (64 + 4) / (2 * 64)  # a scale for each head of a token


@pytest.mark.skipif(not native.supported_levels(), reason="no C compiler was there")
@pytest.mark.parametrize("level", native.supported_levels())
def test_prompts_take_the_faster_path_where_either_may_be(level: str, tmp_path: Path) -> None:
    """Both are measured where only portable C runs, and in bfloat16 where torch has AMX."""
    code = """
import torch
from llama_chat.kernels import native
from llama_chat.quantization import trial
from llama_chat.quantization.linear import prefers_unpacked
from tests.model_files import write_meta
from tests.models import TINY, native_backend, packed_model
measured, measure = [], trial._best_seconds
def record(compute):
    measured.append(measure(compute))
    return measured[-1]
trial._best_seconds = record
for dtype in (torch.float32, torch.bfloat16):
    measured.clear()
    backend = native_backend(packed_model(TINY, (8, 4), dtype))
    bits = backend.model.blocks[0].feed_forward.w1.packed.bits
    faster = prefers_unpacked(dtype, bits, TINY.dim)
    through_torch, run = [], backend._torch._run
    backend._torch._run = lambda *arguments: through_torch.append(arguments) or run(*arguments)
    backend.forward(list(range(40)), backend.new_cache())
    backend.forward(list(range(2)), backend.new_cache())
    in_torch = faster and not native.has_matrix_units()
    assert bool(through_torch) == in_torch and len(through_torch) <= 1
    if measured:
        unpacked, packed = measured[:2]
        assert faster == (unpacked < packed)
    assert len(measured) <= 2 * 4  # two widths, each of 4 and 8 bits
    print(min(len(measured), 2))
"""
    env = environment(tmp_path, LLAMA_CHAT_KERNEL=level, PYTHONPATH=str(ROOT))
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    expected = 2 if level == "portable" else 0
    floats, halves = map(int, done.stdout.split())
    assert floats == expected
    assert halves == (2 if torch_has_matrix_units(torch.bfloat16) else expected)


@pytest.mark.skipif(not native.supported_levels(), reason="no C compiler was there")
@pytest.mark.parametrize(("level", "in_torch"), [("avx512_bf16", True), ("amx", False)])
def test_torch_computes_prompts_where_it_alone_has_matrix_units(
    level: str, in_torch: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    monkeypatch.setattr(native, "level_name", lambda: level)
    for dtype in (torch.bfloat16, torch.float32):
        backend = NativeBackend.create(random_model(TINY).to(dtype))
        assert backend is not None
        assert backend.prompts_in_torch == (in_torch and dtype == torch.bfloat16)
