"""Lines of a saved conversation, byte for byte: checksums, marks of saves, and what is damaged."""

import io
import itertools
import json
import zlib
from collections.abc import Iterable
from typing import Any

import pytest

from llama_chat.chat import record_lines
from llama_chat.chat.record_lines import Line, read_saves, to_lines

HEADER: dict[str, Any] = {"format": "llama-chat conversation"}


def sealed(record: dict[str, Any]) -> bytes:
    """Return the line of a record, as it is described."""
    body = json.dumps(record, ensure_ascii=False)[:-1].encode()
    return body + b', "crc32": "' + f"{zlib.crc32(body):08x}".encode() + b'"}\n'


def bare(record: object) -> bytes:
    """Return a line as programs before checksums wrote it."""
    return json.dumps(record).encode() + b"\n"


def numbered(number: int, part: int = 1, n_parts: int = 1) -> bytes:
    """Return a line of a save."""
    mark = {"part": [part, n_parts]} if n_parts > 1 else {}
    return sealed({"number": number} | mark)


def saves_of(*lines: bytes, salvage: bool = False) -> list[list[Line]]:
    return list(read_saves(io.BytesIO(b"".join(lines)), salvage=salvage))


def numbers_of(saves: Iterable[list[Line]]) -> list[list[int]]:
    """Return the numbers of the lines of each save; negative ones of damaged lines."""
    return [[line.number if line.record else -line.number for line in save] for save in saves]


def test_a_line_ends_with_the_checksum_of_all_before_it() -> None:
    records = [{"number": number, "text": "é\u2028\x1b"} for number in range(100)]
    lines = to_lines(records, as_save=False)
    assert lines == list(map(sealed, records))
    assert any(b'"crc32": "0' in line for line in lines)
    assert to_lines([{"text": "a\ud800"}], as_save=True) == [sealed({"text": "a\ufffd"})]


def test_the_lines_of_a_save_are_numbered(monkeypatch: pytest.MonkeyPatch) -> None:
    records: list[dict[str, Any]] = [{"number": number} for number in (1, 2, 3)]
    marked = [sealed(each | {"part": [part, 3]}) for part, each in enumerate(records, 1)]
    plain = list(map(sealed, records))
    assert to_lines(records, as_save=True) == marked
    assert to_lines(records, as_save=False) == plain
    pair = [sealed(each | {"part": [part, 2]}) for part, each in enumerate(records[:2], 1)]
    assert to_lines(records[:2], as_save=True) == pair
    assert to_lines(records[:1], as_save=True) == plain[:1]
    assert to_lines([], as_save=True) == []
    monkeypatch.setattr(record_lines, "_MAX_PARTS", 3)
    assert to_lines(records, as_save=True) == marked
    monkeypatch.setattr(record_lines, "_MAX_PARTS", 2)
    assert to_lines(records, as_save=True) == plain


def test_a_line_is_as_long_as_can_be_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_lines, "MAX_LINE_BYTES", 2**20)
    longest = "x" * (2**20 - len(sealed({"text": ""})))
    (line,) = to_lines([{"text": longest}], as_save=False)
    assert len(line) == 2**20
    with pytest.raises(ValueError, match=r"^a message is larger than 1 MiB$"):
        to_lines([{"text": longest + "x"}], as_save=False)
    ((first,), (second,)) = saves_of(line, line)
    assert (first.record, second.number, second.n_bytes) == (json.loads(line), 2, 2**20)
    for longer in (b" " + line, line[:-1] + b" "):  # the second has no end
        with pytest.raises(ValueError, match=r"^line 2: it is longer than 1 MiB$"):
            saves_of(line, longer)
    assert len(saves_of(line, line[:-1])) == 1


def test_a_line_is_read_with_its_place_and_its_size() -> None:
    first, second = numbered(7), numbered(8, 1, 2)
    assert saves_of(first, second, numbered(9, 2, 2)) == [
        [Line(1, len(first), json.loads(first), "", True, 1, 1)],
        [
            Line(2, len(second), json.loads(second), "", True, 1, 2),
            Line(3, len(second), json.loads(numbered(9, 2, 2)), "", True, 2, 2),
        ],
    ]


