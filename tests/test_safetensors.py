"""Files of safetensors: read without a copy, and checked for every rule of the format."""

import contextlib
import json
import os
import re
import struct
import tracemalloc
import warnings
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_chat.checkpoints.safetensors import open_safetensors
from llama_chat.checkpoints.weight_files import mapped_bytes
from llama_chat.errors import ModelError
from llama_chat.loading.formats import open_checkpoint
from tests.model_files import write_huggingface
from tests.test_huggingface import logits

NOTHING = re.compile("(?!)")


def file_of(header: object, data: bytes = b"", *, padding: int = 0) -> bytes:
    """Make a file with the given header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * padding
    return struct.pack("<Q", len(text)) + text + data


def tensor(
    begin: int, end: int, shape: list[object] | None = None, dtype: object = "F32"
) -> object:
    shape = [(end - begin) // 4] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


FLOATS = {
    "a": torch.arange(6, dtype=torch.float32).view(2, 3),
    "b": torch.tensor([1.5, -2, 3], dtype=torch.float16),
    "c": torch.tensor(0.5, dtype=torch.bfloat16),
}


def test_tensors_are_views_of_the_mapped_file(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    safetensors.torch.save_file(FLOATS, path, metadata={"format": "pt"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = open_safetensors(path, NOTHING)
    assert found.keys() == FLOATS.keys()
    for name, expected in FLOATS.items():
        assert found[name].dtype == expected.dtype
        assert found[name].equal(expected)
    whole = path.read_bytes()
    header = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])
    # They have the same distances in memory as in the file.
    starts = {found[name].data_ptr() - header[name]["data_offsets"][0] for name in FLOATS}
    assert len(starts) == 1
    maps = Path("/proc/self/maps")
    assert not maps.exists() or str(path) in maps.read_text()


def test_a_header_of_any_length_is_read(tmp_path: Path) -> None:
    # The first versions did not align the data, and some lengths look like the tag of a web page.
    write_huggingface(tmp_path)
    path = tmp_path / "model.safetensors"
    expected = logits(tmp_path)
    whole = path.read_bytes()
    n_bytes = struct.unpack_from("<Q", whole)[0]
    header = whole[8 : 8 + n_bytes].rstrip()
    for padding in (0, 1, 2, 0x3C20 - len(header)):
        path.write_bytes(file_of(header, whole[8 + n_bytes :], padding=padding))
        assert logits(tmp_path).equal(expected)


ONE = {"a": tensor(0, 8)}
EIGHT = bytes(8)
TWICE = b'{"a": %s, "a": %s}' % ((json.dumps(tensor(0, 8)).encode(),) * 2)

BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "it is empty"),
    "7 bytes": (b"\x08" + bytes(6), "header is longer than the file"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid x", "git lfs pull"),
    "web page": (b"<!DOCTYPE html><html>404</html>", "a web page"),
    "header of 2^63": (struct.pack("<Q", 2**63) + b"{}", "its header is longer than the file"),
    "header of 2^64 - 1": (struct.pack("<Q", 2**64 - 1) + b"{}", "its header is longer than"),
    "header past the end": (struct.pack("<Q", 3) + b"{}", "its header is longer than the file"),
    "no header": (struct.pack("<Q", 0), "invalid JSON in header"),
    "not JSON": (file_of(b"{a: 1}"), "invalid JSON in header"),
    "not UTF-8": (file_of(b'{"\xff": 1}'), "invalid UTF-8 in header"),
    "UTF-16": (file_of("{}".encode("utf-16")), "invalid UTF-8 in header"),
    "array": (file_of([1]), "invalid type: sequence"),
    "deep": (file_of(b'{"a":' * 100_000), "recursion limit exceeded"),
    "deep list": (file_of(b"[" * 100_000), "invalid type: sequence"),
    "long number": (file_of(b'{"a": ' + b"9" * 5000 + b"}"), "number out of range"),
    "twice": (file_of(TWICE, EIGHT), "'a' occurs twice"),
    "ESC twice": (file_of(TWICE.replace(b'"a"', b'"\\u001b"'), EIGHT), "'\\x1b' occurs twice"),
    "dtype twice": (
        file_of(b'{"a": {"dtype": "F32", "dtype": "F16", "shape": [2]}}', EIGHT),
        "'dtype' occurs twice",
    ),
    "trailing bytes": (file_of(ONE, EIGHT + b"\0"), "file not fully covered"),
    "no tensor but bytes": (file_of({}, EIGHT), "file not fully covered"),
    "cut off": (file_of(ONE, EIGHT[:7]), "file not fully covered"),
    "cut off at the header": (file_of(ONE), "file not fully covered"),
    "overlap": (
        file_of({"a": tensor(0, 8), "b": tensor(4, 12)}, bytes(12)),
        "invalid offset for tensor",
    ),
    "the same bytes": (
        file_of({"a": tensor(0, 8), "b": tensor(0, 8)}, EIGHT),
        "invalid offset for tensor",
    ),
    "one inside another": (
        file_of({"a": tensor(0, 12), "b": tensor(4, 8)}, bytes(12)),
        "invalid offset for tensor",
    ),
    "gap": (
        file_of({"a": tensor(0, 4), "b": tensor(8, 12)}, bytes(12)),
        "invalid offset for tensor",
    ),
    "gap at the beginning": (file_of({"a": tensor(4, 8)}, EIGHT), "invalid offset for tensor"),
    "turned round": (file_of({"a": tensor(8, 0, [2])}, EIGHT), "invalid offset for tensor"),
    "negative offset": (file_of({"a": tensor(-8, 0, [2])}, EIGHT), "invalid value: integer `-8`"),
    "offset a fraction": (
        file_of({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0.0, 8.0]}}, EIGHT),
        "invalid type: floating point",
    ),
    "offset true": (
        file_of({"a": {"dtype": "F32", "shape": [], "data_offsets": [False, 4]}}, bytes(4)),
        "invalid type: boolean",
    ),
    "three offsets": (
        file_of({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8, 8]}}, EIGHT),
        "invalid length 3",
    ),
    "no offsets": (file_of({"a": {"dtype": "F32", "shape": [2]}}, EIGHT), "missing field"),
    "no object": (file_of({"a": 7}, EIGHT), "invalid type: integer `7`"),
    "shape too large": (file_of({"a": tensor(0, 8, [3])}, EIGHT), "invalid shape"),
    "overflow": (file_of({"a": tensor(0, 8, [2**62, 2**62, 2])}, EIGHT), "overflow computing"),
    "overflow to a fit": (
        file_of({"a": tensor(0, 8, [2**63 + 1, 2])}, EIGHT),
        "overflow computing",
    ),
    "negative dimensions": (file_of({"a": tensor(0, 8, [-1, -2])}, EIGHT), "integer `-1`"),
    "dimension 0": (file_of({"a": tensor(0, 0, [0, 2**62])}), "impossible dimensions"),
    "dimension true": (file_of({"a": tensor(0, 8, [True, 2])}, EIGHT), "invalid type: boolean"),
    "dimension a text": (file_of({"a": tensor(0, 8, ["2"])}, EIGHT), "invalid type: string"),
    "many dimensions": (file_of({"a": tensor(0, 8, [2, *[1] * 64])}, EIGHT), "impossible"),
    "F64": (
        file_of({"a": tensor(0, 8, [1], "F64")}, EIGHT),
        "is of type float64: take a file of F32",
    ),
    "integers": (file_of({"a": tensor(0, 8, [1], "I64")}, EIGHT), "is of type int64"),
    "unknown type": (file_of({"a": tensor(0, 8, [1], "X\x1b")}, EIGHT), "unknown variant"),
    "type a number": (file_of({"a": tensor(0, 8, [1], 7)}, EIGHT), "invalid type: integer `7`"),
    "ESC in a name": (file_of({"\x1b[31m": 7}, EIGHT), "invalid type: integer `7`"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused(case: str, tmp_path: Path) -> None:
    data, why = BAD[case]
    path = tmp_path / "m.safetensors"
    path.write_bytes(data)
    with pytest.raises(ModelError) as caught:
        open_safetensors(path, NOTHING)
    assert str(caught.value).isprintable()
    assert why in str(caught.value)


def test_an_oversized_header_costs_little_memory(tmp_path: Path) -> None:
    # The sparse file holds every byte that the header announces, and takes no disk space.
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", 101 * 2**20) + b'{"')
    os.truncate(path, 200 * 2**20)
    tracemalloc.start()
    with pytest.raises(ModelError, match="longer than the file, or than that of any model"):
        open_safetensors(path, NOTHING)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1e6


def test_a_path_that_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, why in [
        (tmp_path / "pipe", "it is not a file"),
        (tmp_path, "it is not a file"),
        (tmp_path / "nowhere", "no such file"),
    ]:
        with pytest.raises(ModelError, match=why):
            open_safetensors(path, NOTHING)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    write_huggingface(folder)
    return folder


@settings(max_examples=60)
@given(data=st.data())
def test_a_header_with_a_flipped_byte_is_read_or_refused(
    data: st.DataObject, whole: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("flip")
    for file in whole.iterdir():
        (folder / file.name).symlink_to(file)
    changed = bytearray((whole / "model.safetensors").read_bytes())
    n_bytes = struct.unpack_from("<Q", changed)[0]
    at = data.draw(st.integers(0, 8 + n_bytes - 1))
    changed[at] ^= data.draw(st.integers(1, 255))
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").write_bytes(changed)
    with contextlib.suppress(ModelError):
        open_checkpoint(folder)


TYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])
SHAPES = st.lists(st.integers(1, 4), max_size=3)


@given(header=st.dictionaries(st.text(max_size=8), st.tuples(TYPES, SHAPES)))
@settings(max_examples=50)
def test_files_of_the_library_are_read_exactly(
    header: dict[str, tuple[torch.dtype, list[int]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    tensors = {
        name: torch.randn(shape).to(kind)
        for name, (kind, shape) in header.items()
        if name != "__metadata__"
    }
    path = tmp_path_factory.mktemp("written") / "m.safetensors"
    safetensors.torch.save_file(tensors, path)
    found = open_safetensors(path, NOTHING)
    assert found.keys() == tensors.keys()
    assert all(found[name].equal(weight) for name, weight in tensors.items())


def test_a_file_may_be_larger_than_the_memory_of_the_machine(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(400 * 10**9)
    data = mapped_bytes(path)
    assert len(data) == 400 * 10**9
    assert data[-1] == 0
