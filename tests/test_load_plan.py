"""Plans of loads: weight formats, the memory they take, refusals before a weight is read."""

import gc
import os
import re
import weakref
from dataclasses import replace
from pathlib import Path

import gguf
import psutil
import pytest
import torch

from harness.program import run
from llama_chat.cli.loading import plan_load
from llama_chat.errors import ModelError, UsageError
from llama_chat.files import readable_size
from llama_chat.generation.events import Token
from llama_chat.kernels import native
from llama_chat.loading.devices import pick_dtype
from llama_chat.loading.load_plan import LoadPlan
from llama_chat.loading.plan import load, plan
from llama_chat.loading.weights import WEIGHT_FORMATS, FloatTypes, choose_weight_format
from llama_chat.model.rope import MAX_CONTEXT
from llama_chat.settings.settings import Settings
from tests.model_files import SMALL, write_gguf, write_hollow_gguf

LARGE = replace(SMALL, dim=1024, n_heads=16, head_dim=64, hidden_dim=2048, n_layers=4)
AMX = ("_is_amx_tile_supported",)
OTHER_BYTES = 2**29 + LARGE.kv_cache_bytes(512, 2) + LARGE.rotary_bytes(512)
"""Bytes needed beside the weights: working memory, and what a whole context takes."""


@pytest.fixture(scope="module")
def large_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "large.gguf"
    write_gguf(path, LARGE, quantization=gguf.GGMLQuantizationType.F16)
    return path


def plan_of(model: Path, quantize: str, free: int = 10**12) -> LoadPlan:
    return replace(plan(model, "cpu", "bfloat16", quantize), bytes_free=free)


@pytest.mark.parametrize("quantize", WEIGHT_FORMATS)
def test_the_estimate_is_the_size_of_the_loaded_weights(quantize: str, large_model: Path) -> None:
    planned = plan_of(large_model, quantize)
    assert planned.load().model.n_bytes == planned.weight_bytes


@pytest.mark.parametrize("quantize", WEIGHT_FORMATS)
def test_a_model_loads_only_if_all_its_bytes_are_free(quantize: str, large_model: Path) -> None:
    planned = plan_of(large_model, quantize)
    needed = OTHER_BYTES + planned.weight_bytes
    assert planned.bytes_needed == needed
    replace(planned, bytes_free=needed).check_fit()
    with pytest.raises(ModelError):
        replace(planned, bytes_free=needed - 1).check_fit()
    with pytest.raises(ModelError):
        replace(planned, bytes_free=needed - 1).load()


def test_saved_suffixes_get_what_a_full_cache_leaves(large_model: Path) -> None:
    planned = plan_of(large_model, "none")
    needed = OTHER_BYTES + planned.weight_bytes
    assert replace(planned, bytes_free=needed).max_saved_bytes == 0
    assert replace(planned, bytes_free=needed - 1).max_saved_bytes == 0
    left = LARGE.kv_cache_bytes(10, 2)
    engine = replace(planned, bytes_free=needed + left).load().engine()
    for first in range(3, 6):
        engine.prefill_cached([first] * 8)
    assert engine.cache.saved_bytes == LARGE.kv_cache_bytes(8, 2)


def test_quantized_files_stay_packed_where_that_is_fast(large_model: Path) -> None:
    checkpoint = plan_of(large_model, "auto").checkpoint
    fast = "stored" if native.is_available() else "none"
    assert choose_weight_format("auto", checkpoint, FloatTypes(torch.bfloat16), 10**12) == fast
    assert choose_weight_format("auto", checkpoint, FloatTypes(torch.bfloat16), 10**6) == "stored"
    gpu = torch.device("cuda")
    assert (
        choose_weight_format("auto", checkpoint, FloatTypes(torch.bfloat16), 10**12, gpu) == "none"
    )


def test_a_model_that_does_not_fit_is_refused_with_a_format_that_does(large_model: Path) -> None:
    sizes = {name: plan_of(large_model, name).bytes_needed for name in WEIGHT_FORMATS}
    assert sizes["none"] > sizes["int8"] > sizes["int4"]
    for other in ("int8", "int4"):
        with pytest.raises(ModelError) as caught:
            plan_of(large_model, "none", sizes[other]).check_fit()
        line = str(caught.value)
        needed, free = readable_size(sizes["none"]), readable_size(sizes[other])
        assert line.endswith(f": needs {needed}, {free} free: use --quantize {other} ({free})")
    too_little = plan_of(large_model, "none", sizes["int4"] - 1)
    with pytest.raises(ModelError, match="free some memory or take a smaller model"):
        too_little.check_fit()
    planned = replace(plan_of(large_model, "int4"), context_given=True)
    for_fewer = replace(planned, bytes_free=planned.bytes_with(300))
    with pytest.raises(ModelError, match=r": take --context 300 or less$"):
        for_fewer.check_fit()
    with pytest.raises(ModelError, match="free some memory or take a smaller model"):
        replace(planned, bytes_free=planned.bytes_with(200)).check_fit()