UNSEALED = [
    (bare({"number": 1}), ""),
    (bare({"crc32": "00000000", "number": 1}), "its checksum is wrong"),
    (numbered(1).replace(b'"number": 1', b'"number": 2'), "its checksum is wrong"),
    (numbered(1)[:-2] + b" }\n", "its checksum is wrong"),
    (sealed({"text": "é"}).replace("é".encode(), b"?"), "its checksum is wrong"),
]
BROKEN = [
    (b'{"text": "\xff"}\n', "it is not JSON"),
    (b"\n", "it is not JSON"),
    (b"[1]\n", "it is not a JSON object"),
    (b'{"a":' + b"[" * 10 + b"\n", "it is not JSON"),
]


@pytest.mark.parametrize(("line", "problem"), UNSEALED + BROKEN)
def test_a_line_that_is_not_as_it_was_written_says_why(line: bytes, problem: str) -> None:
    record = json.loads(line) if (line, problem) in UNSEALED else None
    (_, (read, *_), *_) = saves_of(numbered(1), line, numbered(3))
    assert read == Line(2, len(line), record, problem, False, 1, 1)


def test_a_checksum_counts_at_the_end_of_a_line_alone() -> None:
    line = numbered(1)
    for changed in (line.upper(), line[:-1] + b"\r\n", line.replace(b"}", b"}}")):
        assert not any(read.is_sealed for save in saves_of(line, changed)[1:] for read in save)


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ([1, 1], (1, 1)),
        ([2, 2], (2, 2)),
        ([3, 2], (1, 1)),
        ([0, 2], (1, 1)),
        ([1, 2**16], (1, 2**16)),
        ([2, 2**16 + 1], (1, 1)),
        ([2, 3, 4], (1, 1)),
        ([2.0, 3.0], (1, 1)),
        (["2", "3"], (1, 1)),
        ("23", (1, 1)),
        (None, (1, 1)),
    ],
)
def test_the_place_in_a_save_is_valid_or_that_of_a_line_alone(
    value: object, place: tuple[int, int]
) -> None:
    lines = [sealed({"number": 1, "part": value}), numbered(2)]
    found = [(line.part, line.n_parts) for save in saves_of(*lines) for line in save]
    assert found == [place, (1, 1)]


ONE, TWO, THREE = (numbered(number, number, 3) for number in (1, 2, 3))


@pytest.mark.parametrize(
    ("lines", "saves"),
    [
        ([], []),
        ([ONE, TWO, THREE], [[1, 2, 3]]),
        ([numbered(1), ONE, TWO], [[1]]),
        ([numbered(1), ONE, TWO, THREE[:-1]], [[1]]),
        ([ONE, TWO, ONE, TWO, THREE], [[1, 2], [3, 4, 5]]),
        ([ONE, THREE, numbered(3), numbered(4)], [[1, 2], [3], [4]]),
        ([ONE, b"\n", THREE], []),
        ([ONE, b"\n", THREE, ONE, TWO, THREE], [[1, -2, 3], [4, 5, 6]]),
        ([numbered(1), b"\n"], [[1]]),
        ([numbered(1), b"\n", b"\n", numbered(4), TWO], [[1], [-2, -3], [4]]),
        ([TWO, THREE, ONE, TWO, THREE], [[1, 2], [3, 4, 5]]),
    ],
)
def test_a_save_is_read_in_whole_unless_another_follows(
    lines: list[bytes], saves: list[list[int]]
) -> None:
    assert numbers_of(saves_of(*lines)) == saves


def test_damage_is_skipped_in_a_file_that_has_checksums_from_its_beginning() -> None:
    old, bad = bare(HEADER), b"Dear diary\n"
    for lines in ([sealed(HEADER), bad, old], [old, numbered(2), bad, old]):
        assert len(saves_of(*lines)) == len(lines)
    for lines in ([bad, old, numbered(3)], [old, bad, numbered(3)], [old, old, numbered(3), bad]):
        number = lines.index(bad) + 1
        with pytest.raises(ValueError, match=rf"^line {number}: it is not JSON$"):
            saves_of(*lines)
        found = numbers_of(saves_of(*lines, old, salvage=True))
        assert -number in itertools.chain(*found)


def test_a_file_of_damage_is_no_conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_lines, "_MAX_DAMAGED", 3)
    lines = [numbered(1), b"\n", b"\n", numbered(4), b"\n", numbered(6)]
    assert numbers_of(saves_of(*lines)) == [[1], [-2, -3], [4], [-5], [6]]
    for salvage in (False, True):
        with pytest.raises(ValueError, match=r"^line 7: it is not a JSON object$"):
            saves_of(*lines, b"0\n", numbered(8), salvage=salvage)
