"""Hashes by which publishers and stores know a file; the kind is told by the length."""

import hashlib
import re

DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
"""Hash by which a hub knows a file: its SHA-256, or the SHA-1 of git."""


def hasher(digest: str, n_bytes: int) -> "hashlib._Hash":
    """Return a new hash object for a file of ``n_bytes`` that should have ``digest``.

    Args:
        digest: SHA-256, the SHA-1 by which git knows a file, or MD5.
        n_bytes: size of the file, which is a part of what git hashes.
    """
    match len(digest):
        case 32:
            return hashlib.md5(usedforsecurity=False)
        case 40:
            return hashlib.sha1(b"blob %d\0" % n_bytes, usedforsecurity=False)
    return hashlib.sha256()
