"""Model stores on this machine: our own folder, and those of other programs.

Only file names, small text files and the first four bytes of a blob are read.
"""

import itertools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from llama_chat.documents import parse_json
from llama_chat.errors import SaveError
from llama_chat.files import data_home, expand_user, read_start, remove_empty_folders
from llama_chat.library.downloads import forget
from llama_chat.library.layouts import GGUF_MAGIC
from llama_chat.library.model import Model, folders, measure, models_by_file, models_by_folder

_SMALL_BYTES = 2**20
"""Limit on the bytes read of a small file; manifests are smaller."""

_MAX_ENTRIES = 10_000
"""Limit on the entries read of a folder."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")

_OLLAMA_MODEL = "application/vnd.ollama.image.model"
_OLLAMA_SERVICE = "/usr/share/ollama/.ollama/models"
"""Model store of ollama if it runs as a system service."""


def own_folder() -> Path:
    """Return the folder where ``pull`` stores models."""
    return data_home() / "models"


def all_models(search_paths: Sequence[str]) -> Iterator[Model]:
    """Yield the models of all stores; of those with the same name the first has precedence."""
    yield from models_by_folder(own_folder(), "own")
    yield from _hub_models(_hub_cache())
    for store in (os.environ.get("OLLAMA_MODELS") or "~/.ollama/models", _OLLAMA_SERVICE):
        yield from _ollama_models(expand_user(store))
    for store in ("~/.lmstudio/models", "~/.cache/lm-studio/models"):
        yield from models_by_file(expand_user(store), "lm-studio")
    for path in search_paths:
        yield from models_by_file(expand_user(path), "path")


def remove(model: Model) -> None:
    """Remove a model from our own folder; if it is linked there, remove only the link.

    Raises:
        SaveError: if it cannot be removed.
    """
    home = own_folder()
    # Several files may be below one link.
    for path in dict.fromkeys(_first_link(home, file) for file in model.files):
        try:
            path.unlink(missing_ok=True)
            forget(path)
            remove_empty_folders(path.parent, home)
        except OSError as error:
            raise SaveError.at(path, error, "check who may write there") from None


def _first_link(home: Path, file: Path) -> Path:
    """Return the first symbolic link on the path from ``home`` to ``file``, or else the file."""
    path = home
    for part in file.relative_to(home).parts:
        path /= part
        if path.is_symlink():
            break
    return path


def _hub_cache() -> Path:
    """Return the Hugging Face cache as ``huggingface_hub`` finds it, without its slow import."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if path := os.environ.get(variable):
            return expand_user(os.path.expandvars(path))
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or f"{caches}/huggingface"
    return expand_user(os.path.expandvars(home)) / "hub"


def _hub_models(cache: Path) -> Iterator[Model]:
    """Yield the models in a Hugging Face cache; further revisions as ``NAME@REVISION``."""
    for folder in _children(cache):
        kind, _, name = folder.partition("--")
        if kind != "models" or not name:
            continue
        name = name.replace("--", "/")
        names = _revisions(cache / folder / "refs")
        snapshots = [
            cache / folder / "snapshots" / commit
            for commit in _children(cache / folder / "snapshots")
        ]
        # The main revision first, or else the latest.
        snapshots.sort(key=lambda path: (names.get(path.name) != "main", -measure([path])[1]))
        for n_before, snapshot in enumerate(snapshots):
            revision = names.get(snapshot.name) or snapshot.name[:8]
            called = f"{name}@{revision}" if n_before else name
            yield from models_by_folder(snapshot, "hub", called)


def _revisions(refs: Path) -> dict[str, str]:
    """Return the branch or tag of each commit that has one."""
    found = {}
    for name in sorted(_children(refs), key=lambda name: (name != "main", name), reverse=True):
        commit = read_start(refs / name, _SMALL_BYTES).decode("ascii", "replace").strip()
        if _COMMIT.fullmatch(commit):
            found[commit] = name
    return found


def _ollama_models(store: Path) -> Iterator[Model]:
    """Yield the models in an ollama store: ``MODEL:TAG``, or ``MODEL`` for the tag ``latest``."""
    for folder in folders(store / "manifests"):
        parts = folder.name.split("/")
        if len(parts) != 3:
            continue
        for tag in folder.files:
            _, namespace, model = parts
            layers = _ollama_layers(folder.path / tag)
            blob = next((d for kind, d in layers if kind == _OLLAMA_MODEL), None)
            if blob is None or read_start(path := store / "blobs" / blob, 4) != GGUF_MAGIC:
                continue
            name = model if namespace == "library" else f"{namespace}/{model}"
            n_bytes, changed = measure([path])
            yield Model(
                name if tag == "latest" else f"{name}:{tag}",
                path,
                "GGUF",
                _ollama_quantization(store, layers),
                n_bytes,
                "ollama",
                changed,
                (path,),
                (f"{name}:{tag}", f"{folder.name}:{tag}"),
            )


def _ollama_layers(manifest: Path) -> list[tuple[str, str]]:
    """Return media type and file name of the blobs in a manifest."""
    table = _read_json(manifest)
    layers = table.get("layers")
    found = []
    for layer in [table.get("config"), *(layers if isinstance(layers, list) else [])]:
        if not isinstance(layer, dict):
            continue
        kind, digest = layer.get("mediaType"), layer.get("digest")
        if isinstance(kind, str) and isinstance(digest, str) and (d := _DIGEST.fullmatch(digest)):
            found.append((kind, f"sha256-{d[1]}"))
    return found


def _ollama_quantization(store: Path, layers: list[tuple[str, str]]) -> str:
    for kind, blob in layers:
        if kind.endswith("image.v1+json"):
            value = _read_json(store / "blobs" / blob).get("file_type")
            return value if isinstance(value, str) and len(value) < 20 else ""
    return ""


def _children(folder: Path) -> list[str]:
    """Return the sorted names in a folder; empty if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in itertools.islice(entries, _MAX_ENTRIES))
    except (OSError, ValueError):
        return []


def _read_json(path: Path) -> dict[str, object]:
    """Read the object in a small JSON file; empty if there is none."""
    try:
        value = parse_json(read_start(path, _SMALL_BYTES).decode())
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
