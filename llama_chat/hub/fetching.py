"""Download of the files of a repository, with verification and resumption."""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from llama_chat.durable_files import is_at, open_private
from llama_chat.errors import LlamaChatError, ModelError, SaveError
from llama_chat.files import private_folder, readable_size
from llama_chat.hub.refusals import access_token, explained
from llama_chat.hub.repository import Found, Reference, RemoteFile
from llama_chat.library.digests import hasher
from llama_chat.library.downloads import record

_CHUNK = 2**20

_ADVICE = "set XDG_DATA_HOME"


def fetch_files(wanted: Reference, found: Found, report: Callable[[int, int], None]) -> Path:
    """Download and verify the missing files, and return the path of the model.

    A partially downloaded file is resumed.

    Args:
        wanted: the model that the user named.
        found: its files, from ``look_up``.
        report: called with the bytes present and their total.

    Raises:
        LlamaChatError: if the hub cannot be reached, or refuses.
        ModelError: if a file differs from what the hub announced.
        SaveError: if it cannot be stored.
    """
    folder = wanted.folder
    done = 0

    def advance(n_bytes: int) -> None:
        nonlocal done
        done += n_bytes
        report(done, found.size)

    try:
        private_folder(folder)
        _check_space(folder, found.files)
        for file in found.files:
            _fetch(wanted, found.commit, file, folder / file.path, advance)
            record(folder / file.path, found.commit, file.digest)
    except OSError as error:
        raise SaveError.at(folder, error, _ADVICE) from None
    first = folder / found.files[0].path
    return first if first.suffix.lower() == ".gguf" else folder


def _check_space(folder: Path, files: Sequence[RemoteFile]) -> None:
    """Check that the missing bytes fit on the disk."""
    missing = 0
    for file in files:
        here = [p for p in (folder / file.path, _part(folder / file.path, file)) if p.is_file()]
        missing += file.size - min(file.size, max((p.stat().st_size for p in here), default=0))
    free = shutil.disk_usage(folder).free
    if missing > free:
        needed = f"{readable_size(missing)} are needed and {readable_size(free)} are free"
        raise SaveError.at(folder, needed, _ADVICE)


def _part(target: Path, file: RemoteFile) -> Path:
    """Return the path of an incomplete ``file``, which depends on its digest too."""
    return target.with_name(f".{target.name}.{file.digest[:8]}.part")


def _parts(target: Path) -> list[Path]:
    """Return the incomplete files of ``target``, with any digest."""
    return [
        path
        for path in target.parent.iterdir()
        if path.name.startswith(f".{target.name}.") and path.suffix == ".part"
    ]


def _fetch(
    wanted: Reference,
    commit: str,
    file: RemoteFile,
    target: Path,
    advance: Callable[[int], None],
) -> None:
    """Download ``file`` to ``target`` and verify it, unless it is there."""
    if target.is_file() and target.stat().st_size == file.size:
        with target.open("rb") as present:
            if _digest_of(present, file).hexdigest() == file.digest:
                advance(file.size)
                return
    part = _part(private_folder(target.parent) / target.name, file)
    with _open_locked(part, wanted.title) as output:
        if not is_at(output.fileno(), part):  # another pull has completed it in between
            _fetch(wanted, commit, file, target, advance)
            return
        partial = _Partial(file, output, advance)
        while partial.size < file.size:
            _receive(wanted, commit, partial)
        if not partial.is_right():
            part.unlink()
            why = f"{file.path!r} is not what the hub announced"
            raise ModelError(wanted.title, why, "download it again with the same command")
        part.replace(target)
    for stale in _parts(target):
        stale.unlink(missing_ok=True)


def _open_locked(part: Path, title: str) -> BinaryIO:
    """Open and lock an incomplete file.

    Raises:
        LlamaChatError: if another program has locked it.
    """
    output = os.fdopen(open_private(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW), "r+b")
    try:
        fcntl.flock(output, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException as error:
        output.close()
        if not isinstance(error, BlockingIOError):
            raise
        why = "another pull is downloading it"
        raise LlamaChatError(title, why, "wait for that one") from None
    return output


class _Partial:
    """A file of which the beginning is stored."""

    def __init__(self, file: RemoteFile, output: BinaryIO, advance: Callable[[int], None]) -> None:
        self.file = file
        self._output = output
        self._advance = advance
        self._digest = _digest_of(output, file)
        self.size = output.tell()
        advance(self.size)

    def restart(self) -> None:
        """Discard the stored bytes."""
        self._output.seek(0)
        self._output.truncate()
        self._digest = hasher(self.file.digest, self.file.size)
        self._advance(-self.size)
        self.size = 0

    def write(self, chunk: bytes) -> None:
        """Append received bytes; those beyond the announced size are ignored."""
        chunk = chunk[: self.file.size - self.size]
        self._output.write(chunk)
        self._digest.update(chunk)
        self._advance(len(chunk))
        self.size += len(chunk)

    def is_right(self) -> bool:
        """True if all bytes are stored on the disk, and the digest is correct."""
        self._output.flush()
        os.fsync(self._output.fileno())
        return self.size == self.file.size and self._digest.hexdigest() == self.file.digest


def _digest_of(stored: BinaryIO, file: RemoteFile) -> "hashlib._Hash":
    """Return the digest of the stored bytes of ``file``, and leave ``stored`` at its end."""
    digest = hasher(file.digest, file.size)
    while chunk := stored.read(_CHUNK):
        digest.update(chunk)
    return digest


def _receive(wanted: Reference, commit: str, partial: _Partial) -> None:
    """Download the missing bytes until the file is complete or the connection breaks.

    Raises:
        LlamaChatError: if no bytes were received, or the hub refuses.
    """
    import httpx2
    from huggingface_hub import constants, get_session, hf_hub_url, hf_raise_for_status
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined] # loaded lazily

    had = partial.size
    url = hf_hub_url(wanted.repository, partial.file.path, revision=commit)
    # A compressed transfer could not be resumed.
    headers = build_hf_headers(token=access_token()) | {"Accept-Encoding": "identity"}
    if had:
        headers["Range"] = f"bytes={had}-"
    with explained(wanted.title, wanted.repository):
        try:
            with get_session().stream(
                "GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
            ) as response:
                hf_raise_for_status(response)
                if response.status_code != httpx2.codes.PARTIAL_CONTENT:
                    partial.restart()
                for chunk in response.iter_bytes():
                    partial.write(chunk)
                    if partial.size == partial.file.size:
                        return
        except httpx2.TransportError:
            # After any progress the caller requests the rest.
            if partial.size <= had:
                raise
    if partial.size <= had:
        size = readable_size(partial.file.size)
        why = f"the connection broke after {readable_size(partial.size)} of {size}"
        raise LlamaChatError(wanted.title, why, "the same command resumes it")
