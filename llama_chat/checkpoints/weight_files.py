"""Common code of all weight files: types, memory mapping, and failed downloads."""

import ctypes
import mmap
import sys
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llama_chat.checkpoints.base import FLOAT_NAMES, FLOAT_TYPES, TensorInfo
from llama_chat.checkpoints.foreign import foreign_tensors
from llama_chat.errors import ModelError, reason
from llama_chat.files import open_regular
from llama_chat.gates import FETCH_AGAIN
from llama_chat.kernels import mapped_files
from llama_chat.parallel.slices import Slice

_NO_RESERVE = {"linux": 0x4000, "darwin": 0x40}.get(sys.platform, 0)
"""``MAP_NORESERVE``, which Python defines only since 3.13."""

_MAX_DIMS = 4


def describe(weight: Tensor) -> TensorInfo:
    """Describe a mapped weight."""
    return TensorInfo(tuple(weight.shape), FLOAT_NAMES[weight.dtype], weight.nbytes)


def check_tensor(what: str, name: str, weight: Tensor) -> None:
    """Check that a mapped tensor of the file ``what`` can be a weight.

    Raises:
        ModelError: if it is of another type, order or number of dimensions.
    """
    shown = f"tensor {name[:60]!r}"
    if weight.dtype not in FLOAT_NAMES:
        kind, known = str(weight.dtype).removeprefix("torch."), ", ".join(FLOAT_TYPES)
        raise foreign_tensors(what, [name]) or ModelError(
            what, f"{shown} is of type {kind}", f"take a file of {known}"
        )
    if weight.dim() > _MAX_DIMS or 0 in weight.shape:
        raise ModelError(what, f"{shown} has impossible dimensions", FETCH_AGAIN)
    if not weight.is_contiguous():
        raise ModelError(what, f"{shown} is not stored row by row", FETCH_AGAIN)


def read_head(path: Path) -> bytes:
    """Read the first 512 bytes, checked for errors more specific than "damaged".

    Raises:
        ModelError: if the file is unreadable, empty, a git-lfs pointer or a web page.
    """
    what = repr(str(path))
    try:
        with open_regular(path) as file:
            head = file.read(512)
    except (OSError, ValueError) as error:
        raise ModelError(what, reason(error), "check it") from None
    if not head:
        raise ModelError(what, "it is empty", FETCH_AGAIN)
    if head.startswith(b"version https://git-lfs"):
        raise ModelError(what, "it is a git-lfs pointer, not the weights", "run git lfs pull")
    # The length at the beginning of a safetensors file may look like a tag, but a brace follows.
    if head.lstrip()[:1] == b"<" and head[8:9] != b"{":
        raise ModelError(what, "it is a web page, not the weights", FETCH_AGAIN)
    return head


def map_file(path: Path, what: str = "") -> mmap.mmap:
    """Map a file that is not empty into memory.

    Args:
        path: the file.
        what: its name in errors; its path if empty.

    Raises:
        ModelError: if it cannot be mapped.
    """
    try:
        with open_regular(path) as file:
            # Copy on write, because torch warns of read-only memory. Nothing is ever written, so
            # no memory is reserved for copies: a file may be larger than the free memory.
            mapped = mmap.mmap(
                file.fileno(),
                0,
                flags=mmap.MAP_PRIVATE | _NO_RESERVE,
                prot=mmap.PROT_READ | mmap.PROT_WRITE,
            )
    except OSError as error:
        raise ModelError(what or repr(str(path)), reason(error), "check it") from None
    except ValueError:
        raise ModelError(what or repr(str(path)), "it is empty", FETCH_AGAIN) from None
    mapped_files.watch(mapped)
    return mapped


def read_only(address: int, row_bytes: int, rows: range, columns: range) -> None:
    """Restrict reading of a mapped matrix to the pages of a part of it.

    Otherwise the system reads ahead, some megabytes on some disks, which belong to other ranks.

    Args:
        address: the beginning of the matrix.
        row_bytes: bytes of a row.
        rows: rows of the part.
        columns: bytes of a row that are of the part.
    """
    if not hasattr(mmap, "MADV_WILLNEED"):
        return
    if len(columns) == row_bytes or row_bytes < 2 * mmap.PAGESIZE:  # parts of all pages
        begins, length = [rows.start * row_bytes], len(rows) * row_bytes
    else:
        begins, length = [row * row_bytes + columns.start for row in rows], len(columns)
    _advise(address + begins[0], begins[-1] + length - begins[0], mmap.MADV_RANDOM)
    for begin in begins:
        _advise(address + begin, length, mmap.MADV_WILLNEED)


def _advise(address: int, n_bytes: int, advice: int) -> None:
    """Give advice about the pages of some mapped bytes."""
    first = address // mmap.PAGESIZE * mmap.PAGESIZE
    size = ctypes.c_size_t(address + n_bytes - first)
    _c_library().madvise(ctypes.c_void_p(first), size, advice)


def release_pages(weight: Tensor) -> None:
    """Release the memory of a mapped tensor; its numbers are read from the file again if needed.

    Memory that ``map_file`` has not mapped would lose its contents.
    """
    if hasattr(mmap, "MADV_DONTNEED"):
        _advise(weight.data_ptr(), weight.nbytes, mmap.MADV_DONTNEED)


@cache
def _c_library() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def mapped_bytes(path: Path) -> NDArray[np.uint8]:
    """Map the bytes of a file; see ``map_file``."""
    return np.frombuffer(map_file(path), np.uint8)


def mapped_tensor(data: NDArray[np.uint8], dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """View ``data`` as a tensor, without a copy."""
    return torch.from_numpy(data).view(dtype).view(shape)


def part_of(weight: Tensor, part: Slice | None) -> Tensor:
    """Return a part of a mapped tensor, for None all of it, row by row; columns are copied."""
    if part is None:
        return aligned(weight)
    rows, columns = range(len(weight)), range(weight[0].nbytes)
    if part.dim == 0:
        rows = range(part.start, part.stop)
    else:
        columns = range(part.start * weight.element_size(), part.stop * weight.element_size())
    read_only(weight.data_ptr(), weight[0].nbytes, rows, columns)
    return aligned(weight.narrow(part.dim, part.start, len(part)).contiguous())


def aligned(weight: Tensor) -> Tensor:
    """Return a mapped tensor, copied if its numbers are not aligned, as in the oldest files."""
    return weight.clone() if weight.data_ptr() % weight.element_size() else weight
