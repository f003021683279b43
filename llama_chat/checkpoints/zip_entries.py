"""Entries of a zip archive of plain bytes, located without reading these.

The format: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT.
"""

import mmap
import struct
import zipfile
from itertools import pairwise
from typing import NamedTuple

from llama_chat.errors import ModelError
from llama_chat.gates import FETCH_AGAIN

_MAX_DIRECTORY = 2**20
"""Limit on the bytes of the list of entries; that of the largest model takes 0.1 MB."""

_HEADER = struct.Struct("<4s2xHH8xII2H")
"""Header of an entry, without version, time and checksum."""

_ENCRYPTED, _SIZES_FOLLOW = 1, 8
"""Flags of an entry; the sizes follow its bytes if they are not in its header."""

_SIZE_ELSEWHERE = 0xFFFFFFFF
"""Size of an entry whose size does not fit in 32 bits."""


class Entry(NamedTuple):
    """Bytes of an entry: their beginning, end and CRC-32."""

    begin: int
    end: int
    checksum: int

    @property
    def n_bytes(self) -> int:
        """Size in bytes."""
        return self.end - self.begin


def locate_entries(mapped: mmap.mmap, what: str) -> dict[str, Entry]:
    """Locate the entries of the archive ``what`` by name.

    Raises:
        ModelError: if they are compressed or overlap, if two have the same name, or if the list of
            entries contradicts their headers.
        Exception: of any other type if the archive is damaged.
    """
    with zipfile.ZipFile(_ListOnly(mapped)) as archive:
        listed = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
    if any(i.compress_type != zipfile.ZIP_STORED or i.flag_bits & _ENCRYPTED for i in listed):
        raise ModelError(what, "its parts are compressed or encrypted", FETCH_AGAIN)
    entries = {info.orig_filename: _locate(info, mapped, what) for info in listed}
    if len(entries) < len(listed):
        raise ModelError(what, "two parts of it have the same name", FETCH_AGAIN)
    for info, following in pairwise(listed):
        if entries[info.orig_filename].end > following.header_offset:
            raise ModelError(what, "its parts overlap", FETCH_AGAIN)
    return entries


def _locate(listed: zipfile.ZipInfo, mapped: mmap.mmap, what: str) -> Entry:
    """Locate the bytes of an entry, which are followed by another record."""
    size, name = listed.file_size, listed.orig_filename
    header = _HEADER.unpack_from(mapped, listed.header_offset)
    signature, flags, method, *sizes, n_name, n_extra = header
    named = listed.header_offset + _HEADER.size
    begin = named + n_name + n_extra
    if flags & _SIZES_FOLLOW or _SIZE_ELSEWHERE in sizes:
        sizes = [size, size]
    stated = signature, flags, method, mapped[named : named + n_name], *sizes
    expected = b"PK\3\4", listed.flag_bits, listed.compress_type, name.encode(), size, size
    inside = listed.header_offset >= 0 and mapped[begin + size : begin + size + 2] == b"PK"
    if stated != expected or listed.compress_size != size or not inside:
        why = f"its part {name[:60]!r} is not as its list of parts says"
        raise ModelError(what, why, FETCH_AGAIN)
    return Entry(begin, begin + size, listed.CRC)


class _ListOnly:
    """File for ``zipfile``, which reads only the list of entries from it; its size is limited."""

    def __init__(self, mapped: mmap.mmap) -> None:
        self._mapped = mapped

    def seek(self, offset: int, whence: int = 0, /) -> int:
        self._mapped.seek(offset, whence)  # type: ignore[arg-type] # zipfile gives 0 and 2
        return self._mapped.tell()

    def tell(self) -> int:
        return self._mapped.tell()

    def read(self, n_bytes: int | None = -1, /) -> bytes:
        if n_bytes is not None and n_bytes > _MAX_DIRECTORY:
            raise ValueError("longer than the list of any model")
        return self._mapped.read(n_bytes)
