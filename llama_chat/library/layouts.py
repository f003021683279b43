"""Which files make up a model, told by their names alone: on a disk and on a hub alike."""

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

_QUANTIZATION = re.compile(
    r"(?<![A-Z0-9])(?:I?Q[1-8](?:_(?:[0-8]|K|XXS|XS|S|M|L|XL|NL))*|TQ[12]_0|MXFP4|BF16|F16|F32)"
    r"(?![A-Z0-9])"
)

PREFERENCE = ("Q4_K_M", "Q4_0", "Q5_K_M", "Q8_0", "F16")
"""Which quantisation to take where several fit and none was named; then the first there is."""

_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})", re.ASCII | re.DOTALL)
"""The name of one file of several, less its suffix."""

_HUGGING_FACE = frozenset(
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
"""What belongs to a Hugging Face model beside its weights."""

_SAFETENSORS = re.compile(r"(?!adapter_|consolidated).+\.safetensors")
_TORCH = re.compile(r"pytorch_model(-\d{5}-of-\d{5})?\.bin", re.ASCII)
_CONSOLIDATED = re.compile(r"consolidated\.\d+\.pth", re.ASCII)

_BESIDES = {"mmproj", "imatrix"}
"""Words in the names of GGUF files that belong to a model and are none."""

_ADAPTERS = {"adapter", "lora"}
"""The same at the beginning or the end of a name."""


@dataclass(frozen=True, slots=True)
class GGUFFiles:
    """A GGUF model: one file, or all the parts of a split one."""

    stem: str
    """Path of the file less ``.gguf`` and the number of the part."""
    files: tuple[str, ...]
    """Paths, the first part first."""

    @property
    def quantization(self) -> str:
        """Such as ``Q4_K_M``; empty where the name does not tell."""
        found = _QUANTIZATION.findall(_base(self.stem).upper())
        return found[-1] if found else ""

    @property
    def repository(self) -> str:
        """The folder it is of: where one is named after the quantisation, that around it."""
        folder, _, last = self.stem.rpartition("/")[0].rpartition("/")
        whole = f"{folder}/{last}" if folder else last
        return folder if last and last.upper() == self.quantization else whole


def group_gguf(paths: Iterable[str]) -> list[GGUFFiles]:
    """The GGUF models among files, in order of their names.

    Split ones of which a part is missing, projectors and adapters are left out.
    """
    groups: dict[tuple[str, int], list[tuple[int, str]]] = {}
    for path in sorted(paths):
        if not path.lower().endswith(".gguf") or _is_beside(path):
            continue
        stem = path[: -len(".gguf")]
        if part := _PART.fullmatch(stem):
            groups.setdefault((part[1], int(part[3])), []).append((int(part[2]), path))
        else:
            groups[stem, 0] = [(0, path)]
    return [
        GGUFFiles(stem, tuple(path for _, path in parts))
        for (stem, n_parts), parts in groups.items()
        if not n_parts or [number for number, _ in parts] == list(range(1, n_parts + 1))
    ]


def labels(models: Sequence[GGUFFiles]) -> list[str]:
    """What to call each of several models of a folder: its quantisation, or else its file."""
    known = [model.quantization for model in models]
    return [
        quantization if quantization and known.count(quantization) == 1 else _base(model.stem)
        for model, quantization in zip(models, known, strict=True)
    ]


def preferred(models: Sequence[GGUFFiles]) -> GGUFFiles:
    """The one to take if nobody said which; the first of those that rank alike."""
    rank = {quantization: place for place, quantization in enumerate(PREFERENCE)}
    return min(models, key=lambda model: rank.get(model.quantization, len(rank)))


def select_folder(names: Collection[str]) -> tuple[str, list[str]] | None:
    """The format of the model that the files of a folder make up, and those that it needs.

    ``names`` are the files directly in it. None if they make up none, or a part is missing.
    """
    shards = sorted(filter(_CONSOLIDATED.fullmatch, names))
    weights = sorted(filter(_SAFETENSORS.fullmatch, names))
    index = "model.safetensors.index.json"
    if not weights:
        weights = sorted(filter(_TORCH.fullmatch, names))
        index = "pytorch_model.bin.index.json"
    if "config.json" in names and weights:
        # Others in the same folder would be the same weights over again.
        weights = [name for name in weights if name.startswith("model")] or weights
        beside = _HUGGING_FACE | {index}
        if not _is_whole(weights):
            return None
        return "Hugging Face", sorted(beside.intersection(names)) + weights
    if "params.json" in names:
        tokenizer = [name for name in ("tokenizer.model",) if name in names]
        return "Meta", ["params.json", *tokenizer, *shards]
    return None


def select_llama2c(names: Collection[str]) -> list[str]:
    """The models of llama2.c in a folder: ``.bin`` files with a tokenizer beside them."""
    if "config.json" in names or not {"tokenizer.bin", "tokenizer.model"} & set(names):
        return []
    return [n for n in sorted(names) if n.endswith(".bin") and not n.startswith("tokenizer")]


def _is_whole(weights: Iterable[str]) -> bool:
    """Whether no part of split weights is missing."""
    parts = [part for name in weights if (part := _PART.fullmatch(name.rpartition(".")[0]))]
    return all(int(part[3]) == len(parts) for part in parts)


def _is_beside(path: str) -> bool:
    words = re.split(r"[-_.]", _base(path).lower().removesuffix(".gguf"))
    return bool(_BESIDES.intersection(words) or _ADAPTERS.intersection((words[0], words[-1])))


def _base(path: str) -> str:
    return path.rpartition("/")[2]
