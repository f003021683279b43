"""Mutations of binary files: GGUF, safetensors, SentencePiece and llama2.c."""

import struct
from functools import cache
from random import Random

from tests.fuzz.archives import EXTREMES, mutate_bytes
from tests.fuzz.documents import mutate_json

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value of GGUF by its type."""
_STRING, _ARRAY = 8, 9

Field = tuple[int, int]
"""Offset and size of a number."""


@cache
def _gguf_fields(data: bytes) -> tuple[list[Field], list[Field]]:
    """Locate the numbers in the header of a good file, and its entries."""
    fields, entries, at = [(4, 4), (8, 8), (16, 8)], [], 24

    def take(size: int) -> int:
        nonlocal at
        fields.append((at, size))
        at += size
        return int.from_bytes(data[at - size : at], "little")

    def skip_text() -> None:
        nonlocal at
        length = take(8)
        at += length

    n_tensors, n_values = struct.unpack_from("<2Q", data, 8)
    for _ in range(n_values):
        begin = at
        skip_text()
        kind = take(4)
        element, count = (take(4), take(8)) if kind == _ARRAY else (kind, 1)
        for _ in range(count):
            if element == _STRING:
                skip_text()
            else:
                take(_SIZES[element])
        entries.append((begin, at - begin))
    for _ in range(n_tensors):
        begin = at
        skip_text()
        for _ in range(take(4)):
            take(8)
        take(4)
        take(8)
        entries.append((begin, at - begin))
    return fields, entries


def mutate_gguf(data: bytes, random: Random) -> bytes:
    """Change numbers of the header, or remove, repeat and exchange entries, or any bytes."""
    if random.random() < 0.15:
        return mutate_bytes(data, random)
    fields, entries = _gguf_fields(data)
    if random.random() < 0.25:
        return _with_entries(data, entries, random)
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 5))):
        # Most numbers are those of long lists: the ones of other entries are chosen as often.
        near = random.choice(entries)[0]
        some = [field for field in fields[3:] if near <= field[0] < near + 120] or fields[:3]
        at, size = random.choice(random.choice((fields, fields[:3], some, some, some)))
        number = random.choice(
            (*EXTREMES, *range(15), len(data) - at - size, len(data) - at - size + 1, 10**6)
        )
        changed[at : at + size] = (number % 256**size).to_bytes(size, "little")
    return bytes(changed)


def _with_entries(data: bytes, entries: list[Field], random: Random) -> bytes:
    (at, size), (other, other_size) = random.choice(entries), random.choice(entries)
    part, counts = data[at : at + size], list(struct.unpack_from("<2Q", data, 8))
    n_values = counts[1]
    is_value = entries.index((at, size)) < n_values
    match random.randrange(5):
        case 0:  # remove
            data, step = data[:at] + data[at + size :], -1
        case 1:  # repeat
            data, step = data[:at] + part + data[at:], 1
        case 2:  # replace by another
            data, step = data[:at] + data[other : other + other_size] + data[at + size :], 0
        case 3:  # cut at an entry
            return data[:at]
        case _:  # change bytes of one
            data, step = data[:at] + mutate_bytes(part, random) + data[at + size :], 0
    if random.random() < 0.8:
        counts[is_value] += step
    return data[:8] + struct.pack("<2Q", *counts) + data[24:]


def mutate_safetensors(data: bytes, random: Random) -> bytes:
    """Change the header and keep its length right, or that length, or the data."""
    if random.random() < 0.15:
        return mutate_bytes(data, random)
    n_header = int.from_bytes(data[:8], "little")
    header, rest = data[8 : 8 + n_header], data[8 + n_header :]
    header = mutate_json(header, random, ("__metadata__", "dtype", "shape", "data_offsets"))
    length = len(header)
    match random.randrange(12):
        case 0:
            length = random.choice((*EXTREMES, len(data), len(data) - 8, length + 1, length - 1))
        case 1:
            rest = rest[: random.randrange(len(rest))]
        case 2:
            rest += bytes(random.choice((1, 8, 4096)))
        case 3:
            header += b" " * random.randrange(9)
            length = len(header)
    return (length % 2**64).to_bytes(8, "little") + header + rest


Message = list[tuple[int, int, bytes]]
"""Fields of a protobuf message: number, kind and bytes."""


@cache
def _message(data: bytes) -> Message:
    """Parse a good message."""
    found: Message = []
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    while at < len(data):
        tag = varint()
        if tag & 7 == 0:
            found.append((tag >> 3, 0, _varint(varint())))
        else:
            size = varint() if tag & 7 == 2 else {1: 8, 5: 4}[tag & 7]
            found.append((tag >> 3, tag & 7, data[at : at + size]))
            at += size
    return found


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def _encoded(message: Message) -> bytes:
    return b"".join(
        _varint(number << 3 | kind) + (_varint(len(value)) if kind == 2 else b"") + value
        for number, kind, value in message
    )


def mutate_sentencepiece(data: bytes, random: Random) -> bytes:
    """Change fields of the message, mostly those of a piece, or any bytes."""
    if random.random() < 0.15:
        return mutate_bytes(data, random)
    message = list(_message(data))
    for _ in range(random.choice((1, 1, 2, 5))):
        # The last fields are the trainer and the normalizer.
        i = random.choice((random.randrange(len(message)), len(message) - 1, len(message) - 2))
        number, kind, value = message[i]
        match random.randrange(6):
            case 0:
                del message[i]
            case 1:
                message.insert(random.randrange(len(message)), message[i])
            case 2 if kind == 2:
                message[i] = number, kind, mutate_bytes(value or b"a", random)
            case _ if kind == 2:
                message[i] = number, kind, _changed_part(value, random)
            case _:
                message[i] = number, kind, _varint(random.choice(EXTREMES))
        message = message or [(1, 2, b"")]
    return _encoded(message)


_TEXTS = (
    *(b"", b"\xff", b"\x00", b"a" * 200_000, b"\xe2\x96\x81", b"\x1b[2J", b"<s>", b"<0x41>"),
    *(b"<unk>", b"</s>", b"<0xZZ>", b"\xed\xa0\x80", "é".encode() * 100),
)


def _changed_part(value: bytes, random: Random) -> bytes:
    """Change a field of a piece, of the trainer or of the normalizer."""
    try:
        inner = list(_message(value))
    except (IndexError, KeyError):  # changed before, or a text
        return mutate_bytes(value or b"a", random)
    if not inner:
        return random.choice(_TEXTS)
    i = random.randrange(len(inner))
    number, kind, old = inner[i]
    new = {
        0: _varint(random.choice((*EXTREMES, *range(8)))),
        1: random.randbytes(8),
        2: random.choice((*_TEXTS, old[:-1])),
        5: struct.pack("<f", random.choice((0.0, -1.0, 1e38, float("nan"), float("-inf")))),
    }[kind]
    if random.random() < 0.2:
        number = random.randrange(60)
    inner[i : i + 1] = random.choice(([(number, kind, new)], [(number, kind, new)], []))
    return _encoded(inner)


def mutate_llama2c(data: bytes, random: Random) -> bytes:
    """Change the seven numbers, mostly with the size that these need, or any bytes."""
    if random.random() < 0.2:
        return mutate_bytes(data, random)
    numbers = list(struct.unpack_from("<7i", data))
    for _ in range(random.choice((1, 1, 2, 3))):
        i = random.randrange(7)
        signed = [n - 2**32 if n >= 2**31 else n for n in EXTREMES if n < 2**32]
        numbers[i] = random.choice(
            (*signed, -numbers[i], numbers[i] * 2, numbers[i] // 2, numbers[i] + 1, 3, 5)
        )
        numbers[i] = max(-(2**31), min(numbers[i], 2**31 - 1))
    header = struct.pack("<7i", *numbers)
    size = _llama2c_size(*numbers)
    if random.random() < 0.7 and 28 <= size <= 4 * 2**20:
        return (header + data[28:] + bytes(max(0, size - len(data))))[:size]
    return header + data[28 : random.choice((len(data), len(data), len(data) - 4, 27 + 1))]


def _llama2c_size(
    dim: int, hidden: int, n_layers: int, n_heads: int, n_kv: int, n_vocab: int, length: int
) -> int:
    """Compute the size of a file with these numbers, which may be nonsense."""
    head = dim // n_heads if n_heads else 0
    layer = 2 * dim + 2 * dim * n_heads * head + 2 * dim * n_kv * head + 3 * dim * hidden
    tied = 1 if n_vocab > 0 else 2
    numbers = tied * abs(n_vocab) * dim + n_layers * layer + dim + length * 2 * (head // 2)
    return 28 + 4 * numbers


def mutate_pairs(data: bytes, random: Random) -> bytes:
    """Change the tokens of a ``tokenizer.bin``, each of a score, a length and that many bytes."""
    changed = bytearray(data)
    starts, at = [], 4
    while at < len(data):
        starts.append(at)
        at += 8 + int(struct.unpack_from("<i", data, at + 4)[0])
    for _ in range(random.choice((1, 1, 2, 5))):
        at = random.choice(starts)
        number = random.choice((*EXTREMES, 0x7FC00000, 0x7F800000)) % 2**32
        where = at + 4 * random.randrange(2)
        changed[where : where + 4] = number.to_bytes(4, "little")
    return mutate_bytes(bytes(changed), random) if random.random() < 0.3 else bytes(changed)


def grown(data: bytes, random: Random, max_bytes: int) -> bytes:
    """Repeat a part of ``data`` up to a large size."""
    size = random.choice((max_bytes, max_bytes // 4, max_bytes // 32))
    start = random.randrange(len(data) + 1)
    part = data[start : start + random.choice((1, 8, 64, 4096))] or b"\0"
    times = max(0, size - len(data)) // len(part)
    return (data[:start] + part * times + data[start:])[:max_bytes]


def pair(piece: bytes, score: float) -> bytes:
    """Encode a token of a ``tokenizer.bin``."""
    return struct.pack("<fi", score, len(piece)) + piece
