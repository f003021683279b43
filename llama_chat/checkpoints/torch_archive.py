"""Files of ``torch.save`` since 2020: a zip archive of a pickle and plain numbers."""

import pickle
import re
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from llama_chat.checkpoints.small_files import FETCH_AGAIN
from llama_chat.checkpoints.weight_files import check_tensor, read_head
from llama_chat.errors import ModelError


def open_archive(path: Path, skip: re.Pattern[str]) -> dict[str, Tensor]:
    """Map the weights of a file into memory, without running code from its pickle.

    Args:
        path: the file.
        skip: pattern of the names of tensors to leave out, of any type.

    Raises:
        ModelError: if it is damaged, or holds anything but named weights.
    """
    what = repr(str(path))
    _check_archive(path, what)
    try:
        shard = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        raise ModelError(
            what, "it holds more than weights, which may be harmful", "fetch it from its source"
        ) from None
    # Raised by torch for archives whose parts contradict each other.
    except (
        RuntimeError,
        ValueError,
        TypeError,
        KeyError,
        EOFError,
        OSError,
        AttributeError,
        IndexError,
        AssertionError,
        UnicodeDecodeError,
        OverflowError,
        MemoryError,
    ):
        raise ModelError(what, "it is damaged", FETCH_AGAIN) from None
    if not isinstance(shard, dict):
        raise ModelError(what, "it is not a table of weights", FETCH_AGAIN)
    weights = {}
    for name, weight in shard.items():
        if not isinstance(name, str) or not isinstance(weight, Tensor):
            raise ModelError(what, "it holds more than named weights", FETCH_AGAIN)
        if not skip.search(name):
            check_tensor(what, name, weight)
            weights[name] = weight
    return weights


def _check_archive(path: Path, what: str) -> None:
    """Check the entries of the zip archive before torch opens it."""
    head = read_head(path)
    if not head.startswith(b"PK\x03\x04"):
        raise ModelError(what, "not a checkpoint that torch has written since 2020", FETCH_AGAIN)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, EOFError):
        raise ModelError(what, "it is cut off or damaged", FETCH_AGAIN) from None
    size = path.stat().st_size
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if packed or sum(entry.file_size for entry in entries) > size:
        raise ModelError(what, "its parts are packed or overlap", FETCH_AGAIN)
