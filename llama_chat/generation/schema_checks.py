"""Refusals of JSON schemas that llguidance accepts without enforcing them."""

from collections.abc import Iterator, Mapping
from decimal import Decimal
from math import isfinite
from typing import Any

_DIGITS, _PLACES = 15, 22
"""Digits, and places after the point, of a fraction that the library reads without rounding."""

_MAPS = frozenset({"properties", "patternProperties", "$defs", "definitions"})
"""Keywords whose values are schemas by their names."""

_VALUES = frozenset({"const", "default", "enum", "examples"})
"""Keywords whose values are no schemas."""


def check_schema(schema: Mapping[str, Any]) -> None:
    """Check what the library does not.

    Raises:
        ValueError: if a part of the schema would not be enforced; the message says which.
    """
    if (number := _inexact_number(schema)) is not None:
        raise ValueError(f"{number} has too many digits to be kept exactly")
    for parts in _schemas(schema):
        if (number := _uncounted(parts)) is not None:
            why = "keys that are not required may be repeated"
            raise ValueError(f"minProperties {number} cannot be enforced, since {why}")


def _inexact_number(schema: object) -> float | None:
    """Return a number in a schema of which the library would round the last digits."""
    left = [schema]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            left += value.values()
        elif isinstance(value, list | tuple):
            left += value
        elif isinstance(value, int | float) and not _is_exact(value):
            return value
    return None


def _is_exact(number: float) -> bool:
    """True if the library keeps a number as it is; what is not finite is not JSON."""
    if isinstance(number, int):
        return abs(number) <= 2**53
    if not isfinite(number):
        return True
    _, digits, exponent = Decimal(repr(number)).normalize().as_tuple()
    return len(digits) <= _DIGITS and int(exponent) >= -_PLACES and abs(number) <= 2**53


def _schemas(schema: Mapping[str, Any]) -> Iterator[list[Mapping[str, Any]]]:
    """Yield each schema within one, together with those of its ``allOf``."""
    left: list[object] = [schema]
    while left:
        value = left.pop()
        if isinstance(value, list | tuple):
            left += value
        elif isinstance(value, Mapping):
            parts = [value]
            for part in parts:  # which grow
                parts += [each for each in _list(part, "allOf") if isinstance(each, Mapping)]
            yield parts
            for keyword, inner in (item for part in parts for item in part.items()):
                if keyword in _MAPS and isinstance(inner, Mapping):
                    left += inner.values()
                elif keyword != "allOf" and keyword not in _VALUES:
                    left.append(inner)


def _uncounted(parts: list[Mapping[str, Any]]) -> int | None:
    """Return a ``minProperties`` that repetitions of one key could satisfy.

    The library counts the keys that are written. Required keys are written once, and a further
    one is a different key.
    """
    closed = (part for part in parts if part.get("additionalProperties") is False)
    if any(not part.get("patternProperties") for part in closed):
        return None  # the library refuses it, unless it is right
    counts = [part.get("minProperties") for part in parts]
    least = max((count for count in counts if isinstance(count, int)), default=0)
    required = {key for part in parts for key in _list(part, "required") if isinstance(key, str)}
    return least if least > len(required) + 1 else None


def _list(schema: Mapping[str, Any], keyword: str) -> list[Any] | tuple[Any, ...]:
    """Return the list of a keyword; nothing if it has none."""
    found = schema.get(keyword)
    return found if isinstance(found, list | tuple) else []
