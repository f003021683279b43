"""A model on this machine, and the search for models in a folder tree."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from llama_chat.files import readable_size
from llama_chat.library.layouts import (
    GGUFFiles,
    group_gguf,
    identify_folder,
    labels,
    preferred,
    select_llama2c,
)

_DEPTH = 6
"""Depth of subfolders to search."""

_ENTRIES = 20_000
"""Limit on the files and folders of a tree: one with more is no collection of models."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model, as far as it is known without opening it."""

    name: str
    """Name that ``-m`` takes."""
    path: Path
    """A folder, or the first file."""
    format: str
    """``Meta``, ``Hugging Face``, ``GGUF`` or ``llama2.c``."""
    quantization: str
    """Such as ``Q4_K_M``; empty if not known."""
    n_bytes: int
    source: str
    """``own``, ``hub``, ``ollama``, ``lm-studio`` or ``path``."""
    changed: float
    """Time of the last change in seconds since 1970."""
    files: tuple[Path, ...]
    aliases: tuple[str, ...] = ()
    """Other names that ``-m`` takes, unless another model has them."""

    @property
    def kind(self) -> str:
        """Format, with the quantization if known."""
        return f"{self.format} {self.quantization}".rstrip()

    @property
    def summary(self) -> str:
        """Size, kind and source."""
        return f"{readable_size(self.n_bytes)}, {self.kind}, {self.source}"


class Folder(NamedTuple):
    """A folder in a tree."""

    name: str
    """Path relative to the root, with ``/``; empty for the root itself."""
    path: Path
    files: list[str]
    """Names of the files and links to files in it, without hidden ones."""


def folders(root: Path) -> Iterator[Folder]:
    """Yield ``root`` and the folders below it, sorted by name; each once, even with cyclic links.

    Unreadable folders are skipped.
    """
    seen: set[tuple[int, int]] = set()
    left = _ENTRIES
    waiting = [("", root, 0)]
    while waiting:
        name, path, depth = waiting.pop()
        files, below = [], []
        try:
            status = path.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(path) as entries:
                for entry in entries:
                    left -= 1
                    if left < 0:
                        break
                    if entry.name.startswith("."):
                        continue
                    if _is(entry.is_dir):
                        below.append(entry.name)
                    elif _is(entry.is_file):
                        files.append(entry.name)
        except (OSError, ValueError):
            continue
        yield Folder(name, path, sorted(files))
        if depth < _DEPTH:
            waiting += [
                (f"{name}/{child}" if name else child, path / child, depth + 1)
                for child in sorted(below, reverse=True)
            ]


def _is(question: Callable[[], bool]) -> bool:
    """Return the answer of a directory entry; False for a cyclic or inaccessible link."""
    try:
        return question()
    except OSError:
        return False


def measure(files: Sequence[Path]) -> tuple[int, float]:
    """Return the total bytes of files, and the time of the last change in seconds since 1970."""
    n_bytes, changed = 0, 0.0
    for file in files:
        try:
            status = file.stat()
        except OSError:
            continue
        n_bytes, changed = n_bytes + status.st_size, max(changed, status.st_mtime)
    return n_bytes, changed


def models_by_folder(root: Path, source: str, prefix: str = "") -> Iterator[Model]:
    """Yield the models below ``root``, named after their folders: ``NAME``, or ``NAME:Q4_K_M``.

    Args:
        root: the folder to search.
        source: for ``Model.source``.
        prefix: the name of ``root`` itself; if empty, files in it are named after themselves.
    """
    gguf: list[str] = []
    for folder in folders(root):
        name = "/".join(filter(None, (prefix, folder.name)))
        yield from _other_models(folder, source, name)
        gguf += [f"{folder.name}/{file}" if folder.name else file for file in folder.files]
    by_repository: dict[str, list[GGUFFiles]] = {}
    for model in group_gguf(gguf):
        by_repository.setdefault(model.repository, []).append(model)
    for repository, members in by_repository.items():
        name = "/".join(filter(None, (prefix, repository)))
        first = preferred(members)
        for model, label in zip(members, labels(members), strict=True):
            if not name:
                yield _gguf(root, model, source, model.stem)
            elif len(members) == 1:
                yield _gguf(root, model, source, name, f"{name}:{label}")
            else:
                aliases = (name,) if model is first else ()
                yield _gguf(root, model, source, f"{name}:{label}", *aliases)


def models_by_file(root: Path, source: str) -> Iterator[Model]:
    """Yield the models below ``root``, named after their relative paths without suffix."""
    for folder in folders(root):
        yield from _other_models(folder, source, folder.name or root.name)
        for model in group_gguf(folder.files):
            stem = f"{folder.name}/{model.stem}" if folder.name else model.stem
            yield _gguf(folder.path, model, source, stem, f"{stem}.gguf")


def _other_models(folder: Folder, source: str, name: str) -> Iterator[Model]:
    """Yield the models in a folder that are no GGUF files."""
    if not name:
        return
    found = identify_folder(folder.files)
    if found is not None and found[1].is_complete:
        kind, selected = found
        files = tuple(folder.path / file for file in (*selected.config, *selected.weights))
        yield Model(name, folder.path, kind.name, "", *_measured(files, source))
    for file in select_llama2c(folder.files):
        path = folder.path / file
        called = f"{name}/{file.removesuffix('.bin')}"
        yield Model(called, path, "llama2.c", "", *_measured((path,), source))


def _gguf(root: Path, model: GGUFFiles, source: str, name: str, *aliases: str) -> Model:
    files = tuple(root / file for file in model.files)
    return Model(
        name, files[0], "GGUF", model.quantization, *_measured(files, source), aliases=aliases
    )


def _measured(files: tuple[Path, ...], source: str) -> tuple[int, str, float, tuple[Path, ...]]:
    """Return the fields ``n_bytes``, ``source``, ``changed`` and ``files`` of a ``Model``."""
    n_bytes, changed = measure(files)
    return n_bytes, source, changed, files
