"""Weights of a folder: one file, or shards with an index of what each one holds."""

import re
import reprlib
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from llama_chat.checkpoints.base import label
from llama_chat.checkpoints.safetensors import open_safetensors
from llama_chat.checkpoints.small_files import JsonObject, read_object
from llama_chat.checkpoints.torch_archive import open_archive
from llama_chat.errors import ModelError
from llama_chat.gates import FETCH_AGAIN


def open_weights(folder: Path, names: Sequence[str], skip: re.Pattern[str]) -> dict[str, Tensor]:
    """Map all weights, by their names in the files.

    Args:
        folder: the model.
        names: possible names of one file of weights, which shards derive theirs from.
        skip: pattern of the names of tensors to leave out.

    Raises:
        ModelError: if a file is missing or damaged, or the index is not of the shards.
    """
    for name in names:
        if (folder / name).exists():
            return _open_file(folder / name, skip)
        index = folder / f"{name}.index.json"
        if index.exists():
            return _open_shards(folder, index, skip)
    advice = f"download {names[0]}, or its shards and {names[0]}.index.json"
    raise ModelError(label(folder), "no weights in it", advice)


def _open_shards(folder: Path, index: Path, skip: re.Pattern[str]) -> dict[str, Tensor]:
    """Map the shards that ``index`` names; each must hold exactly the tensors listed for it."""
    places = read_object(index, FETCH_AGAIN).object("weight_map")
    files = places.values
    names = sorted({_shard_name(places, value) for value in files.values()})
    if not names:
        raise places.error("it names no shard")
    missing = [file for file in names if not (folder / file).exists()]
    if missing:
        raise ModelError(label(folder), f"{missing[0]!r} is missing", "download all shards")
    weights: dict[str, Tensor] = {}
    for file in names:
        shard = _open_file(folder / file, skip)
        listed = {name for name in files if files[name] == file and not skip.search(name)}
        if odd := sorted(listed ^ shard.keys()):
            raise places.error(f"{file!r} and it differ in tensor {odd[0][:60]!r}")
        weights |= shard
    return weights


def _shard_name(places: JsonObject, value: object) -> str:
    """Check that a value of the index names a file in the same folder, and return it."""
    if isinstance(value, str) and re.fullmatch(r"[\w.-]{1,200}\.(safetensors|bin)", value):
        return value
    raise places.error(f"{reprlib.repr(value)} is not the name of a shard")


def _open_file(path: Path, skip: re.Pattern[str]) -> dict[str, Tensor]:
    opened = open_archive if path.suffix == ".bin" else open_safetensors
    return opened(path, skip)
