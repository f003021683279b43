"""Limits of the readers of binary files: the largest that passes, and one more."""

import re
import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from llama_chat.checkpoints import gguf_files
from llama_chat.checkpoints.gguf_header import MAX_ENTRIES, read_header
from llama_chat.checkpoints.gguf_metadata import Metadata
from llama_chat.checkpoints.safetensors import open_safetensors
from llama_chat.checkpoints.weight_files import map_file, release_pages
from llama_chat.errors import ModelError
from tests.model_files import SMALL, assert_refused, write_gguf

UINT8, STRING, ARRAY = 0, 8, 9


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def header(
    values: bytes = b"", n_values: int = 0, tensors: bytes = b"", n_tensors: int = 0
) -> bytes:
    """Make a header of GGUF."""
    return b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_values) + values + tensors


def array(n_items: int, kind: int = UINT8, items: bytes | None = None) -> bytes:
    """Make a metadata value that is a list."""
    found = bytes(n_items) if items is None else items
    return text("a") + struct.pack("<IIQ", ARRAY, kind, n_items) + found


def tensor(name: str, *dims: int, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, 0, offset)


def read(data: bytes, what: str = "x.gguf") -> str:
    """Read a header; returns why it is refused, empty if it is not."""
    try:
        read_header(memoryview(data), Path(what))
    except ModelError as error:
        return error.why if str(error).startswith(f"model '{what}': ") else str(error)
    return ""


@pytest.mark.parametrize(("n", "why"), [(2**22, ""), (2**22 + 1, "its lists are longer")])
def test_lists_have_a_limit(n: int, why: str) -> None:
    assert read(header(array(n), 1)).startswith(why or "its lists") is bool(why)
    texts = bytes(8) * 3
    both = array(n - 3) + text("b") + struct.pack("<IIQ", ARRAY, STRING, 3) + texts
    assert bool(read(header(both, 2))) is bool(why)


@pytest.mark.parametrize("more", [0, 1])
def test_metadata_and_tensors_have_a_limit(more: int) -> None:
    values = b"".join(
        text(f"{i}") + struct.pack("<IB", UINT8, 7) for i in range(MAX_ENTRIES + more)
    )
    why = read(header(values, MAX_ENTRIES + more))
    assert why == (f"it has more than {MAX_ENTRIES} metadata values" if more else "")
    tensors = b"".join(tensor(f"{i}", 32) for i in range(MAX_ENTRIES + more))
    why = read(header(b"", 0, tensors, MAX_ENTRIES + more))
    assert why == (f"it has more than {MAX_ENTRIES} tensors" if more else "")


def test_a_header_longer_than_that_of_any_model_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    start = header(text("a") + struct.pack("<IQ", STRING, 33 * 2**20), 1)
    with file.open("wb") as output:
        output.write(start)
        output.truncate(2**32)
    with pytest.raises(ModelError, match="its header is longer than that of any model"):
        gguf_files.open_files(file)
    with file.open("r+b") as output:
        output.truncate(2**20)
    with pytest.raises(
        ModelError, match=f"it ends in the middle of something, at byte {len(start)}"
    ):
        gguf_files.open_files(file)


@pytest.mark.parametrize(
    ("count", "kind", "items", "why"),
    [
        (3, STRING, text("a") * 2 + b"\1", "it ends in the middle|does not fit in it"),
        (2, STRING, text("a") + struct.pack("<Q", 5) + b"b", "it ends in the middle"),
        (2**60, STRING, b"", "a list of 1152921504606846976 texts does not fit in it"),
        (2**60, UINT8, b"", "it ends in the middle of something, at byte 49"),
        (2, STRING, text("a") + struct.pack("<Q", 1) + b"\xff", "text 1 of a list is not UTF-8"),
        (1, ARRAY, b"", "nested lists"),
        (1, 13, b"", "unknown type of value 13"),
    ],
)
def test_lists_that_do_not_fit_are_refused(count: int, kind: int, items: bytes, why: str) -> None:
    assert re.search(why, read(header(array(count, kind, items), 1)))


def test_the_last_byte_of_a_list_may_be_that_of_the_file() -> None:
    assert read(header(array(2, STRING, text("a") + text("bc")), 1)) == ""
    assert read(header(array(3), 1)) == ""
    assert read(header(array(3)[:-1], 1)).startswith("it ends in the middle")


