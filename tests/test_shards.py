"""Division of a model among ranks and devices: every number is somewhere, and heads find theirs."""

import json
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.program import assert_clean_error, run
from llama_chat.checkpoints.sharded import ShardedCheckpoint
from llama_chat.errors import UsageError
from llama_chat.loading.devices import map_layers, pick_devices
from llama_chat.loading.formats import open_checkpoint
from llama_chat.loading.plan import plan
from llama_chat.loading.scaling import describe_ranks
from llama_chat.loading.weights import FloatTypes, bytes_by_layer, read_weights, weight_bytes
from llama_chat.model.config import LlamaConfig
from llama_chat.parallel.slices import Grain, Shard, is_divisible, shards
from llama_chat.parallel.world import World
from llama_chat.quantization.linear import unpack_rows
from tests.meta_folders import write_llama_3
from tests.model_files import SMALL, write_gguf, write_llama2c, write_meta

_DIVIDED = ("attention.wo", "feed_forward.w2")
"""Matrices whose columns are divided."""


@st.composite
def models(draw: st.DrawFn) -> tuple[LlamaConfig, int, Grain]:
    """A model, a number of ranks, and the columns that stay together."""
    group, n_kv_heads = draw(st.integers(1, 9)), draw(st.integers(1, 12))
    head_dim = draw(st.sampled_from([2, 8, 64, 80, 128]))
    grain = Grain(*(draw(st.sampled_from([1, 32, 256])) for _ in range(2)))
    config = replace(
        SMALL,
        n_heads=group * n_kv_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        hidden_dim=grain.w2 * draw(st.integers(1, 60)),
        vocab_size=draw(st.integers(1, 300)),
        tie_embeddings=draw(st.booleans()),
    )
    return config, draw(st.integers(1, 16)), grain


def cover(ranges: list[range], n: int) -> bool:
    """True if neighbouring ranges, each once, are the numbers up to ``n``."""
    return [i for each, _ in groupby(ranges) for i in each] == [*range(n)]


