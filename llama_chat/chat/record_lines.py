"""Lines of a saved conversation: each a JSON object with a checksum, each save complete or absent.

The last member of an object is ``"crc32"``, the checksum of the bytes of its line before it. The
member ``"part": [2, 3]`` marks the second of three lines that one save appended: the file ends with
the last save of which all lines are there. Programs that know neither member ignore them; lines
without them, which such programs write, are read too.
"""

import itertools
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO

from llama_chat.documents import MAX_JSON_BYTES, parse_json
from llama_chat.tokenizers.base import without_surrogates

MAX_LINE_BYTES = MAX_JSON_BYTES
"""Longer than any message that fits in a context."""

_CHECKSUM = re.compile(rb', "crc32": "([0-9a-f]{8})"\}\n\Z')

_MAX_PARTS = 2**16
"""Most lines of a save that are marked as such: they are read together."""

_MAX_DAMAGED = 1000
"""Most lines that are skipped; a file with more is no conversation."""

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Line:
    """A complete line of a file."""

    number: int
    n_bytes: int
    record: Record | None
    """Its object; None if it is damaged beyond reading."""
    problem: str = ""
    """Reason if it is not as it was written, else empty."""
    is_sealed: bool = False
    """True if it has a checksum that is right."""
    part: int = 1
    n_parts: int = 1
    """Its place among the lines of one save, and their number."""


def to_lines(records: list[Record], *, as_save: bool) -> list[bytes]:
    """Serialize records; lone surrogates become U+FFFD, as in a tokenizer.

    Args:
        records: the records.
        as_save: True to mark them as one save, for appending to a file.

    Raises:
        ValueError: if a line is longer than ``MAX_LINE_BYTES``.
    """
    n = len(records)
    if as_save and 1 < n <= _MAX_PARTS:
        records = [record | {"part": [part, n]} for part, record in enumerate(records, 1)]
    return list(map(_seal, records))


def _seal(record: Record) -> bytes:
    """Return a record as a line with its checksum."""
    body = without_surrogates(json.dumps(record, ensure_ascii=False)).encode()[:-1]
    line = body + b', "crc32": "%08x"}\n' % zlib.crc32(body)
    if len(line) > MAX_LINE_BYTES:
        raise ValueError(f"a message is larger than {MAX_LINE_BYTES >> 20} MiB")
    return line


def read_saves(file: BinaryIO, *, salvage: bool) -> Iterator[list[Line]]:
    """Yield the lines of one save after the other, and damaged lines with those of a save.

    Lines after the last complete save, which a crash may have left, are not yielded.

    Args:
        file: the file.
        salvage: True to yield damaged lines of any file; else only those of a file of which the
            first or the second line has a checksum that is right.

    Raises:
        ValueError: if a line is damaged, and not to be yielded.
        OSError: if the file cannot be read.
    """
    lines = map(_parse, itertools.count(1), _complete_lines(file))
    first = list(itertools.islice(lines, 2))
    salvage = salvage or any(line.is_sealed for line in first)
    save: list[Line] = []
    is_whole, n_damaged = True, 0
    for line in itertools.chain(first, lines):
        if line.record is None:
            n_damaged += 1
            if not salvage or n_damaged > _MAX_DAMAGED:
                raise ValueError(f"line {line.number}: {line.problem}")
        elif line.part == 1 and save:
            yield save
            save, is_whole = [], True
        save.append(line)
        is_whole = is_whole and line.record is not None and line.part == len(save)
        if is_whole and line.part == line.n_parts:
            yield save
            save, is_whole = [], True


def _complete_lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield the lines that end with a newline; lazily, so that none is read after a bad one."""
    lines = iter(partial(file.readline, MAX_LINE_BYTES), b"")
    for number, line in enumerate(lines, 1):
        if line.endswith(b"\n"):
            yield line
        elif len(line) < MAX_LINE_BYTES:
            return
        else:
            raise ValueError(f"line {number}: it is longer than {MAX_LINE_BYTES >> 20} MiB")


def _parse(number: int, line: bytes) -> Line:
    try:
        text = line.decode()  # the parser would guess the encoding of bytes
        record = parse_json(text)
    except UnicodeDecodeError:
        return Line(number, len(line), None, "it is not JSON")
    except ValueError as error:
        return Line(number, len(line), None, str(error))
    if not isinstance(record, dict):
        return Line(number, len(line), None, "it is not a JSON object")
    checksum = _CHECKSUM.search(line)
    is_sealed = bool(checksum and int(checksum[1], 16) == zlib.crc32(line[: checksum.start()]))
    problem = "its checksum is wrong" if "crc32" in record and not is_sealed else ""
    part, n_parts = _part(record.get("part"))
    return Line(number, len(line), record, problem, is_sealed, part, n_parts)


def _part(value: object) -> tuple[int, int]:
    """Return a valid ``part`` of a record, else that of a save of one line."""
    match value:
        case [int(part), int(n_parts)] if 1 <= part <= n_parts <= _MAX_PARTS:
            return part, n_parts
    return 1, 1
