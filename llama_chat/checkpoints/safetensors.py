"""Files of safetensors, checked by its library; see https://github.com/huggingface/safetensors.

Checks that the library does not make are added here: for duplicate names, headers of a hundred
megabytes, and types and dimensions that no weight of a Llama model has. The file is mapped here, so
that the memory of a weight can be released.
"""

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from llama_chat.checkpoints.base import FLOAT_TYPES
from llama_chat.checkpoints.weight_files import (
    check_tensor,
    mapped_bytes,
    mapped_tensor,
    read_head,
)
from llama_chat.errors import ModelError
from llama_chat.files import open_regular
from llama_chat.gates import FETCH_AGAIN, gate

_MAX_HEADER = 4 * 2**20
"""Limit on the bytes of a header; that of the largest model takes 0.1 MB."""


def open_safetensors(path: Path, skip: re.Pattern[str]) -> dict[str, Tensor]:
    """Map the tensors of a file into memory.

    Args:
        path: the file.
        skip: pattern of the names of tensors to leave out.

    Raises:
        ModelError: if the file is damaged, or holds a tensor that is no weight.
    """
    what = repr(str(path))
    with gate(what):
        begin, header = _read_header(path, what)
        try:
            with safe_open(path, framework="pt") as file:
                found = _map(path, begin, header, file, skip)
        except SafetensorError as error:
            reason = str(error).removeprefix("Error while deserializing header: ")
            why = f"it is damaged: {ascii(reason)[1:100]}"
            raise ModelError(what, why, FETCH_AGAIN) from None
    for name, weight in found.items():
        check_tensor(what, name, weight)
    return found


def _map(
    path: Path, begin: int, header: Any, checked: Any, skip: re.Pattern[str]
) -> dict[str, Tensor]:
    """View the tensors of a file that the library has ``checked``, and whose data ``begin`` so."""
    found, data = {}, mapped_bytes(path)[begin:]
    for name in checked.keys():  # noqa: SIM118 - no mapping
        if skip.search(name):
            continue
        dtype = FLOAT_TYPES.get(header[name]["dtype"])
        if dtype is None:  # the check of the tensor names the type that it has in torch
            found[name] = checked.get_tensor(name)
        else:
            part = data[slice(*header[name]["data_offsets"])]
            found[name] = mapped_tensor(part, dtype, header[name]["shape"])
    return found


def _read_header(path: Path, what: str) -> tuple[int, Any]:
    """Read the header, checked for size and duplicate names; the library finds other errors.

    Returns:
        Its end in bytes, and what it says; None if it is no JSON.
    """
    head = read_head(path)
    n_bytes = int.from_bytes(head[:8], "little")
    if n_bytes > min(_MAX_HEADER, path.stat().st_size - 8):
        why = "its header is longer than the file, or than that of any model"
        raise ModelError(what, why, FETCH_AGAIN)
    with open_regular(path) as file:
        header = file.read(8 + n_bytes)[8:]
    try:
        return 8 + n_bytes, json.loads(header, object_pairs_hook=_without_duplicates)
    except _DuplicateNameError as error:
        raise ModelError(what, f"{error} occurs twice in its header", FETCH_AGAIN) from None
    except (ValueError, RecursionError):
        return 8 + n_bytes, None


class _DuplicateNameError(Exception):
    """A name occurs twice in one object; the message is the name."""


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = sorted(name for name, _ in pairs)
    for name, following in pairwise(names):
        if name == following:
            raise _DuplicateNameError(repr(name[:60]))
    return dict(pairs)
