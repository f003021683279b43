"""Records of downloads: which file of a hub each is, in the format of the hub's own program.

They lie in a folder beside the files (https://huggingface.co/docs/huggingface_hub/guides/download),
each with the commit, the hash and the time of a file.
"""

import time
from pathlib import Path

from llama_chat.files import private_folder, read_start, remove_empty_folders
from llama_chat.library.digests import DIGEST

_FOLDER = ".cache/huggingface/download"
_MAX_BYTES = 1000


def record(file: Path, commit: str, digest: str) -> None:
    """Record that a file was downloaded, and has the hash that the hub states.

    Raises:
        OSError: if it cannot be written.
    """
    path = _record_of(file)
    private_folder(path.parent)
    path.write_text(f"{commit}\n{digest}\n{time.time()}\n")


def forget(file: Path) -> None:
    """Remove the record of a file, if there is one, and the folders of records that are empty then.

    Raises:
        OSError: if it cannot be removed.
    """
    path = _record_of(file)
    path.unlink(missing_ok=True)
    remove_empty_folders(path.parent, file.parent)


def recorded_digest(file: Path) -> str | None:
    """Return the hash that the hub stated of a file: its SHA-256, or the SHA-1 of git."""
    lines = read_start(_record_of(file), _MAX_BYTES).decode("utf-8", "replace").splitlines()
    digest = lines[1].strip('"') if len(lines) > 1 else ""
    return digest if DIGEST.fullmatch(digest) else None


def _record_of(file: Path) -> Path:
    return file.parent / _FOLDER / f"{file.name}.metadata"
