"""Hashes of the files of a model, as those who published it state them.

Meta's releases have a ``checklist.chk`` of MD5 sums. The cache of a hub names a file by its hash,
or states it beside a download; ollama names files by it; and those of the starters are known.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from llama_chat.checkpoints.fingerprint import weight_files
from llama_chat.errors import ModelError, reason
from llama_chat.files import open_regular, read_start
from llama_chat.gates import FETCH_AGAIN
from llama_chat.library.digests import DIGEST, hasher
from llama_chat.library.downloads import recorded_digest
from llama_chat.library.starter import STARTERS

_CHUNK = 2**20
_MAX_LIST = 2**16
"""Limit on the bytes of a list of hashes."""
_MAX_FILES = 1000
"""Limit on the files of a model."""

_LISTS = ("checklist.chk", "tokenizer_checklist.chk")
_LINE = re.compile(r"([0-9a-f]{32}) [ *]?(\w[\w.-]{0,200})", re.ASCII)
_OLLAMA = re.compile(r"sha256-([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Expected:
    """The hash that a file should have."""

    file: Path
    digest: str
    """Hash, as ``hasher`` takes it."""
    where: str
    """Name of the file or program that states it."""

    @property
    def n_bytes(self) -> int:
        """Size of the file; 0 if it is missing."""
        try:
            return self.file.stat().st_size
        except OSError:
            return 0

    def check(self, advance: Callable[[int], None]) -> None:
        """Compare the hash with that of the file.

        Args:
            advance: called with the bytes of each part that was read.

        Raises:
            ModelError: if it is another, or the file cannot be read.
        """
        what = repr(str(self.file))
        try:
            with open_regular(self.file) as file:
                digest = hasher(self.digest, self.n_bytes)
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
                    advance(len(chunk))
        except (OSError, ValueError) as error:
            raise ModelError(what, reason(error), "check it") from None
        if digest.hexdigest() != self.digest:
            raise ModelError(what, f"it is not the file of {self.where}", FETCH_AGAIN)


def expected_hashes(model: Path) -> list[Expected]:
    """Return the hashes that are stated of a model, a file or a folder; none if nothing is.

    Raises:
        OSError: if a folder cannot be read.
    """
    if not model.is_dir():
        return [each for part in weight_files(model) for each in _of_file(part)]
    listed = [each for name in _LISTS for each in _in_list(model / name)]
    known = {each.file for each in listed}
    files = sorted(file for file in model.iterdir() if file.is_file())[:_MAX_FILES]
    return listed + [each for file in files if file not in known for each in _of_file(file)]


def _in_list(path: Path) -> Iterator[Expected]:
    """Yield the hashes of one of Meta's lists, of files beside it."""
    for line in read_start(path, _MAX_LIST).decode("utf-8", "replace").splitlines():
        if found := _LINE.fullmatch(line.strip()):
            yield Expected(path.with_name(found[2]), found[1], path.name)


def _of_file(file: Path) -> Iterator[Expected]:
    """Yield the hash that the name or the surroundings of a file state."""
    stored = file.resolve().name  # the cache of a hub links to blobs, which are named by hashes
    for starter in STARTERS.values():
        if file.name == starter.file_name:
            yield Expected(file, starter.sha256, f"the starter {starter.title}")
            return
    if found := _OLLAMA.fullmatch(stored):
        yield Expected(file, found[1], "its name in ollama's store")
    elif DIGEST.fullmatch(stored) and file.is_symlink():
        yield Expected(file, stored, "its name in the hub's cache")
    elif stated := recorded_digest(file):
        yield Expected(file, stated, "the hub")
