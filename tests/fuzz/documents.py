"""Mutations of JSON: of its values and keys, and of the text."""

import json
from collections.abc import Sequence
from functools import cache
from random import Random

from tests.fuzz.archives import mutate_bytes

VALUES: tuple[object, ...] = (
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        3,
        7,
        2**20,
        2**20 - 1,
        2**31,
        2**63,
        2**70,
        -(2**63),
        0.5,
        1e308,
        -0.0,
    ),
    *("", "a", "x" * 5000, "\udc00", "\x1b]0;t\x07", "\x00", "\n", "🦙", "../../etc/passwd"),
    *("</s>", "<|im_start|>", "[INST]", "user", "F32", "BPE", "llama"),
    *([], [[]], [None], [1, "a"], {}, {"a": {}}, {"": 0}),
)
"""Values in place of others."""

_RAW = (
    *("NaN", "-Infinity", "1e999", "1" * 5000, "-0", "0x1", "tru", "'a'", "\x00", '"\\ud800"'),
    *("[" * 100_000, '{"a":' * 20_000, "[" * 500 + "]" * 500, '"\n"', "[1,]", '{"a":1,"a":2}'),
    *("[{}]" * 3, "1 2", "", "," * 50, '"' + "\\u0000" * 20 + '"', "1e-999", "0" * 3 + "1"),
)
"""Texts in place of values, most of them no JSON."""

_HOLE = "\ue000hole\ue000"


def mutate_json(data: bytes, random: Random, names: Sequence[str] = ()) -> bytes:
    """Change values and keys of a JSON text, or rarely its bytes.

    Args:
        data: a good text.
        random: makes all choices.
        names: keys to add.
    """
    if random.random() < 0.1:
        return mutate_bytes(data, random)
    value = _parsed(data)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        value = changed(value, random, names)
    text = json.dumps(value, ensure_ascii=random.random() < 0.5)
    if _HOLE[0] in text or "\\ue000" in text:
        raw = random.choice(_RAW)
        for hole in (json.dumps(_HOLE), f'"{_HOLE}"'):
            text = text.replace(hole, raw, 1)
    found = text.encode("utf-8", "surrogatepass")
    return mutate_bytes(found or b" ", random) if random.random() < 0.05 else found


@cache
def _parsed(data: bytes) -> object:
    return json.loads(data)


def changed(value: object, random: Random, names: Sequence[str] = ()) -> object:
    """Return a copy of a JSON value in which one part is another."""
    if isinstance(value, dict) and value and random.random() < 0.9:
        return _changed_object(value, random, names)
    if isinstance(value, list) and value and random.random() < 0.8:
        return _changed_list(value, random, names)
    if isinstance(value, int | float) and random.random() < 0.5:
        near = (value + 1, value - 1, -value, value * 2, value / 3, value * 2**32, str(value))
        return random.choice(near)
    if isinstance(value, str) and random.random() < 0.3:
        at = random.randrange(len(value) + 1)
        return random.choice((value[:at], value[at:], value + value, value.swapcase()))
    return _HOLE if random.random() < 0.15 else random.choice(VALUES)


def _changed_object(value: dict[str, object], random: Random, names: Sequence[str]) -> object:
    name = random.choice(list(value))
    match random.randrange(12):
        case 0:
            return {other: each for other, each in value.items() if other != name}
        case 1:
            new = random.choice([*names, name + "x", name.upper(), "", "\x1b", name[:-1]])
            return {**value, new: value[name]}
        case 2:
            new = random.choice([*names, name])
            return {**value, new: random.choice((*VALUES, _HOLE))}
    return {**value, name: changed(value[name], random, names)}


def _changed_list(value: list[object], random: Random, names: Sequence[str]) -> object:
    i = random.randrange(len(value))
    match random.randrange(12):
        case 0:
            return [*value[:i], *value[i + 1 :]]
        case 1:
            return [*value[:i], value[i], *value[i:]]
        case 2:
            return value[: i + 1] * random.choice((2, 3, 50))
        case 3:
            return value[i:] + value[:i]
    return [*value[:i], changed(value[i], random, names), *value[i + 1 :]]


def mutate_lines(data: bytes, random: Random, names: Sequence[str] = ()) -> bytes:
    """Change lines of JSON, or their order."""
    lines = data.splitlines(keepends=True)
    for _ in range(random.choice((1, 1, 2, 4))):
        i = random.randrange(len(lines))
        match random.randrange(8):
            case 0:
                del lines[i]
            case 1:
                lines.insert(i, random.choice(lines))
            case 2:
                lines[i] = mutate_bytes(lines[i], random)
            case 3:
                lines = lines[i:] + lines[:i]
            case _:
                lines[i] = _mutated_line(lines[i], random, names)
        lines = lines or [b"{}\n"]
    return b"".join(lines)


def _mutated_line(line: bytes, random: Random, names: Sequence[str]) -> bytes:
    try:
        return mutate_json(line, random, names).replace(b"\n", b"") + b"\n"
    except (ValueError, RecursionError):  # it was changed before
        return mutate_bytes(line, random)
