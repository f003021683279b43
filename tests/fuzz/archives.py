"""Mutations of files of ``torch.save``, each by a generator of random numbers."""

import io
import pickletools
import re
import zipfile
from collections.abc import Callable
from functools import cache
from random import Random

EXTREMES = (0, 1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)
"""Numbers that replace others."""

_INSTRUCTIONS = (b")", b"}", b"]", b"N", b"(", b"t", b"R", b"b", b"s", b"u", b"Q", b"\x85", b"0")
"""Instructions of a pickle that have no argument."""

_SIGNATURES = (b"PK\1\2", b"PK\3\4", b"PK\5\6")
"""First bytes of the headers of an archive: in its list, before a part, and at the end."""


def mutate(archive: bytes, random: Random) -> bytes:
    """Change an archive in one of several ways."""
    ways = (mutate_bytes, mutate_headers, mutate_parts, mutate_pickle, mutate_storage)
    return random.choice(ways)(archive, random)


def mutate_bytes(data: bytes, random: Random) -> bytes:
    """Change, cut, delete, insert or repeat bytes anywhere, more often near the ends."""
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 8))):
        n = len(changed)
        at = random.choice((random.randrange(n), random.randrange(min(n, 900)) - min(n, 900) + n))
        size = random.choice((1, 2, 4, 8))
        number = random.choice(EXTREMES) % 256**size
        run = changed[at : at + random.randrange(1, 200)]
        start, end, new = random.choice(
            (
                (at, at + 1, bytes([changed[at] ^ 1 << random.randrange(8)])),
                (at, at + size, number.to_bytes(size, "little")),
                (at, at + len(run), b""),
                (at, at, random.randbytes(size)),
                (at, at, run),
                (at, n, b""),
            )
        )
        changed[start:end] = new
        changed = changed or bytearray(1)
    return bytes(changed)


def mutate_headers(data: bytes, random: Random) -> bytes:
    """Change fields of the headers of an archive."""
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2))):
        signature = random.choice(_SIGNATURES)
        places = [found.start() for found in re.finditer(re.escape(signature), data)]
        at, size = random.choice(places) + random.randrange(4, 46, 2), random.choice((2, 4))
        number = random.choice((*EXTREMES, random.randrange(len(data)))) % 256**size
        changed[at : at + size] = number.to_bytes(size, "little")
    return bytes(changed)


def mutate_parts(data: bytes, random: Random) -> bytes:
    """Remove, rename or exchange parts, or change the bytes of one."""

    def change(parts: dict[str, bytes]) -> None:
        one, other = random.choice(list(parts)), random.choice(list(parts))
        match random.randrange(4):
            case 0:
                del parts[one]
            case 1:
                parts[one + random.choice(("0", "/", ".", "\0"))] = parts.pop(one)
            case 2:
                parts[one], parts[other] = parts[other], parts[one]
            case _:
                parts[one] = mutate_bytes(parts[one] or b"\0", random)

    return _with_parts(data, change)


def mutate_pickle(data: bytes, random: Random) -> bytes:
    """Change instructions of the pickle, or their arguments."""

    def change(parts: dict[str, bytes]) -> None:
        name = next(name for name in parts if name.endswith("/data.pkl"))
        parts[name] = _mutated_pickle(parts[name], random)

    return _with_parts(data, change)


@cache
def _instructions(data: bytes) -> list[bytes]:
    """Divide a good pickle into its instructions."""
    starts = [at for _, _, at in pickletools.genops(data)]
    ends = [*starts[1:], len(data)]
    return [data[start:end] for start, end in zip(starts, ends, strict=True)]


def _mutated_pickle(data: bytes, random: Random) -> bytes:
    instructions = list(_instructions(data))
    for _ in range(random.choice((1, 1, 2, 4))):
        at = random.randrange(len(instructions))
        number = random.choice((*EXTREMES, -1, -(2**31), -(2**63))).to_bytes(
            9, "little", signed=True
        )
        new = random.choice(
            (
                [random.choice(instructions)],
                [],
                [random.choice(_INSTRUCTIONS), instructions[at]],
                [b"\x8a\x09" + number],
                [mutate_bytes(instructions[at], random)],
            )
        )
        instructions[at : at + 1] = new
        instructions = instructions or [b"."]
    return b"".join(instructions)


def mutate_storage(data: bytes, random: Random) -> bytes:
    """Shorten or lengthen a storage."""

    def change(parts: dict[str, bytes]) -> None:
        name = random.choice([name for name in parts if "/data/" in name])
        n = len(parts[name])
        length = random.choice(
            (0, n // 4, n // 2, n * 99 // 100, n - 4, n - 1, n + 1, n + 4, 2 * n)
        )
        parts[name] = (parts[name] + bytes(n))[:length]

    return _with_parts(data, change)


@cache
def _parts(data: bytes) -> dict[str, bytes]:
    """Read all parts of a good archive."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _with_parts(data: bytes, change: Callable[[dict[str, bytes]], None]) -> bytes:
    """Change the parts of an archive, and write it again with right sizes and checksums."""
    parts = dict(_parts(data))
    change(parts)
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for name, part in parts.items():
            archive.writestr(zipfile.ZipInfo(name), part)
    return written.getvalue()
