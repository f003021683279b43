"""TOML and JSON of unknown origin, parsed within bounds of time and memory.

The size of a text bounds neither: 40 KB of one dotted key take gigabytes, as do many empty lists.
"""

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from llama_chat.errors import LlamaChatError, UsageError
from llama_chat.files import cache_home, private_folder, read_start, read_text, write_atomically
from llama_chat.gates import gate

Result = TypeVar("Result")

_MAX_TOML_BYTES = 512 * 2**10
"""Size limit of a TOML file, far above any settings, or examples that fit in a context."""

_MAX_PARTS = 16
"""Most parts of a dotted key: tomllib takes time and memory quadratic in their number."""

_MAX_DEPTH = 32
"""Most lists and tables within each other."""

_TOML_MARK = re.compile(r"""\"{3}|'{3}|["'#.,=\n\[\]{}]""")
"""Beginning of a text or a comment, or character that matters outside of them."""

_TOML_ENDS = {
    '"""': re.compile(r'\\.|"{3,5}', re.DOTALL),  # two more quotes may precede the end
    "'''": re.compile(r"'{3,5}"),
    '"': re.compile(r'\\.|"|(?=\n)', re.DOTALL),
    "'": re.compile(r"'|(?=\n)"),
    "#": re.compile(r"(?=\n)"),
}
"""Ends of texts and comments by their beginnings, or escapes, after which the search goes on.

No possessive groups of alternatives, in which Python before 3.11.5 can lose its place.
"""

MAX_JSON_BYTES = 8 * 2**20
"""Size limit of a JSON text, longer than any conversation that fits in a context."""

_MAX_CONTAINERS = 2**16
"""Most lists and objects of a JSON text; each takes up to 300 bytes."""

_UP_TO_CONTAINER = re.compile(r'(?:[^"\[{]++|"(?:[^"\\]++|\\.)*+")*+[\[{]', re.DOTALL)


def read_toml(
    path: Path, what: str, advice: str, *, pipes: bool = True
) -> tuple[dict[str, Any], str]:
    """Read a TOML file; see ``files.read_text`` for the arguments.

    Returns:
        its table, and its text.

    Raises:
        UsageError: about ``what``, if it cannot be read, is too large, nested too deeply, or not
            TOML.
    """
    text = read_text(path, what, advice, _MAX_TOML_BYTES, pipes=pipes)
    if is_nested_deeply(text):
        why = f"nested too deeply, over {_MAX_PARTS} parts of a key or {_MAX_DEPTH} lists"
        raise UsageError(what, why, "write it flatter")
    with gate(what, "correct it", why="not TOML: a value cannot be read", refusal=UsageError):
        try:
            return tomllib.loads(text), text
        except tomllib.TOMLDecodeError as error:
            raise UsageError(what, f"not TOML: {error}", "correct that line") from None


def is_nested_deeply(toml: str) -> bool:
    """True if a key has too many parts, or too many lists and tables are within each other.

    Texts and comments are found as ``tomllib`` finds them, up to where it would fail.
    """
    dots = depth = 0
    for mark in _marks_outside_texts(toml):
        match mark:
            case ".":
                dots += 1
            case "[" | "{":
                dots, depth = 0, depth + 1
            case "]" | "}":
                dots, depth = 0, max(depth - 1, 0)
            case "," | "=" | "\n":
                dots = 0
        if dots >= _MAX_PARTS or depth > _MAX_DEPTH:
            return True
    return False


def _marks_outside_texts(toml: str) -> Iterator[str]:
    """Yield the characters that matter; a text that is never closed is the last thing of all."""
    at = 0
    while found := _TOML_MARK.search(toml, at):
        mark, at = found[0], found.end()
        if (end := _TOML_ENDS.get(mark)) is None:
            yield mark
            continue
        while (found := end.search(toml, at)) and found[0].startswith("\\"):
            at = found.end()
        if found is None:
            return
        at = found.end()


def parse_json(text: str) -> Any:
    """Parse a JSON text.

    Raises:
        ValueError: if it is not JSON, is too large, or has too many lists and objects; the message
            says which.
    """
    if len(text) > MAX_JSON_BYTES:
        raise ValueError(f"it is larger than {MAX_JSON_BYTES >> 20} MiB")
    start = n_containers = 0
    while found := _UP_TO_CONTAINER.match(text, start):
        start, n_containers = found.end(), n_containers + 1
        if n_containers > _MAX_CONTAINERS:
            raise ValueError(f"it is made of over {_MAX_CONTAINERS} lists and objects")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON") from None


_MAX_RESULTS_BYTES = 2**16
_MAX_RESULTS = 200


def read_results(name: str, kind: type[Result]) -> dict[str, Result]:
    """Read results of earlier runs from a file of the cache folder.

    Returns:
        Values of one ``kind`` by their keys; none if the file is missing or holds anything else.
    """
    with suppress(LlamaChatError, ValueError):
        found = parse_json(read_start(cache_home() / name, _MAX_RESULTS_BYTES).decode())
        if isinstance(found, dict) and all(isinstance(value, kind) for value in found.values()):
            return found
    return {}


def write_results(name: str, results: Mapping[str, object]) -> None:
    """Write results for the next runs, if possible; of too many the oldest are dropped."""
    kept = dict(list(results.items())[-_MAX_RESULTS:])
    with suppress(LlamaChatError):
        path = private_folder(cache_home()) / name
        write_atomically(path, json.dumps(kept, indent=1).encode())