@pytest.mark.parametrize(
    ("dims", "why"),
    [
        ((), "has 0 dimensions"),
        ((1,) * 5, "has 5 dimensions"),
        ((1,) * 4, ""),
        ((0,), "impossible dimensions"),
        ((2**40,), "impossible dimensions"),
        ((2**40 - 1,), ""),
        ((2**63, 2), "impossible dimensions"),
    ],
)
def test_dimensions_have_a_limit(dims: tuple[int, ...], why: str) -> None:
    found = read(header(b"", 0, tensor("t", *dims), 1))
    assert found.endswith(why)
    assert bool(found) is bool(why)


@pytest.mark.parametrize(
    ("alignment", "is_right"),
    [(8, True), (32, True), (2**20, True), (4, False), (0, False), (13, False), (24, False)],
)
def test_the_alignment_is_a_power_of_two_from_8(alignment: int, is_right: bool) -> None:
    value = text("general.alignment") + struct.pack("<II", 4, alignment)
    assert ("alignment is" in read(header(value, 1))) is not is_right


def test_tensors_begin_where_the_alignment_says() -> None:
    assert read(header(b"", 0, tensor("t", 8, offset=16), 1)) == "tensor 't' is not aligned"
    data = header(b"", 0, tensor("t", 8, offset=32), 1)
    found = read_header(memoryview(data), Path("x.gguf"))
    assert found.alignment == 32
    assert found.tensors["t"].offset == -(-len(data) // 32) * 32 + 32
    assert found.tensors["t"].shape == (8,)


@pytest.mark.parametrize("version", [0, 1, 4])
def test_other_versions_are_named(version: int) -> None:
    data = header().replace(struct.pack("<I", 3), struct.pack("<I", version), 1)
    assert read(data) == f"GGUF version {version} is not known"
    assert read(header().replace(struct.pack("<I", 3), struct.pack(">I", 3))).startswith(
        "it is a big"
    )


def test_metadata_of_another_type_is_named() -> None:
    metadata = Metadata("it", {"a": 1, "b": "x", "c": [1, 2], "d": True, "e": [3, 3], "f": -1})
    for read_it, why in (
        (lambda: metadata.text("a"), "a is 1, not a text"),
        (lambda: metadata.number("b", 1.0), "b is 'x', not a number"),
        (lambda: metadata.number("d", 1.0), "d is True, not a number"),
        (lambda: metadata.integer("b"), "b is 'x', not a whole number"),
        (lambda: metadata.integer("d"), "d is True, not a whole number"),
        (lambda: metadata.integer("c"), "c differs between layers"),
        (lambda: metadata.integer("z"), "z is missing"),
        (lambda: metadata.flag("a", True), "a is 1, neither true nor false"),
        (lambda: metadata.array("c", str), "c is missing or of another type"),
        (lambda: metadata.array("z", str), "z is missing or of another type"),
        (lambda: metadata.token_id("a", 1), "a is 1, past the vocabulary of 1 token"),
        (lambda: metadata.token_id("f", 1), "f is -1, past the vocabulary of 1 token"),
    ):
        with pytest.raises(ModelError) as caught:
            read_it()
        assert caught.value.why == why
    assert metadata.integer("e") == 3
    assert metadata.integer("z", 5) == 5
    assert metadata.token_id("z", 1) is None
    assert metadata.token_id("a", 2) == 1
    assert metadata.number("a", 2.0) == 1.0
    assert metadata.flag("d", False) is metadata.flag("z", True) is True
    assert metadata.array("c", int) == [1, 2]


def test_all_parts_together_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(tmp_path / "m.gguf", SMALL, tensors_a_file=12)
    first = sorted(tmp_path.glob("m-*.gguf"))[0]
    monkeypatch.setattr(gguf_files, "MAX_ENTRIES", 20)
    assert_refused(first, "the parts have more than 20 tensors")
    monkeypatch.setattr(gguf_files, "MAX_ENTRIES", 21)
    assert gguf_files.open_files(first).surplus == 0


def test_skipped_tensors_of_safetensors_may_have_any_type(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    safetensors.torch.save_file({"a": torch.ones(2), "skip": torch.ones(1, dtype=torch.int8)}, file)
    assert open_safetensors(file, re.compile("^skip$")).keys() == {"a"}
    with pytest.raises(ModelError, match="tensor 'skip' is of type int8"):
        open_safetensors(file, re.compile("^$"))


def test_memory_of_a_mapped_tensor_is_released_and_read_again(tmp_path: Path) -> None:
    file = tmp_path / "a"
    np.arange(2**16, dtype=np.float32).tofile(file)
    numbers = torch.from_numpy(np.frombuffer(map_file(file), np.float32))
    assert numbers.sum() == sum(range(2**16))
    release_pages(numbers[5:7000])
    assert numbers.sum() == sum(range(2**16))
