"""Files of a model in each format: on disk and on a hub, for loading and for listing.

A format is recognised by file names, and by the first bytes of a single file; nothing else is read.
"""

import re
import struct
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llama_chat.files import open_regular

_QUANTIZATION = re.compile(
    r"(?<![A-Z0-9])(?:I?Q[1-8](?:_(?:[0-8]|K|XXS|XS|S|M|L|XL|NL))*|TQ[12]_0|MXFP4|BF16|F16|F32)"
    r"(?![A-Z0-9])"
)

PREFERENCE = ("Q4_K_M", "Q4_0", "Q5_K_M", "Q8_0", "F16")
"""Quantizations in order of preference, where several fit and none was named."""

PART_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})", re.ASCII | re.DOTALL)
"""Stem of a file that is one of several parts: name, number and count."""

GGUF_MAGIC = b"GGUF"
"""First bytes of a GGUF file."""

LLAMA2C_MAGIC = b"24ka"
"""First bytes of versions 1 and 2 of llama2.c's format: 0x616b3432, little-endian."""

LLAMA2C_HEADER = struct.Struct("<7i")
_MAX_LLAMA2C_NUMBER = 2**24
"""Bound of the numbers in a llama2.c header, which excludes other files ending in ``.bin``."""

_HEAD_BYTES = 64

_HUGGING_FACE_FILES = frozenset(
    {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
        "chat_template.jinja",
        "chat_template.json",
    }
)
"""Files of a Hugging Face model other than its weights."""

HUGGING_FACE_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""Names of Hugging Face weights in one file, in order of preference; parts have numbers before the
suffix, and an index with ``.index.json`` after it."""

_CONSOLIDATED = re.compile(r"consolidated\.(\d\d)\.pth", re.ASCII)

MISTRAL_WEIGHTS = "consolidated.safetensors"
"""Name of the weights in Mistral's own folders, which are like Meta's otherwise; parts are named as
those of Hugging Face."""

TEKKEN = "tekken.json"
_VERSIONS = re.compile(r"tokenizer\.model\.v(\d+)\w*", re.ASCII)

_AUXILIARY = {"mmproj", "imatrix"}
"""Words in the names of GGUF files that accompany a model."""

_ADAPTERS = {"adapter", "lora"}
"""Words at the beginning or end of the names of GGUF files that are adapters."""


@dataclass(frozen=True, slots=True)
class GGUFFiles:
    """A GGUF model: one file, or all the parts of a split one."""

    stem: str
    """Path of the file without ``.gguf`` and the number of the part."""
    files: tuple[str, ...]
    """Paths, the first part first."""

    @property
    def quantization(self) -> str:
        """Quantization in the file name, such as ``Q4_K_M``; empty if there is none."""
        found = _QUANTIZATION.findall(_basename(self.stem).upper())
        return found[-1] if found else ""

    @property
    def repository(self) -> str:
        """Folder of the file, or its parent if the folder is named after the quantization."""
        folder, _, last = self.stem.rpartition("/")[0].rpartition("/")
        whole = f"{folder}/{last}" if folder else last
        return folder if last and last.upper() == self.quantization else whole


def group_gguf(paths: Iterable[str]) -> list[GGUFFiles]:
    """Return the GGUF models among files, sorted by name.

    Split models with missing parts, auxiliary files and adapters are left out.
    """
    groups: dict[tuple[str, int], list[tuple[int, str]]] = {}
    for path in sorted(paths):
        if not path.lower().endswith(".gguf") or _is_auxiliary(path):
            continue
        stem = path[: -len(".gguf")]
        if part := PART_NAME.fullmatch(stem):
            groups.setdefault((part[1], int(part[3])), []).append((int(part[2]), path))
        else:
            groups[stem, 0] = [(0, path)]
    return [
        GGUFFiles(stem, tuple(path for _, path in parts))
        for (stem, n_parts), parts in groups.items()
        if not n_parts or [number for number, _ in parts] == list(range(1, n_parts + 1))
    ]


def labels(models: Sequence[GGUFFiles]) -> list[str]:
    """Return a label for each model of a folder: its quantization if unique, else its file name."""
    known = [model.quantization for model in models]
    return [
        quantization if quantization and known.count(quantization) == 1 else _basename(model.stem)
        for model, quantization in zip(models, known, strict=True)
    ]


def preferred(models: Sequence[GGUFFiles]) -> GGUFFiles:
    """Return the model to take by default; the first of those with the same rank."""
    rank = {quantization: place for place, quantization in enumerate(PREFERENCE)}
    return min(models, key=lambda model: rank.get(model.quantization, len(rank)))


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Files of a model in one folder, by name."""

    config: tuple[str, ...]
    """Files other than the weights."""
    weights: tuple[str, ...]
    """Files of weights, in order."""
    is_complete: bool
    """False if a file is known to be missing."""


@dataclass(frozen=True, slots=True)
class ModelFormat:
    """A checkpoint format: the recognition of its files, and the module that reads them."""

    name: str
    reader: str
    """Module of ``llama_chat.checkpoints`` that has ``open_checkpoint``."""
    in_folder: Callable[[Collection[str]], ModelFiles | None] = lambda names: None
    """Files of a model among the names in a folder; None if nothing indicates a model."""
    is_file: Callable[[str, bytes], bool] = lambda name, head: False
    """True for the name and the first bytes of a file that is a model by itself."""


