"""Mutations of texts: of their bytes, and of what TOML means by them."""

import random
from collections.abc import Callable, Sequence

_LEXEMES = [
    *("[", "]", "[[", "]]", "{", "}", "=", ".", ",", "#", "\n", "\r", "\r\n", "\t", " "),
    *('"', "'", '"""', "'''", "\\", '\\"', "\\u0000", "\\ud800", "\\U0010ffff", "\\U7fffffff"),
    *("\0", "\x1b[2J", "\x7f", "\x9b31m", "\u202e", "\u2028", "\ufeff", "\ufffd", "🦙", "é" * 50),
    *("true", "nan", "-inf", "+1", "1e999", "1" * 5000, "0x" + "f" * 5000, "1_0", "1979-05-27"),
    *("1979-05-27T07:32:00Z", "{user}", "{assistant}", "</s>", "<|im_start|>", "[INST]"),
]
_NOT_UTF_8 = [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82", b"\xfe\xff"]

_MAX_BYTES = 700 * 2**10
"""Size of the largest texts, beyond any bound of TOML."""


def mutate(
    text: bytes, others: Sequence[bytes], names: Sequence[str], chosen: random.Random
) -> bytes:
    """Return ``text`` after up to eight mutations.

    Args:
        text: a good text.
        others: texts to take parts from.
        names: names of keys.
        chosen: makes all choices.
    """
    for _ in range(chosen.choice((1, 1, 2, 2, 3, 5, 8))):
        if chosen.random() < 0.5:
            change = chosen.choice(_OF_BYTES)
            text = change(text, chosen)
        else:
            line = _line(names, chosen)
            lines = text.split(b"\n")
            place = chosen.randrange(len(lines) + 1)
            lines[place : place + chosen.randrange(2)] = [line.encode("utf-8", "surrogatepass")]
            text = b"\n".join(lines)
        if chosen.random() < 0.1:
            text = _cut(text, chosen) + _cut(chosen.choice(others), chosen)
    return text[:_MAX_BYTES]


def _cut(text: bytes, chosen: random.Random) -> bytes:
    """Return a part of ``text``."""
    start, end = sorted(chosen.choices(range(len(text) + 1), k=2))
    return text[start:end]


def _flip(text: bytes, chosen: random.Random) -> bytes:
    changed = bytearray(text)
    for _ in range(chosen.randrange(1, 6) if text else 0):
        changed[chosen.randrange(len(changed))] ^= 1 << chosen.randrange(8)
    return bytes(changed)


def _insert(text: bytes, chosen: random.Random) -> bytes:
    place = chosen.randrange(len(text) + 1)
    lexemes = [each.encode() for each in _LEXEMES] + _NOT_UTF_8
    return text[:place] + chosen.choice(lexemes) + text[place:]


def _delete(text: bytes, chosen: random.Random) -> bytes:
    part = _cut(text, chosen)
    return text.replace(part, b"", 1) if part else text


def _truncate(text: bytes, chosen: random.Random) -> bytes:
    return text[: chosen.randrange(len(text) + 1)]


def _repeat(text: bytes, chosen: random.Random) -> bytes:
    """Repeat a part, mostly a few times, rarely up to the size limit and beyond."""
    place = chosen.randrange(len(text) + 1)
    part = _cut(text, chosen)[: chosen.choice((3, 30, 3000))]
    times, size = chosen.choice((2, 10, 100, 1000)), _MAX_BYTES
    if chosen.random() < 0.1:
        times = size = chosen.choice((_MAX_BYTES, _MAX_BYTES // 2, _MAX_BYTES // 10))
    return text[:place] + (part * times)[:size] + text[place:]


def _recode(text: bytes, chosen: random.Random) -> bytes:
    """Encode the text in another way, or give it other line ends."""
    decoded = text.decode("utf-8", "replace")
    other = chosen.choice(("utf-16", "utf-16-be", "latin-1", "utf-8-sig", "\r\n", "\r", "\x85"))
    if other.isspace():
        return decoded.replace("\n", other).encode()
    return decoded.encode(other, "replace")


_OF_BYTES: Sequence[Callable[[bytes, random.Random], bytes]] = (
    _flip, _insert, _insert, _delete, _truncate, _repeat, _recode,
)  # fmt: skip


def _line(names: Sequence[str], chosen: random.Random) -> str:
    """Return a line of TOML, which need not be valid."""
    key = _key(names, chosen)
    match chosen.randrange(8):
        case 0:
            return f"[{key}]"
        case 1:
            return f"[[{key}]]"
        case _:
            return f"{key} = {_value(names, chosen)}"


def _key(names: Sequence[str], chosen: random.Random) -> str:
    """Return a key, mostly of one part, rarely of thousands."""
    n_parts = chosen.choice((1, 1, 1, 1, 1, 2, 3, 15, 16, 17, 50, 20_000))
    parts = chosen.choices([*names, "a", "'#'", '"[{"', '"\\u001b"', "''"], k=min(n_parts, 50))
    return chosen.choice((".", " . ")).join(parts * (n_parts // len(parts)))


def _value(names: Sequence[str], chosen: random.Random, depth: int = 0) -> str:
    """Return a value, rarely one nested deeply."""
    inner = "1" if depth > 4 else None
    match chosen.randrange(10):
        case 0 | 1 | 2:
            return chosen.choice(_LEXEMES)
        case 3:
            return str(chosen.choice((0, 1, -1, 0.5, 2, 2**31, 2**63, 2**64, -(2**63), 1e308)))
        case 4:
            text = "".join(chosen.choices(_LEXEMES, k=chosen.randrange(5)))
            quote = chosen.choice(('"', "'", '"""', "'''"))
            return quote + text + quote
        case 5 | 6:
            item = inner or _value(names, chosen, depth + 1)
            n_items = min(chosen.choice((0, 1, 2, 3, 100)), 1 + 10_000 // (len(item) + 1))
            return "[" + ", ".join([item] * n_items) + "]"
        case 7:
            value = inner or _value(names, chosen, depth + 1)
            return "{" + f"{_key(names, chosen)} = {value}" + "}"
        case 8:
            n = chosen.choice((5, 31, 32, 33, 500, 20_000))
            opened, closed = chosen.choice((("[", "]"), ("{a=", "}"), ("[\n{a=", "}\n]")))
            return opened * n + "1" + closed * n
        case _:
            n = chosen.choice((1, 100, 10_000))
            return '"' + chosen.choice(("word ", "é", "🦙", "\\n")) * n + '"'
