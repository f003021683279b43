"""A model that lies on this machine, and finding those in a tree of folders."""

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
"""Folders within folders that are looked into."""

_ENTRIES = 20_000
"""Files and folders of one tree that are looked at: more is no collection of models."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model and what can be told of it without opening it."""

    name: str
    """What ``-m`` takes."""
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
    """In seconds since 1970."""
    files: tuple[Path, ...]
    aliases: tuple[str, ...] = ()
    """Other names that ``-m`` takes unless they are those of another model."""

    @property
    def kind(self) -> str:
        """Its format, with the quantisation where that is known."""
        return f"{self.format} {self.quantization}".rstrip()

    @property
    def summary(self) -> str:
        """What it is, in a few words."""
        return f"{readable_size(self.n_bytes)}, {self.kind}, {self.source}"


class Folder(NamedTuple):
    """A folder below another one."""

    name: str
    """Its path from there, with ``/``; empty for that folder itself."""
    path: Path
    files: list[str]
    """Names of the files in it, be they links; not hidden ones."""


def folders(root: Path) -> Iterator[Folder]:
    """``root`` and the folders below it, in order of their names; each once, whatever links say.

    What cannot be read is passed over.
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
    """The answer of a directory entry; no where a link leads in a circle or out of sight."""
    try:
        return question()
    except OSError:
        return False


def measure(files: Sequence[Path]) -> tuple[int, float]:
    """Bytes of files together, and when the latest was changed."""
    n_bytes, changed = 0, 0.0
    for file in files:
        try:
            status = file.stat()
        except OSError:
            continue
        n_bytes, changed = n_bytes + status.st_size, max(changed, status.st_mtime)
    return n_bytes, changed


def models_by_folder(root: Path, source: str, prefix: str = "") -> Iterator[Model]:
    """The models below ``root``, named after their folders: ``NAME``, or ``NAME:Q4_K_M``.

    Args:
        root: where to look.
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
    """The models below ``root``, each named after its path from there, without a suffix."""
    for folder in folders(root):
        yield from _other_models(folder, source, folder.name or root.name)
        for model in group_gguf(folder.files):
            stem = f"{folder.name}/{model.stem}" if folder.name else model.stem
            yield _gguf(folder.path, model, source, stem, f"{stem}.gguf")


def _other_models(folder: Folder, source: str, name: str) -> Iterator[Model]:
    """Those in a folder that are no GGUF files."""
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
    """The fields of a ``Model`` that its files tell."""
    n_bytes, changed = measure(files)
    return n_bytes, source, changed, files
