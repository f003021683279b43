"""References to models on a hub, and the choice of the files to fetch."""

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from llama_chat.errors import ModelError, UsageError
from llama_chat.hub.refusals import access_token, explained, unreadable
from llama_chat.library import own_folder
from llama_chat.library.digests import DIGEST
from llama_chat.library.layouts import group_gguf, identify_folder, labels, preferred

_NAME = re.compile(
    r"(\w[\w.-]*/\w[\w.-]*?)(?::(\w[\w.-]*)|/(\w[\w./-]*\.gguf))?", re.ASCII | re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Reference:
    """A model on the hub, as the user names it."""

    repository: str
    """``ORGANISATION/NAME``."""
    choice: str
    """Quantization or path of a GGUF file; empty for the default."""
    revision: str
    """Branch, tag or commit; empty for the main branch."""

    @property
    def name(self) -> str:
        """Name of the model once it is downloaded, without its quantization."""
        return f"{self.repository}@{self.revision}" if self.revision else self.repository

    @property
    def title(self) -> str:
        """Name in error messages."""
        return f"repository {self.name!r}"

    @property
    def folder(self) -> Path:
        """Folder to store it in, one for each revision."""
        revision = f"@{quote(self.revision, safe='')}" if self.revision else ""
        return own_folder() / f"{self.repository}{revision}"


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file in a repository."""

    path: str
    size: int
    digest: str
    """Hash that the hub states."""


@dataclass(frozen=True, slots=True)
class Found:
    """Files of a repository to fetch."""

    commit: str
    files: tuple[RemoteFile, ...]
    quantizations: tuple[str, ...] = ()
    """Labels of the models if several fit, the chosen one first; else empty."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def parse(name: str, revision: str = "") -> Reference | None:
    """Parse ``ORG/NAME``, ``ORG/NAME:Q4_K_M`` or ``ORG/NAME/FILE.gguf``; None for other names."""
    if not (found := _NAME.fullmatch(name)) or ".." in name:
        return None
    return Reference(found[1], found[2] or found[3] or "", revision)


def look_up(wanted: Reference) -> Found:
    """List the files of a repository on the hub, and choose those to fetch.

    Raises:
        UsageError: if there is no such repository, revision or choice.
        ModelError: if the repository holds no usable model.
        LlamaChatError: if the hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi, constants

    try:
        with explained(wanted.title, wanted.repository):
            info = HfApi().model_info(
                wanted.repository,
                revision=wanted.revision or None,
                files_metadata=True,
                timeout=constants.HF_HUB_ETAG_TIMEOUT,
                token=access_token(),
            )
        files = {file.path: file for s in info.siblings or () if (file := _remote(s))}
        commit = info.sha if isinstance(info.sha, str) else ""
    except (AttributeError, KeyError, TypeError, ValueError):
        raise unreadable(wanted.title) from None
    if not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise unreadable(wanted.title)
    return _choose(wanted, commit, files)


def _remote(sibling: object) -> RemoteFile | None:
    """Return a file listed by the hub; None if it is hidden, or cannot be downloaded or stored."""
    path, size = getattr(sibling, "rfilename", None), getattr(sibling, "size", None)
    lfs = getattr(sibling, "lfs", None)
    digest = getattr(lfs, "sha256", None) if lfs else getattr(sibling, "blob_id", None)
    if not (isinstance(path, str) and isinstance(size, int) and isinstance(digest, str)):
        return None
    if size < 0 or not DIGEST.fullmatch(digest):
        return None
    parts = path.split("/")
    if any(part.startswith(".") or not part or "\0" in part for part in parts):
        return None
    return RemoteFile(path, size, digest)


def _choose(wanted: Reference, commit: str, files: dict[str, RemoteFile]) -> Found:
    """Choose the files of the model ``wanted``."""
    models = group_gguf(files)
    names = labels(models)
    if wanted.choice:
        fitting = [
            model
            for model, label in zip(models, names, strict=True)
            if wanted.choice.lower() in (label.lower(), model.quantization.lower())
            or wanted.choice in (model.stem + ".gguf", *model.files)
        ]
        if not fitting:
            advice = "it has " + ", ".join(names) if names else "it holds no GGUF file"
            raise UsageError(wanted.title, f"there is no {wanted.choice} in it", advice)
        return Found(commit, tuple(files[path] for path in fitting[0].files))
    in_root = identify_folder([path for path in files if "/" not in path])
    if in_root is not None and in_root[1].is_complete:
        selected = in_root[1]
        return Found(commit, tuple(files[path] for path in (*selected.config, *selected.weights)))
    if models:
        taken = preferred(models)
        label = names[models.index(taken)]
        others = (label, *(name for name in names if name != label)) if len(models) > 1 else ()
        return Found(commit, tuple(files[path] for path in taken.files), others)
    kinds = sorted({PurePosixPath(path).suffix or PurePosixPath(path).name for path in files})
    holds = "files " + ", ".join(kinds[:8]) if kinds else "nothing"
    advice = "look for one with safetensors or GGUF files"
    raise ModelError(wanted.title, f"no model that can be used here: it holds {holds}", advice)


def cached(wanted: Reference, found: Found) -> Path | None:
    """Return the path of the model in the Hugging Face cache; None unless it is complete there."""
    from huggingface_hub import try_to_load_from_cache

    places = [
        try_to_load_from_cache(wanted.repository, file.path, revision=found.commit)
        for file in found.files
    ]
    paths = [Path(place) for place in places if isinstance(place, str)]
    if len(paths) < len(places):
        return None
    return paths[0] if paths[0].suffix == ".gguf" else paths[0].parent
