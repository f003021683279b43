"""Files as ``torch.save`` writes them, with anything wrong about them."""

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch._utils import _rebuild_tensor_v2


@dataclass(frozen=True)
class Storage:
    """Storage of a pickle, as its persistent id describes it."""

    key: object = "0"
    n_numbers: object = 6
    kind: object = torch.FloatStorage
    tag: object = "storage"


@dataclass(frozen=True)
class Stored:
    """Tensor of a pickle: two rows of three numbers, unless it says otherwise."""

    storage: Storage = Storage()
    offset: object = 0
    shape: object = (2, 3)
    strides: object = (3, 1)
    more: tuple[object, ...] = (False, OrderedDict())

    def __reduce__(self) -> tuple[Any, ...]:
        arguments = (self.storage, self.offset, self.shape, self.strides)
        return _rebuild_tensor_v2, (*arguments, *self.more)


class _Pickler(pickle._Pickler):
    def persistent_id(self, value: object) -> object:
        if isinstance(value, Storage):
            return (value.tag, value.kind, value.key, "cpu", value.n_numbers)
        return None


def pickled(value: object) -> bytes:
    """Pickle a value as ``torch.save`` does."""
    data = io.BytesIO()
    _Pickler(data, protocol=2).dump(value)
    return data.getvalue()


def write_archive(path: Path, table: object, parts: Mapping[str, bytes] | None = None) -> None:
    """Write an archive with a pickle of ``table``, or that pickle, and storage 0 of six numbers."""
    numbers = torch.arange(6, dtype=torch.float32).numpy().tobytes()
    data = table if isinstance(table, bytes) else pickled(table)
    whole = {"data.pkl": data, "version": b"3\n", "byteorder": b"little", "data/0": numbers}
    with zipfile.ZipFile(path, "w") as archive:
        for name, part in (whole | dict(parts or {})).items():
            archive.writestr(f"archive/{name}", part)


def change_parts(path: Path, change: Callable[[dict[str, bytes]], object]) -> None:
    """Change the parts of an archive, by their names without the folder."""
    with zipfile.ZipFile(path) as archive:
        parts = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    change(parts)
    with zipfile.ZipFile(path, "w") as archive:
        for name, part in parts.items():
            archive.writestr(f"archive/{name}", part)