@given(models())
def test_every_number_belongs_to_a_rank(drawn: tuple[LlamaConfig, int, Grain]) -> None:
    config, size, grain = drawn
    group = config.n_heads // config.n_kv_heads
    if not is_divisible(config, size, grain):
        with pytest.raises(UsageError, match=f"^{size} ranks: ") as refused:
            shards(config, size, grain)
        largest = int(refused.value.advice.split()[-1])
        assert largest != size
        assert is_divisible(config, largest, grain)
        return
    parts = shards(config, size, grain)
    for name, n in (("heads", config.n_heads), ("kv_heads", config.n_kv_heads)):
        assert cover([getattr(part, name) for part in parts], n)
    assert cover([part.hidden for part in parts], config.hidden_dim)
    assert cover([part.vocab for part in parts], config.vocab_size)
    for part in parts:
        local = part.local(config)
        assert_slices_fit(config, local, part)
        for head in part.heads:  # pairs with the KV head of its group, as one process has it
            nth = head - part.heads.start
            kv = part.kv_heads[nth * local.n_kv_heads // local.n_heads]
            assert kv == head // group
        for bound in (part.heads.start, part.heads.stop):
            is_end = bound * config.head_dim == config.n_heads * config.head_dim
            assert is_end or bound * config.head_dim % grain.wo == 0
        assert part.hidden.start % grain.w2 == 0


def assert_slices_fit(config: LlamaConfig, local: LlamaConfig, part: Shard) -> None:
    """Check that the slices of the weights have the shapes of the smaller model."""
    expected = local.tensor_shapes()
    for name, shape in config.tensor_shapes().items():
        found = part.slice_of(name)
        assert (shape if found is None else found.shape(shape)) == expected[name]


@pytest.mark.parametrize("layout", ["meta", "llama 3", "hub", "llama2.c", "F32", "Q8_0"])
def test_slices_of_any_layout_are_those_of_the_weights(
    layout: str, huggingface_model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model"
    if layout == "meta":
        write_meta(path, n_shards=2)
    elif layout == "llama 3":
        write_llama_3(path, n_shards=4)
    elif layout == "hub":
        path = huggingface_model
    elif layout == "llama2.c":
        path = path / "model.bin"
        write_llama2c(path)
    else:
        path = tmp_path / "model.gguf"
        config = replace(SMALL, dim=96, n_heads=9, n_kv_heads=3, head_dim=32, hidden_dim=288)
        write_gguf(path, config, quantization=gguf.GGMLQuantizationType[layout])
    whole = open_checkpoint(path)
    grain = Grain(*(whole.column_grain(f"layers.0.{name}.weight") for name in _DIVIDED))
    for size in (2, 3, 8):
        parts = [ShardedCheckpoint(whole, each) for each in shards(whole.config, size, grain)]
        for name in whole.tensors:
            stored = whole.read(name, torch.float32)
            for part, shard in zip(parts, shards(whole.config, size, grain), strict=True):
                at = shard.slice_of(name)
                expected = stored if at is None else stored.narrow(at.dim, at.start, len(at))
                assert part.read(name, torch.float32).equal(expected)
                assert part.tensors[name].shape == expected.shape
                packed = part.read_packed(name, torch.device("cpu"))
                if packed is not None:
                    rows = torch.arange(len(expected))
                    assert unpack_rows(packed, rows, torch.float32).equal(expected)
        read = sum(part.n_bytes for part in parts)
        assert read < whole.n_bytes * (1.2 if size < 8 else 1.6)  # norms, and shared KV heads


@pytest.mark.parametrize(("quantize", "size"), [("none", 4), ("int8", 2)])
def test_the_plan_of_ranks_follows_from_the_headers(
    quantize: str, size: int, meta_model: Path
) -> None:
    planned = plan(meta_model, "cpu", quantize=quantize)
    report: Any = describe_ranks(planned, size, 3, available=10**9, bandwidth=1e9, interconnect=1e8)
    whole = planned.part
    parts = shards(whole.config, size, Grain(32, 32) if quantize == "int8" else Grain())
    for found, shard in zip(report["ranks"], parts, strict=True):
        part = ShardedCheckpoint(whole, shard)
        assert found["weights"] == weight_bytes(part, planned.weight_format, planned.types)
        assert found["cache"] == 3 * planned.cache_bytes(planned.config.context_length) // size
        assert found["total"] == found["weights"] + found["cache"] + found["buffers"]
    assert report["fits"]
    config = planned.config
    sums = (2 * config.n_layers + 1) * 2 * (size - 1) * config.dim * 4 // size
    assert report["bytes_per_prompt_token"] == sums
    assert report["bytes_per_token"] == sums + (size - 1) * config.vocab_size * 4 // size
    alone: Any = describe_ranks(planned, 1, 1, available=1, bandwidth=1e9, interconnect=1e8)
    assert (alone["fits"], alone["bytes_per_token"]) == (False, 0)


def test_inspect_shows_the_plan_of_ranks(meta_model: Path, tmp_path: Path) -> None:
    flags = ("--world-size", "2", "--bandwidth", "20", "--memory", "16G", "--device-map", "--json")
    report = json.loads(run("inspect", meta_model, *flags, home=tmp_path).out)
    assert report["scaling"]["world_size"] == len(report["scaling"]["ranks"]) == 2
    assert report["device_map"] == [
        {"device": "cpu", "first_layer": 0, "last_layer": 1, "weights": report["weights_memory"]}
    ]
    shown = run("inspect", meta_model, *flags[:-1], home=tmp_path).out
    assert "On 2 ranks" in shown
    assert "layers 0 to 1" in shown
    refused = run("inspect", meta_model, "--world-size", "9", home=tmp_path)
    assert_clean_error(refused, 2, "9 ranks", "8 heads of 8 columns", "use 1 to 8")


@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=40),
    st.tuples(st.integers(0, 99), st.integers(0, 99)),
    st.lists(st.integers(0, 400), min_size=1, max_size=4),
)
def test_layers_fill_the_first_devices_that_have_room(
    layers: list[int], ends: tuple[int, int], free: list[int]
) -> None:
    devices = [torch.device("cuda", i) for i in range(len(free) - 1)] + [torch.device("cpu")]
    found = map_layers(layers, ends, list(zip(devices, free, strict=True)))
    assert len(found) == len(layers)
    assert list(found) == sorted(found, key=devices.index)
    sizes = [*layers]
    sizes[0] += ends[0]
    sizes[-1] += ends[1]
    for device, room in zip(devices[:-1], free, strict=False):
        used = [size for size, each in zip(sizes, found, strict=True) if each == device]
        assert sum(used) <= room
    if sum(sizes) <= free[0]:
        assert set(found) == {devices[0]}


def test_weights_lie_on_the_devices_of_their_layers(meta_model: Path) -> None:
    checkpoint = open_checkpoint(meta_model)
    types = FloatTypes(torch.float32)
    layers, ends = bytes_by_layer(checkpoint, "none", types)
    first, second = torch.device("cpu"), torch.device("meta")
    devices = map_layers(layers, ends, [(first, layers[0] + ends[0]), (second, 10**12)])
    weights = read_weights(checkpoint, "none", types, devices)
    for name, weight in weights.items():
        assert isinstance(weight, torch.Tensor)
        assert weight.device == (first if name.startswith(("tok", "layers.0.")) else second), name


def test_a_rank_has_the_gpu_of_its_number_on_its_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    world = World(6, 8, 2, 4, "10.0.0.1")
    for wanted in ("auto", "cuda"):
        assert pick_devices(wanted, world) == (torch.device("cuda", 2),)
    assert pick_devices("cpu", world) == (torch.device("cpu"),)
    with pytest.raises(UsageError, match="a device of its own"):
        pick_devices("cuda:0,cuda:1", world)
    with pytest.raises(UsageError, match="5 ranks on this machine"):
        pick_devices("auto", replace(world, local_size=5))