def _weights(names: Collection[str], whole: str) -> ModelFiles | None:
    """Return the weights that are one file ``whole``, or parts with an index; None if none are."""
    stem, _, suffix = whole.rpartition(".")
    part = re.compile(rf"{re.escape(stem)}-(\d{{5}})-of-(\d{{5}})\.{suffix}", re.ASCII)
    found = [match for name in sorted(names) if (match := part.fullmatch(name))]
    if whole in names:
        return ModelFiles((), (whole,), True)
    index = {f"{whole}.index.json"}.intersection(names)
    if not found and not index:
        return None
    complete = bool(index) and all(int(match[2]) == len(found) for match in found)
    return ModelFiles(tuple(index), tuple(match[0] for match in found), complete)


def _hugging_face(names: Collection[str]) -> ModelFiles | None:
    config = _HUGGING_FACE_FILES.intersection(names)
    has_config = "config.json" in names
    for whole in HUGGING_FACE_WEIGHTS:
        if found := _weights(names, whole):
            files = tuple(sorted(config.union(found.config)))
            return ModelFiles(files, found.weights, found.is_complete and has_config)
    return ModelFiles(tuple(sorted(config)), (), False) if has_config else None


def _meta(names: Collection[str]) -> ModelFiles | None:
    shards = sorted(name for name in names if _CONSOLIDATED.fullmatch(name))
    expected = [f"consolidated.{number:02}.pth" for number in range(len(shards))]
    in_shards = ModelFiles((), tuple(shards), shards == expected) if shards else None
    found = in_shards or _weights(names, MISTRAL_WEIGHTS)
    config = {"params.json"}.intersection(names)
    if found is None:
        return ModelFiles((*config, *meta_tokenizers(names)), (), False) if config else None
    files = (*config, *meta_tokenizers(names), *found.config)
    return ModelFiles(files, found.weights, found.is_complete and bool(config))


def meta_tokenizers(names: Collection[str]) -> list[str]:
    """Return the tokenizer files of a folder of Meta or Mistral, the one to take first."""
    versions = {name: int(found[1]) for name in names if (found := _VERSIONS.fullmatch(name))}
    newest_first = sorted(versions, key=lambda name: (-versions[name], name))
    return [name for name in (TEKKEN, *newest_first, "tokenizer.model") if name in names]


def _is_gguf(name: str, head: bytes) -> bool:
    return head.startswith(GGUF_MAGIC) or name.endswith(".gguf")


def _is_llama2c(name: str, head: bytes) -> bool:
    if not name.endswith(".bin"):
        return False
    if head.startswith(LLAMA2C_MAGIC):
        return True
    numbers = head[: LLAMA2C_HEADER.size]
    return len(numbers) == LLAMA2C_HEADER.size and all(
        0 < abs(number) < _MAX_LLAMA2C_NUMBER for number in LLAMA2C_HEADER.unpack(numbers)
    )


FORMATS = (
    ModelFormat("Hugging Face", "huggingface", in_folder=_hugging_face),
    ModelFormat("Meta", "meta", in_folder=_meta),
    ModelFormat("GGUF", "gguf", is_file=_is_gguf),
    ModelFormat("llama2.c", "llama2c", is_file=_is_llama2c),
)
"""All checkpoint formats. A new one is a reader in ``llama_chat/checkpoints`` and a row here."""


def identify_folder(names: Collection[str]) -> tuple[ModelFormat, ModelFiles] | None:
    """Return the format of the model among the names in a folder, and its files.

    A complete model has precedence. Without one, an incomplete model is returned, so that loading
    can report what is missing; None if nothing indicates a model.
    """
    found = [(each, files) for each in FORMATS if (files := each.in_folder(names))]
    for each, files in found:
        if files.is_complete:
            return each, files
    return found[-1] if found else None


def identify(path: Path) -> ModelFormat | None:
    """Return the format of the model at ``path``, a folder or a file; None if it is unknown.

    Raises:
        OSError: if the path is neither, or cannot be read.
    """
    if path.is_dir():
        found = identify_folder([entry.name for entry in path.iterdir()])
        return found[0] if found else None
    with open_regular(path) as file:
        head = file.read(_HEAD_BYTES)
    return next((each for each in FORMATS if each.is_file(path.name, head)), None)


def select_llama2c(names: Collection[str]) -> list[str]:
    """Return the llama2.c models in a folder: ``.bin`` files with a tokenizer beside them."""
    if "config.json" in names or not {"tokenizer.bin", "tokenizer.model"} & set(names):
        return []
    return [n for n in sorted(names) if n.endswith(".bin") and not n.startswith("tokenizer")]


def _is_auxiliary(path: str) -> bool:
    words = re.split(r"[-_.]", _basename(path).lower().removesuffix(".gguf"))
    return bool(_AUXILIARY.intersection(words) or _ADAPTERS.intersection((words[0], words[-1])))


def _basename(path: str) -> str:
    return path.rpartition("/")[2]
