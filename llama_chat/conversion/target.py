"""Target of a conversion, checked before anything large is imported or opened."""

import re
from dataclasses import dataclass
from pathlib import Path

from llama_chat.checkpoints.float_types import FLOATS
from llama_chat.errors import UsageError

GGUF, SAFETENSORS = "gguf", "safetensors"
FORMATS = (SAFETENSORS, GGUF)

QUANTIZED = ("Q8_0", "Q4_0", "Q4_1")
TYPES = (*FLOATS, *QUANTIZED)
"""Storage types of matrices; only GGUF has the quantized ones."""

SHARD_SIZE = "5GB"
"""Default size limit of a safetensors file, as in the Hugging Face libraries."""

_OTHER_SUFFIXES = (".bin", ".ggml", ".pt", ".pth", ".safetensors")
"""Suffixes of model files that are not written; a folder of such a name is no intention."""

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


WRITTEN_FILE = re.compile(
    r"(config|generation_config|tokenizer|tokenizer_config)\.json|tokenizer\.model"
    r"|model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json"
)
"""Names of the files in a folder of safetensors that a conversion has written."""


@dataclass(frozen=True, slots=True)
class Target:
    """Path and format of a converted model."""

    path: Path
    format: str
    type: str | None
    """One of ``TYPES``; None for that of the source, or F16 if it is quantized."""
    shard_bytes: int
    """Limit on the bytes of weights in a safetensors file, unless a single one has more."""


def choose_target(
    path: Path, wanted_format: str | None, wanted_type: str | None, shard_size: str | None
) -> Target:
    """Parse the options of a conversion; by default the suffix of ``path`` gives the format.

    Raises:
        UsageError: if an option is invalid, or the format does not support it.
    """
    suffix = path.suffix.lower()
    if wanted_format is None and suffix in _OTHER_SUFFIXES:
        advice = "name a .gguf file or a folder, or give --to"
        raise UsageError(repr(str(path)), f"no model is written as {suffix}", advice)
    chosen = wanted_format or (GGUF if suffix == ".gguf" else SAFETENSORS)
    if chosen not in FORMATS:
        raise UsageError(f"--to {chosen[:40]!r}", "no such format", f"give {' or '.join(FORMATS)}")
    kind = wanted_type.upper() if wanted_type else None
    if kind is not None and kind not in TYPES:
        raise UsageError(f"--type {kind[:40]!r}", "no such type", f"give {', '.join(TYPES)}")
    if chosen == SAFETENSORS and kind in QUANTIZED:
        raise UsageError(
            f"--type {kind}",
            "safetensors has no such type",
            f"give {', '.join(FLOATS)}, or --to gguf",
        )
    if chosen == GGUF and shard_size is not None:
        raise UsageError("--shard-size", "a GGUF file is one file", "leave it out")
    return Target(path, chosen, kind, _parse_size(shard_size or SHARD_SIZE))


def _parse_size(size: str) -> int:
    """Return the bytes of a size such as ``500MB``."""
    found = re.fullmatch(r"([1-9]\d{0,14})\s*([KMG]?)B?", size.strip().upper())
    if found is None:
        raise UsageError(f"--shard-size {size[:40]!r}", "not a size", "give one such as 500MB")
    return int(found[1]) * _UNITS[found[2]]
