"""Peak memory of a load: that of the model, and of at most one layer of the file at a time."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from harness.program import Program
from llama_chat.cli.app import run
from llama_chat.loading.plan import load
from tests.execute import EXECUTE
from tests.model_files import META, SMALL, write_hollow_gguf, write_meta

CONFIG = replace(
    META, dim=1024, n_heads=16, n_kv_heads=16, head_dim=64, hidden_dim=2752, n_layers=4
)
LAYER_BYTES = 2 * (4 * 1024 * 1024 + 3 * 1024 * 2752)
"""Bytes of a layer in bfloat16."""
SLACK = 20 * 2**20
"""Buffers of two reader threads, each with a matrix merged from its shards, which may reach their
peaks together; the vocabulary, and what the allocator keeps."""

MEASURE = """
from llama_chat.generation.measuring import peak_rss
from llama_chat.loading.plan import load
load({tiny!r}, "cpu", quantize="int8")
before = peak_rss()
llama = load({path!r}, "cpu", {dtype!r}, {quantize!r}, threads=2)
{after}
print(peak_rss() - before, llama.model.n_bytes)
"""


OPEN = """
import time
from dataclasses import replace
from llama_chat.generation.measuring import peak_rss
from llama_chat.loading.plan import plan
before, began = peak_rss(), time.process_time()
llama = replace(plan({path!r}, "cpu"), bytes_free=10**12).load()
print(peak_rss() - before, time.process_time() - began)
"""


def meta(folder: Path) -> Path:
    write_meta(folder, CONFIG, dtype=torch.bfloat16)
    return folder


def two_shards(folder: Path) -> Path:
    write_meta(folder, CONFIG, n_shards=2, dtype=torch.bfloat16)
    return folder


def hugging_face(folder: Path) -> Path:
    assert run(["convert", str(meta(folder / "meta")), str(folder / "hf")]) == 0
    return folder / "hf"


def torch_bin(folder: Path) -> Path:
    stored = hugging_face(folder) / "model.safetensors"
    torch.save(safetensors.torch.load_file(stored), stored.with_name("pytorch_model.bin"))
    stored.unlink()
    return stored.parent


def gguf(folder: Path) -> Path:
    assert run(["convert", str(meta(folder / "meta")), str(folder / "m.gguf")]) == 0
    return folder / "m.gguf"


Writer = Callable[[Path], Path]
WRITERS = [meta, two_shards, hugging_face, torch_bin, gguf]


@pytest.fixture(scope="module", params=WRITERS, ids=lambda writer: writer.__name__)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    writer: Writer = request.param
    return writer(tmp_path_factory.mktemp(writer.__name__))


def peak(
    model: Path, home: Path, dtype: str = "auto", quantize: str = "auto", *, after: str = ""
) -> tuple[int, int]:
    """Measure the peak memory of loading ``model`` in bytes, and the bytes of its weights."""
    tiny = home / "tiny"
    write_meta(tiny)
    code = MEASURE.format(
        tiny=str(tiny), path=str(model), dtype=dtype, quantize=quantize, after=after
    )
    with Program(code, home=home, command=EXECUTE) as process:
        out, err = process.communicate()
    assert err == b""
    used, weights = map(int, out.split())
    return used, weights


def test_quantizing_at_load_takes_the_result_and_a_layer(model: Path, tmp_path: Path) -> None:
    used, weights = peak(model, tmp_path, quantize="int8")
    assert used <= weights + LAYER_BYTES + SLACK


def test_another_float_type_takes_the_result_and_a_layer(model: Path, tmp_path: Path) -> None:
    used, weights = peak(model, tmp_path, dtype="float32")
    assert used <= weights + LAYER_BYTES + SLACK


def test_a_model_at_work_takes_its_file_once(model: Path, tmp_path: Path) -> None:
    used, weights = peak(model, tmp_path, after="llama.logits([1, 2, 3])")
    assert weights == pytest.approx(CONFIG.n_layers * LAYER_BYTES, rel=0.05)
    assert used <= weights + SLACK


def test_a_model_of_26_gb_opens_at_once(tmp_path: Path) -> None:
    path = tmp_path / "7b.gguf"
    heads = replace(SMALL, n_layers=32, n_heads=32, n_kv_heads=32, head_dim=128)
    write_hollow_gguf(path, replace(heads, dim=4096, hidden_dim=11008))
    assert path.stat().st_size > 25e9
    with Program(OPEN.format(path=str(path)), home=tmp_path, command=EXECUTE) as process:
        out, err = process.communicate()
    assert err == b""
    used, seconds = map(float, out.split())
    assert used < 2**26
    assert seconds < 1


def test_loading_leaves_the_number_of_threads(tmp_path: Path) -> None:
    write_meta(tmp_path)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        load(tmp_path, "cpu", quantize="int8")
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 2
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
