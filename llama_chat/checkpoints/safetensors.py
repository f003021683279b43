"""Files of safetensors, read by its library; see https://github.com/huggingface/safetensors.

Checks that the library does not make are added here: for duplicate names, headers of a hundred
megabytes, and types and dimensions that no weight of a Llama model has.
"""

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from llama_chat.checkpoints.small_files import FETCH_AGAIN, decoding
from llama_chat.checkpoints.weight_files import check_tensor, read_head
from llama_chat.errors import ModelError
from llama_chat.files import open_regular

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
    _check_header(path, what)
    with decoding(what):
        found = _read(path, what, skip)
    for name, weight in found.items():
        check_tensor(what, name, weight)
    return found


def _read(path: Path, what: str, skip: re.Pattern[str]) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys() if not skip.search(name)}  # noqa: SIM118 - no mapping
    except SafetensorError as error:
        reason = str(error).removeprefix("Error while deserializing header: ")
        raise ModelError(what, f"it is damaged: {ascii(reason)[1:100]}", FETCH_AGAIN) from None


def _check_header(path: Path, what: str) -> None:
    """Check the header for size and duplicate names; the library reports all other errors."""
    head = read_head(path)
    n_bytes = int.from_bytes(head[:8], "little")
    if n_bytes > min(_MAX_HEADER, path.stat().st_size - 8):
        why = "its header is longer than the file, or than that of any model"
        raise ModelError(what, why, FETCH_AGAIN)
    with open_regular(path) as file:
        header = file.read(8 + n_bytes)[8:]
    try:
        json.loads(header, object_pairs_hook=_refuse_duplicates)
    except _DuplicateNameError as error:
        raise ModelError(what, f"{error} occurs twice in its header", FETCH_AGAIN) from None
    except (ValueError, RecursionError):
        return


class _DuplicateNameError(Exception):
    """A name occurs twice in one object; the message is the name."""


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> None:
    names = sorted(name for name, _ in pairs)
    for name, following in pairwise(names):
        if name == following:
            raise _DuplicateNameError(repr(name[:60]))
