"""Files of ``torch.save`` since 2020: a zip archive of a pickle and plain numbers.

They are mapped here and not by torch, which trusts the pickle: it would fill a storage that is
shorter in the archive from the bytes that follow it.
"""

import re
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from llama_chat.checkpoints.torch_pickle import (
    ForeignNameError,
    PickledStorage,
    PickledTensor,
    read_pickle,
)
from llama_chat.checkpoints.weight_files import check_tensor, map_file, mapped_tensor, read_head
from llama_chat.checkpoints.zip_entries import locate_entries
from llama_chat.errors import ModelError
from llama_chat.gates import FETCH_AGAIN, gate

_PICKLE = "data.pkl"
_MAX_PICKLE = 2**19
"""Limit on the bytes of the pickle; that of the largest model takes 0.2 MB."""


TORCH_FLOOR = (2, 10)
"""Oldest release of torch that these files are read with, that of ``pyproject.toml``."""

_OLDER = (
    "it is a pickle or tar as torch wrote them before 2020, which may run programs",
    "take safetensors, or load it in torch, if you trust it, and save it again",
)
_NO_CHECKPOINT = ("not a checkpoint that torch has written since 2020", FETCH_AGAIN)


def open_archive(path: Path, skip: re.Pattern[str]) -> dict[str, Tensor]:
    """Map the weights of a file into memory, without running code from its pickle.

    Args:
        path: the file.
        skip: pattern of the names of tensors to leave out, of any type.

    Raises:
        ModelError: if it is damaged, or holds anything but named weights.
    """
    what = repr(str(path))
    _check_torch(what)
    head = read_head(path)
    if not head.startswith(b"PK\x03\x04"):
        raise ModelError(what, *(_OLDER if _is_older(head) else _NO_CHECKPOINT))
    weights = {}
    with gate(what):
        archive = _Archive(path, what)
        table = archive.table()
        if not isinstance(table, dict):
            raise ModelError(what, "it is not a table of weights", FETCH_AGAIN)
        for name, described in table.items():
            if not isinstance(described, PickledTensor):
                raise ModelError(what, "it holds more than named weights", FETCH_AGAIN)
            if not skip.search(name):
                weights[name] = archive.tensor(name, described)
                check_tensor(what, name, weights[name])
    return weights


def _check_torch(what: str) -> None:
    """Refuse torch files if the installed torch has known vulnerabilities.

    Raises:
        ModelError: if the installed torch is below its floor.
    """
    major, minor = re.findall(r"\d+", torch.__version__)[:2]
    if (int(major), int(minor)) < TORCH_FLOOR:
        floor = ".".join(map(str, TORCH_FLOOR))
        why = f"torch {torch.__version__} is installed, older than {floor}"
        raise ModelError(what, why, f"install torch {floor} or later, or take safetensors")


def _is_older(head: bytes) -> bool:
    """True for the first bytes of a tar archive, or of a pickle that names its protocol."""
    return head[257:262] == b"ustar" or (head[:1] == b"\x80" and head[1:2] in b"\2\3\4\5")


class _Archive:
    """Mapped archive: a pickle that describes tensors, and an entry for each of their storages.

    Methods raise ``ModelError``, or for some damage exceptions of any other type.
    """

    def __init__(self, path: Path, what: str) -> None:
        mapped = map_file(path, what)
        self._what = what
        self._bytes = np.frombuffer(mapped, np.uint8)
        self._entries = locate_entries(mapped, what)
        (pickle,) = (name for name in self._entries if re.fullmatch(f"[^/]+/{_PICKLE}", name))
        self._folder = pickle.removesuffix(_PICKLE)
        self._storages: dict[PickledStorage, Tensor] = {}

    def _error(self, why: str, advice: str = FETCH_AGAIN) -> ModelError:
        return ModelError(self._what, why, advice)

    def table(self) -> object:
        """Read the pickle."""
        if self._folder + "byteorder" in self._entries and self._read("byteorder") != b"little":
            raise self._error("its numbers are big-endian", "take a little-endian one")
        try:
            return read_pickle(self._read(_PICKLE))
        except ForeignNameError:
            why = "it holds more than weights, which may be harmful"
            raise self._error(why, "download it from its source") from None

    def tensor(self, name: str, described: PickledTensor) -> Tensor:
        """View a tensor, without a copy."""
        numbers = self._numbers(described.storage)
        steps = zip(described.shape, described.strides, strict=True)
        last = described.offset + sum((size - 1) * stride for size, stride in steps)
        if last >= len(numbers):
            raise self._error(f"tensor {name[:60]!r} extends past its storage")
        return numbers.as_strided(described.shape, described.strides, described.offset)

    def _numbers(self, storage: PickledStorage) -> Tensor:
        """View all numbers of a storage; the same tensor each time."""
        if storage not in self._storages:
            entry = self._entries[f"{self._folder}data/{storage.key}"]
            if entry.n_bytes != storage.n_bytes:
                shown = f"storage {storage.key[:40]!r} has {entry.n_bytes:,} bytes"
                raise self._error(f"{shown}, but should have {storage.n_bytes:,}")
            data = self._bytes[entry.begin : entry.end]
            self._storages[storage] = mapped_tensor(data, storage.dtype, (storage.n_numbers,))
        return self._storages[storage]

    def _read(self, name: str) -> bytes:
        """Read an entry, comparing its checksum."""
        entry = self._entries[self._folder + name]
        if entry.n_bytes > _MAX_PICKLE:
            raise self._error(f"its part {name!r} is longer than that of any model")
        data = self._bytes[entry.begin : entry.end].tobytes()
        if zlib.crc32(data) != entry.checksum:
            raise self._error(f"its part {name!r} is damaged")
        return data
