"""What a conversion is to make, known before anything large is imported or opened."""

import re
from dataclasses import dataclass
from pathlib import Path

from llama_chat.checkpoints.float_types import FLOATS
from llama_chat.errors import UsageError

GGUF, SAFETENSORS = "gguf", "safetensors"
FORMATS = (SAFETENSORS, GGUF)

QUANTIZED = ("Q8_0", "Q4_0", "Q4_1")
TYPES = (*FLOATS, *QUANTIZED)
"""How matrices may be stored; only GGUF has the quantised ones."""

SHARD_SIZE = "5GB"
"""Bytes of a safetensors file at most, as the Hugging Face libraries write them."""

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


@dataclass(frozen=True, slots=True)
class Target:
    """Where a model goes, and how it is stored there."""

    path: Path
    format: str
    type: str | None
    """One of ``TYPES``; None keeps that of the source, and makes F16 of quantised weights."""
    shard_bytes: int
    """Bytes of weights in a safetensors file at most, unless a single one has more."""


def choose_target(
    path: Path, wanted_format: str | None, wanted_type: str | None, shard_size: str | None
) -> Target:
    """Read what a person asked for; without a format the suffix of ``path`` tells.

    Raises:
        UsageError: if it cannot be made.
    """
    chosen = wanted_format or (GGUF if path.suffix.lower() == ".gguf" else SAFETENSORS)
    if chosen not in FORMATS:
        raise UsageError(f"--to {chosen[:40]!r}", "no such format", f"give {' or '.join(FORMATS)}")
    kind = wanted_type.upper() if wanted_type else None
    if kind is not None and kind not in TYPES:
        raise UsageError(f"--type {kind[:40]!r}", "no such type", f"give {', '.join(TYPES)}")
    if chosen == SAFETENSORS and kind in QUANTIZED:
        raise UsageError(
            f"--type {kind}", "safetensors holds none", f"give {', '.join(FLOATS)}, or --to gguf"
        )
    if chosen == GGUF and shard_size is not None:
        raise UsageError("--shard-size", "a GGUF file is one file", "leave it out")
    return Target(path, chosen, kind, _bytes(shard_size or SHARD_SIZE))


def _bytes(size: str) -> int:
    """Bytes of a size such as ``500MB``."""
    found = re.fullmatch(r"([1-9]\d{0,14})\s*([KMG]?)B?", size.strip().upper())
    if found is None:
        raise UsageError(f"--shard-size {size[:40]!r}", "not a size", "give one such as 500MB")
    return int(found[1]) * _UNITS[found[2]]