def test_more_threads_than_processors_are_a_warning(large_model: Path) -> None:
    n = os.cpu_count() or 1
    assert plan(large_model, threads=n).warnings == plan(large_model).warnings
    [*_, last] = plan(large_model, threads=n + 1).warnings
    assert last.startswith(f"--threads {n + 1}: more than the {n} processor")


def test_a_longer_context_than_the_models_is_refused(large_model: Path) -> None:
    with pytest.raises(UsageError, match="--context 513: the model was made for 512 tokens"):
        plan(large_model, context=513)
    assert plan(large_model, context=512).config.context_length == 512


def test_memory_of_a_model_that_is_dropped_first_counts_as_free(large_model: Path) -> None:
    extra = plan(large_model, reclaimable=10**15).bytes_free - plan(large_model).bytes_free
    assert extra == pytest.approx(10**15, rel=1e-3)


def test_no_more_is_free_than_a_limit_allows(large_model: Path) -> None:
    plan(large_model)  # what it imports takes memory, too
    used = psutil.Process().memory_info().rss
    for memory in (10 * 2**20, used, used + 2**20):
        left = plan(large_model, memory=memory, reclaimable=2**23).bytes_free
        assert left == pytest.approx(max(0, memory - used + 2**23), abs=2**22)
    assert plan(large_model, memory=used, reclaimable=2 * used).bytes_free == used
    with pytest.raises(ModelError, match=r"needs .* MB, 0 bytes free of --memory 10\.5 MB"):
        plan(large_model, memory=10 * 2**20, reclaimable=2**23).check_fit()


def test_a_model_loads_by_its_name(
    large_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    folder = tmp_path / "llama-chat" / "models" / "mine"
    folder.mkdir(parents=True)
    (folder / "large.gguf").symlink_to(large_model)
    assert load("mine").checkpoint.path == folder / "large.gguf"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "other.gguf").symlink_to(large_model)
    assert load("other", model_paths=[str(elsewhere)]).checkpoint.path == elsewhere / "other.gguf"
    with pytest.raises(ModelError, match="neither a path nor a known name: did you mean mine"):
        load("minne")


def test_a_cache_that_cannot_fit_is_refused_before_a_weight_is_read(tmp_path: Path) -> None:
    path = tmp_path / "endless.gguf"
    many_heads = replace(SMALL, n_heads=128, n_kv_heads=128, context_length=MAX_CONTEXT)
    write_hollow_gguf(path, many_heads)
    flags = ("-m", path, "--context", "16000000")
    answer = run("complete", "-", *flags, home=tmp_path, stdin=b"in")
    assert answer.status == 3
    assert answer.err.count("\n") == 1
    assert "needs 525.9 GB, " in answer.err
    assert re.search(r": take --context \d+ or less$", answer.err.strip())


@pytest.mark.parametrize("template", ["auto", "chatml", "plain"])
def test_a_dropped_model_leaves_nothing_in_memory(template: str, gguf_model: Path) -> None:
    settings = Settings().change("model", str(gguf_model), "the test")

    def used_and_dropped() -> list[weakref.ref[object]]:
        llama = plan_load(settings).load()
        session = llama.chat(template=template)
        for event in session.send("hello"):
            if isinstance(event, Token):
                break
        return [*map(weakref.ref, (llama, llama.model, llama.tokenizer, session, session.template))]

    first = used_and_dropped()
    second = used_and_dropped()
    gc.collect()
    assert [reference() for reference in [*first, *second]] == [None] * 10


@pytest.mark.parametrize(
    ("instructions", "expected"),
    [((), "float32"), (("_is_avx512_bf16_supported",), "bfloat16"), (AMX, "bfloat16")],
)
def test_torch_computes_bfloat16_where_the_processor_does(
    instructions: tuple[str, ...],
    expected: str,
    large_model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """AVX-512 alone converts each number, which takes longer than float32."""
    for name in ("_is_avx512_bf16_supported", *AMX):
        monkeypatch.setattr(torch.cpu, name, lambda name=name: name in instructions)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert pick_dtype("auto", torch.float16, torch.device("cpu")) == getattr(torch, expected)
    monkeypatch.setattr(native, "level_name", lambda: native.TORCH)
    planned = plan(large_model, "cpu")
    assert (planned.kernel, planned.dtype) == ("torch", getattr(torch, expected))
    # A type that is asked for, and one of float32, stay.
    assert plan(large_model, "cpu", "bfloat16").dtype == torch.bfloat16
    assert pick_dtype("auto", torch.float32, torch.device("cpu")) == torch.float32
