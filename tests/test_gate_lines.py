"""Whole lines with which the readers of binary files refuse, and what is behind those of a gate."""

import os
import struct
from pathlib import Path

import pytest
import torch

from llama_chat.checkpoints.gguf_header import read_header
from llama_chat.checkpoints.torch_archive import open_archive
from llama_chat.checkpoints.torch_pickle import ForeignNameError
from llama_chat.errors import ModelError
from llama_chat.gates import FETCH_AGAIN
from tests.test_gate_limits import ARRAY, STRING, UINT8, array, header, tensor, text
from tests.test_torch_archive import ROPE
from tests.test_zip_entries import DAMAGE
from tests.torch_archives import Storage, Stored, write_archive

DAMAGED = f"it is cut off or damaged: {FETCH_AGAIN}"
LONG = "n" * 100


def line_of(file: Path) -> str:
    """Return the line with which an archive is refused, without its path."""
    with pytest.raises(ModelError) as caught:
        open_archive(file, ROPE)
    return str(caught.value).removeprefix(f"{str(file)!r}: ")


def cause_of(file: Path) -> str:
    """Return the exception that a gate has converted."""
    with pytest.raises(ModelError, match="it is cut off or damaged") as caught:
        open_archive(file, ROPE)
    cause = caught.value.__cause__
    return f"{type(cause).__name__}: {cause}"


LINES: dict[str, tuple[object, dict[str, bytes], str]] = {
    "no table": ([Stored()], {}, f"it is not a table of weights: {FETCH_AGAIN}"),
    "no tensors": ({"a": "b"}, {}, f"it holds more than named weights: {FETCH_AGAIN}"),
    "a call": (
        {"a": os.system},
        {},
        "it holds more than weights, which may be harmful: download it from its source",
    ),
    "big-endian": (
        {"a": Stored()},
        {"byteorder": b"big"},
        "its numbers are big-endian: take a little-endian one",
    ),
    "past its storage": (
        {LONG: Stored(offset=1)},
        {},
        f"tensor '{LONG[:60]}' extends past its storage: {FETCH_AGAIN}",
    ),
    "size": (
        {"a": Stored(Storage(LONG))},
        {f"data/{LONG}": bytes(1025)},
        f"storage '{LONG[:40]}' has 1,025 bytes, but should have 24: {FETCH_AGAIN}",
    ),
    "long pickle": (
        {"a": Stored()},
        {"data.pkl": bytes(2**19 + 1)},
        f"its part 'data.pkl' is longer than that of any model: {FETCH_AGAIN}",
    ),
    "integers": (
        {LONG: Stored(Storage(kind=torch.IntStorage))},
        {},
        f"tensor '{LONG[:60]}' is of type int32: take a file of F32, F16, BF16",
    ),
    "four dimensions and one": (
        {LONG: Stored(shape=(1, 1, 1, 2, 3), strides=(6, 6, 6, 3, 1))},
        {},
        f"tensor '{LONG[:60]}' has impossible dimensions: {FETCH_AGAIN}",
    ),
    "columns": (
        {LONG: Stored(strides=(1, 2))},
        {},
        f"tensor '{LONG[:60]}' is not stored row by row: {FETCH_AGAIN}",
    ),
}


@pytest.mark.parametrize("case", LINES)
def test_archives_are_refused_in_these_lines(case: str, tmp_path: Path) -> None:
    table, parts, line = LINES[case]
    write_archive(tmp_path / "a.pth", table, parts)
    assert line_of(tmp_path / "a.pth") == line


def test_a_tensor_may_have_four_dimensions_and_its_own_end(tmp_path: Path) -> None:
    file = tmp_path / "a.pth"
    table = {
        "a": Stored(shape=(1, 1, 2, 3), strides=(6, 6, 3, 1)),
        "b": Stored(offset=3, shape=(1, 3)),
    }
    write_archive(file, table)
    found = open_archive(file, ROPE)
    assert found["a"].shape == (1, 1, 2, 3)
    assert found["b"].tolist() == [[3, 4, 5]]


OLDER = (
    "it is a pickle or tar as torch wrote them before 2020, which may run programs: "
    "take safetensors, or load it in torch, if you trust it, and save it again"
)
NOT_TORCH = f"not a checkpoint that torch has written since 2020: {FETCH_AGAIN}"


