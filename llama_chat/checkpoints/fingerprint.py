"""Fingerprint of a model: a hash that identifies it.

It covers the header – architecture, names, shapes and types of the weights – the vocabulary, and
evenly spread blocks of the weight files; hashing whole files would take as long as loading them.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from llama_chat.checkpoints.base import Checkpoint
from llama_chat.documents import read_results, write_results
from llama_chat.errors import LlamaChatError
from llama_chat.files import open_regular
from llama_chat.library.layouts import PART_NAME
from llama_chat.tokenizers.base import Tokenizer

FILE = "fingerprints.json"
"""Name of the file in the cache folder that holds hashes of blocks."""

_N_BLOCKS = 16
_BLOCK_BYTES = 2**16
"""Number of blocks read from a file, including the first and the last."""

_SUFFIXES = (".safetensors", ".pth", ".bin")
"""Suffixes of the weights in a folder."""


def model_fingerprint(checkpoint: Checkpoint, tokenizer: Tokenizer) -> str:
    """Return the fingerprint of a model, 16 hexadecimal digits.

    Raises:
        LlamaChatError: if a file cannot be read.
    """
    tensors = sorted(
        (name, list(info.shape), info.type) for name, info in checkpoint.tensors.items()
    )
    parts = [repr(checkpoint.config), json.dumps(tensors), tokenizer.fingerprint]
    return _hash("\0".join([*parts, _weights_hash(weight_files(checkpoint.path))]).encode())


def weight_files(path: Path) -> list[Path]:
    """List the weight files of a model."""
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES)
    if part := PART_NAME.fullmatch(path.stem):
        n_parts = int(part[3])
        names = (f"{part[1]}-{i:05}-of-{part[3]}{path.suffix}" for i in range(1, n_parts + 1))
        return [path.with_name(name) for name in names]
    return [path]


def _weights_hash(files: Sequence[Path]) -> str:
    """Return the hash of blocks of ``files``, known or computed."""
    try:
        stats = [(str(file.absolute()), file.stat()) for file in files]
        key = _hash(repr([(at, stat.st_size, stat.st_mtime_ns) for at, stat in stats]).encode())
        known = read_results(FILE, str)
        if key not in known:
            blocks = (block for file in files for block in _blocks(file))
            known[key] = _hash(b"".join(blocks))
            write_results(FILE, known)
    except (OSError, ValueError) as error:
        raise LlamaChatError("fingerprint of the model", str(error), "check its files") from None
    return known[key]


def _blocks(file: Path) -> list[bytes]:
    """Read the size and blocks of a file."""
    with open_regular(file) as stream:
        size = stream.seek(0, 2)
        last = max(size - _BLOCK_BYTES, 0)
        places = sorted({last * i // (_N_BLOCKS - 1) for i in range(_N_BLOCKS)})
        found = [size.to_bytes(8, "little")]
        for place in places:
            stream.seek(place)
            found.append(stream.read(_BLOCK_BYTES))
    return found


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
