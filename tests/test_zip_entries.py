"""Archives whose list of entries is wrong are refused before a byte of an entry is used."""

import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llama_chat.checkpoints.torch_archive import open_archive
from tests.test_torch_archive import ROPE, SAME, refusal
from tests.torch_archives import Stored, pickled, write_archive

LOCAL, LISTED = b"PK\3\4", b"PK\1\2"


Damage = Callable[[Path], None]
"""Function that changes a file."""


def patched(signature: bytes, at: int, value: bytes, name: str = "data/0") -> Damage:
    """Overwrite bytes of a header of an entry, ``at`` bytes after it begins.

    The header is the one before the bytes of the entry, or that in the list at the end.
    """

    def patch(file: Path) -> None:
        data = bytearray(file.read_bytes())
        size = 30 if signature == LOCAL else 46
        header = data.index(f"archive/{name}".encode(), data.index(signature)) - size
        while data[header : header + 4] != signature:
            header = data.index(f"archive/{name}".encode(), header + size + 1) - size
        data[header + at : header + at + len(value)] = value
        file.write_bytes(data)

    return patch


def number(value: int, n_bytes: int = 4) -> bytes:
    return value.to_bytes(n_bytes, "little")


def add(name: str, data: bytes, kind: int = zipfile.ZIP_STORED) -> Damage:
    """Append an entry."""

    def append(file: Path) -> None:
        with zipfile.ZipFile(file, "a", kind) as archive:
            archive.writestr(f"archive/{name}", data)

    return append


def move_pickle(file: Path) -> None:
    write_archive(file, b"")
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data.pkl", pickled({"a": Stored()}))


def with_zip64_sizes(size: int) -> Damage:
    """State the size of an entry in the list in 64 bits."""

    def change(file: Path) -> None:
        with zipfile.ZipFile(file, "a") as archive:
            entry = archive.getinfo("archive/data/0")
            entry.extra = struct.pack("<HHQQ", 1, 16, size, size)
            archive.comment = b"written again"
        patched(LISTED, 20, b"\xff" * 8)(file)

    return change


NOT_AS_LISTED = "'archive/data/0' is not as its list"
DAMAGE: dict[str, tuple[Damage, str]] = {
    "name": (patched(LOCAL, 30, b"archive/data/1"), NOT_AS_LISTED),
    "name shorter": (patched(LOCAL, 26, number(13, 2)), NOT_AS_LISTED),
    "name in the list": (patched(LISTED, 46, b"archive/data/1"), "is not as its list"),
    "size": (patched(LOCAL, 22, number(20)), NOT_AS_LISTED),
    "size in the list": (patched(LISTED, 24, number(20)), NOT_AS_LISTED),
    "both sizes in the list": (patched(LISTED, 20, number(20) + number(20)), NOT_AS_LISTED),
    "longer than the file": (patched(LISTED, 20, number(2**31) * 2), NOT_AS_LISTED),
    "extra bytes": (patched(LOCAL, 28, number(4, 2)), NOT_AS_LISTED),
    "offset": (patched(LISTED, 42, number(0)), "is not as its list"),
    "offset past the end": (patched(LISTED, 42, number(2**31)), "damaged"),
    "offset plus 1": (patched(LISTED, 42, number(2**32 - 2)), "damaged"),
    "signature": (patched(LOCAL, 0, b"PK\3\5"), NOT_AS_LISTED),
    "flags": (patched(LOCAL, 6, number(8, 2)), NOT_AS_LISTED),
    "encrypted": (patched(LISTED, 8, number(1, 2)), "its parts are compressed or encrypted"),
    "method": (patched(LOCAL, 8, number(8, 2)), NOT_AS_LISTED),
    "method in the list": (
        patched(LISTED, 10, number(8, 2)),
        "its parts are compressed or encrypted",
    ),
    "of zip version 9.9": (patched(LISTED, 6, number(99, 2)), "damaged"),
    "zip64 sizes": (with_zip64_sizes(20), NOT_AS_LISTED),
    "zip64 sizes of 2^64 - 1": (with_zip64_sizes(2**64 - 1), NOT_AS_LISTED),
    "zip64 without sizes": (patched(LISTED, 20, b"\xff" * 8), NOT_AS_LISTED),
    "one name twice": (lambda file: add_twice(file), "two parts of it have the same name"),
    "one in the other": (lambda file: add_overlapping(file), "its parts overlap"),
    "packed": (
        add("data/1", bytes(24), zipfile.ZIP_DEFLATED),
        "its parts are compressed or encrypted",
    ),
    "two pickles": (lambda file: add_folder(file), "damaged"),
    "pickle in no folder": (move_pickle, "damaged"),
    "pickle changed": (patched(LISTED, 16, number(1), "data.pkl"), "'data.pkl' is damaged"),
    "many parts": (lambda file: add_many(file), "damaged"),
    "list of 4 GB": (lambda file: state_long_list(file), "damaged"),
}


def add_twice(file: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        add("data/0", bytes(24))(file)


def add_overlapping(file: Path) -> None:
    """Append an entry, and another one whose bytes hold a copy of the first, listed there."""
    add("inner", b"12345678")(file)
    data = file.read_bytes()
    begin = data.index(b"archive/inner") - 30
    add("outer", data[begin : begin + 51] + b"PK")(file)
    copy = file.read_bytes().index(b"archive/outer") + 13
    patched(LISTED, 42, number(copy), "inner")(file)


def add_folder(file: Path) -> None:
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("other/data.pkl", pickled({"a": Stored()}))


def add_many(file: Path) -> None:
    with zipfile.ZipFile(file, "a") as archive:
        for i in range(400):
            archive.writestr(f"archive/{i:03}" + "x" * 3000, b"")


def state_long_list(file: Path) -> None:
    data = bytearray(file.read_bytes())
    struct.pack_into("<I", data, len(data) - 10, 2**32 - 2)
    file.write_bytes(data)


@pytest.mark.parametrize("case", DAMAGE)
def test_a_list_that_is_wrong_is_refused(case: str, tmp_path: Path) -> None:
    damage, why = DAMAGE[case]
    file = tmp_path / "a.pth"
    write_archive(file, {"a": Stored()}, {"version": b"3\n"})
    assert open_archive(file, ROPE)["a"].equal(SAME)
    damage(file)
    assert why in refusal(file)


@pytest.mark.parametrize("cut", ["anywhere", "bytes of the list"])
def test_an_archive_that_ends_anywhere_is_refused(cut: str, tmp_path: Path) -> None:
    file, part = tmp_path / "a.pth", tmp_path / "part.pth"
    torch.save({"a": SAME.clone()}, file)
    data = file.read_bytes()
    ends = range(4, len(data), 7) if cut == "anywhere" else range(len(data) - 60, len(data))
    for end in ends:
        part.write_bytes(data[:end])
        refusal(part)


def test_an_archive_with_headers_of_64_bits_is_read(tmp_path: Path) -> None:
    file = tmp_path / "a.pth"
    numbers = SAME.numpy().tobytes()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in (("data.pkl", pickled({"a": Stored()})), ("data/0", numbers)):
            with archive.open(f"archive/{name}", "w", force_zip64=True) as entry:
                entry.write(data)
    assert open_archive(file, ROPE)["a"].equal(SAME)
    with_zip64_sizes(24)(file)
    assert open_archive(file, ROPE)["a"].equal(SAME)