@pytest.mark.parametrize(
    ("data", "line"),
    [
        *((b"\x80" + bytes([protocol]) + b"}.", OLDER) for protocol in (2, 3, 4, 5)),
        *((b"\x80" + bytes([protocol]) + b"}.", NOT_TORCH) for protocol in (0, 1, 6)),
        (b"\x81\2}.", NOT_TORCH),
        (bytes(257) + b"ustar" + bytes(250), OLDER),
        (bytes(256) + b"ustar" + bytes(251), NOT_TORCH),
        (bytes(258) + b"ustar" + bytes(249), NOT_TORCH),
        (b"\x80", OLDER),
        (b"PK\3\5" + bytes(100), NOT_TORCH),
        (b"", f"it is empty: {FETCH_AGAIN}"),
        (b"version https://git-lfs", "it is a git-lfs pointer, not the weights: run git lfs pull"),
        (b" \n<html>", f"it is a web page, not the weights: {FETCH_AGAIN}"),
    ],
)
def test_other_files_are_told_by_their_first_bytes(data: bytes, line: str, tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(data)
    assert line_of(tmp_path / "a.pth") == line


CAUSES: dict[str, tuple[object, str]] = {
    "shape": (Stored(shape=(-1, 3)), "ValueError: the tensor is not described as torch does it"),
    "offset": (Stored(offset=True), "ValueError: the tensor is not described as torch does it"),
    "stride": (Stored(strides=(3, -1)), "ValueError: the tensor is not described as torch does it"),
    "storage": (
        Stored("storage"),  # type: ignore[arg-type]
        "ValueError: the tensor is not described as torch does it",
    ),
    "negated": (
        Stored(more=(False, {}, {"neg": True})),
        "ValueError: the tensor is a transformed one",
    ),
    "tag": (
        Stored(Storage(tag="module")),
        "ValueError: a storage is not described as torch does it",
    ),
    "numbers": (
        Stored(Storage(n_numbers=-1)),
        "ValueError: a storage is not described as torch does it",
    ),
    "key": (Stored(Storage(key=0)), "ValueError: a storage is not described as torch does it"),
    "kind": (Stored(Storage(kind="x")), "ValueError: a storage is not described as torch does it"),
    "strides": (
        Stored(strides=(3, 1, 1)),
        "ValueError: zip() argument 2 is longer than argument 1",
    ),
    "stride missing": (
        Stored(strides=(1,)),
        "ValueError: zip() argument 2 is shorter than argument 1",
    ),
    "missing storage": (Stored(Storage("7")), "KeyError: 'archive/data/7'"),
}


@pytest.mark.parametrize("case", CAUSES)
def test_behind_a_damaged_archive_is_what_contradicts(case: str, tmp_path: Path) -> None:
    stored, cause = CAUSES[case]
    write_archive(tmp_path / "a.pth", {"a": stored})
    assert cause_of(tmp_path / "a.pth") == cause


def test_a_key_that_is_no_text_is_behind(tmp_path: Path) -> None:
    write_archive(tmp_path / "a.pth", {1: Stored()})
    assert cause_of(tmp_path / "a.pth") == "TypeError: a key is no text"


def test_a_foreign_name_is_told_to_who_asks(tmp_path: Path) -> None:
    write_archive(tmp_path / "a.pth", {"a": os.system})
    with pytest.raises(ModelError) as caught:
        open_archive(tmp_path / "a.pth", ROPE)
    assert isinstance(caught.value.__context__, ForeignNameError)
    assert str(caught.value.__context__) == "posix.system"


NOT_AS_LISTED = f"its part 'archive/data/0' is not as its list of parts says: {FETCH_AGAIN}"
ZIP_LINES = {
    "size": NOT_AS_LISTED,
    "extra bytes": NOT_AS_LISTED,
    "encrypted": f"its parts are compressed or encrypted: {FETCH_AGAIN}",
    "packed": f"its parts are compressed or encrypted: {FETCH_AGAIN}",
    "one in the other": f"its parts overlap: {FETCH_AGAIN}",
    "one name twice": f"two parts of it have the same name: {FETCH_AGAIN}",
    "pickle changed": f"its part 'data.pkl' is damaged: {FETCH_AGAIN}",
    "two pickles": DAMAGED,
}


@pytest.mark.parametrize("case", ZIP_LINES)
def test_lists_of_parts_are_refused_in_these_lines(case: str, tmp_path: Path) -> None:
    write_archive(tmp_path / "a.pth", {"a": Stored()}, {"version": b"3\n"})
    DAMAGE[case][0](tmp_path / "a.pth")
    assert line_of(tmp_path / "a.pth") == ZIP_LINES[case]


def test_a_long_list_of_parts_is_behind(tmp_path: Path) -> None:
    write_archive(tmp_path / "a.pth", {"a": Stored()}, {"version": b"3\n"})
    DAMAGE["many parts"][0](tmp_path / "a.pth")
    assert cause_of(tmp_path / "a.pth") == "ValueError: longer than the list of any model"


# ---- GGUF

CUT = "the file is cut off or damaged: download it again"


def value(kind: int, data: bytes = b"", name: str = "a") -> bytes:
    return header(text(name) + struct.pack("<I", kind) + data, 1)


GGUF: dict[str, tuple[bytes, str]] = {
    "magic": (b"GGUX" + bytes(60), "not a GGUF file: download it again"),
    "version": (
        header().replace(b"\3", b"\4", 1),
        "GGUF version 4 is not known: take version 2 or 3",
    ),
    "big-endian": (
        b"GGUF" + struct.pack(">I", 2) + bytes(60),
        "it is a big-endian GGUF file: take a little-endian one",
    ),
    "cut": (header()[:-1], f"it ends in the middle of something, at byte 16: {CUT}"),
    "key": (
        header(text(""), 1),
        f"a name of its metadata is duplicate or empty: '': {CUT}",
    ),
    "long key twice": (
        header((text(LONG) + struct.pack("<IB", UINT8, 1)) * 2, 2),
        f"a name of its metadata is duplicate or empty: '{LONG[:60]}': {CUT}",
    ),
    "tensor twice": (
        header(b"", 0, tensor(LONG, 1) * 2, 2),
        f"a tensor's name is duplicate or empty: '{LONG[:60]}': {CUT}",
    ),
    "tensor without a name": (
        header(b"", 0, tensor("", 1), 1),
        f"a tensor's name is duplicate or empty: '': {CUT}",
    ),
    "value": (value(13), f"unknown type of value 13: {CUT}"),
    "list": (value(ARRAY, struct.pack("<IQ", 13, 1)), f"unknown type of value 13: {CUT}"),
    "nested": (value(ARRAY, struct.pack("<IQ", ARRAY, 1)), f"nested lists: {CUT}"),
    "texts": (
        header(array(1, STRING, b""), 1),
        f"a list of 1 text does not fit in it: {CUT}",
    ),
    "text": (
        header(array(1, STRING, struct.pack("<Q", 9) + b"abc"), 1),
        f"it ends in the middle of something, at byte 60: {CUT}",
    ),
    "last text": (
        header(array(2, STRING, struct.pack("<Q", 5) + b"abcde" + bytes(7)), 1),
        f"it ends in the middle of something, at byte 62: {CUT}",
    ),
    "bytes": (
        header(array(2, STRING, text("a") + struct.pack("<Q", 1) + b"\xff"), 1),
        f"text 1 of a list is not UTF-8: {CUT}",
    ),
    "dimensions": (
        header(b"", 0, tensor(LONG, *[1] * 5), 1),
        f"tensor '{LONG[:60]}' has 5 dimensions: {CUT}",
    ),
    "dimension": (
        header(b"", 0, tensor(LONG, 0), 1),
        f"tensor '{LONG[:60]}' has impossible dimensions: {CUT}",
    ),
    "alignment": (
        value(4, struct.pack("<I", 12), "general.alignment"),
        f"alignment is 12, not a power of 2 from 8: {CUT}",
    ),
    "alignment of text": (
        value(STRING, text(LONG), "general.alignment"),
        f"alignment is {LONG[:40]}, not a power of 2 from 8: {CUT}",
    ),
    "aligned": (
        header(b"", 0, tensor(LONG, 1, offset=8), 1),
        f"tensor '{LONG[:60]}' is not aligned: {CUT}",
    ),
}


@pytest.mark.parametrize("case", GGUF)
def test_headers_are_refused_in_these_lines(case: str) -> None:
    data, line = GGUF[case]
    with pytest.raises(ModelError) as caught:
        read_header(memoryview(data), Path("x.gguf"))
    assert str(caught.value) == f"model 'x.gguf': {line}"


def test_every_kind_of_value_is_read() -> None:
    kinds = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 10: "Q", 11: "q", 12: "d"}
    values = b""
    expected: dict[str, object] = {}
    for kind, layout in kinds.items():
        number = 1 if layout in "BHIQ" else -2
        values += text(f"v{kind}") + struct.pack(f"<I{layout}", kind, number)
        values += text(f"l{kind}") + struct.pack(f"<IIQ2{layout}", ARRAY, kind, 2, 3, number)
        expected |= {f"v{kind}": number, f"l{kind}": [3, number]}
    values += text("flag") + struct.pack("<I?", 7, True) + text("s") + struct.pack("<I", STRING)
    values += text("é\xff".encode().decode()) + array(1, STRING, text("🦙"))
    found = read_header(memoryview(header(values, 23)), Path("x.gguf"))
    assert found.metadata == expected | {"flag": True, "s": "é\xff", "a": ["🦙"]}
    assert found.alignment == 32
    broken = header(text("a") + struct.pack("<IQ", STRING, 2) + b"\xffb", 1)
    assert read_header(memoryview(broken), Path("x")).metadata == {"a": "\ufffdb"}
