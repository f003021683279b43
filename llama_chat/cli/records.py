"""Lines of stdin, each of which asks a question of its own."""

import io
import json
import os
import queue
import stat
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llama_chat.documents import parse_json
from llama_chat.errors import UsageError, reason
from llama_chat.files import MAX_PROMPT_BYTES, decode_text, open_regular
from llama_chat.terminal import streams

_AHEAD = 256
"""Lines that are read ahead of their use."""

_ABOUT = "record"


@dataclass(frozen=True, slots=True)
class Record:
    """One line: a question, and what came with it."""

    line: int
    """Number of the line, from 1 on."""
    question: str = ""
    values: Mapping[str, str] = field(default_factory=dict)
    """Texts for the slots of the prompt file."""
    keys: Mapping[str, Any] = field(default_factory=dict)
    """Fields that the answer repeats: the number of the line, and the id if the record has one."""


def read_record(number: int, data: bytes, *, as_json: bool) -> Record | None:
    """Parse a line, with its end; None if it is blank.

    A record of JSON is a text, or an object: ``question`` and ``id`` have a meaning, and every
    field is a value for slots.

    Raises:
        UsageError: if it is not UTF-8, not JSON, or has no question.
    """
    text = decode_text(io.BytesIO(data), _ABOUT, MAX_PROMPT_BYTES).strip("\r\n")
    if not text.strip():
        return None
    keys: dict[str, Any] = {"line": number}
    if not as_json:
        return Record(number, text, keys=keys)
    try:
        value = parse_json(text)
    except ValueError as error:
        raise UsageError(_ABOUT, str(error), "correct the line") from None
    if isinstance(value, str):
        value = {"question": value}
    if not isinstance(value, dict):
        raise UsageError(_ABOUT, "neither a text nor an object", 'write {"question": "…"}')
    question = value.get("question", "")
    if not isinstance(question, str):
        raise UsageError(_ABOUT, "its question is not a text", 'write {"question": "…"}')
    if "id" in value:
        keys["id"] = _checked(value["id"])
    values = {name: _as_text(field) for name, field in value.items()}
    return Record(number, question, values, keys)


def _checked(given: object) -> object:
    """Return an id that the answer can repeat as JSON.

    Raises:
        UsageError: if it has a number that is infinite or none, which Python's parser takes.
    """
    try:
        json.dumps(given, allow_nan=False)
    except ValueError:
        raise UsageError(_ABOUT, "its id has a number that is not finite", "correct it") from None
    return given


def _as_text(value: object) -> str:
    """Return a field as the text for a slot: JSON, unless it is a text."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


class Lines:
    """Lines of stdin, read in a thread, so that answering continues while none arrive."""

    def __init__(self) -> None:
        """Begin to read.

        Raises:
            UsageError: if stdin is closed, or a terminal.
        """
        if sys.stdin is None or streams.is_terminal(sys.stdin):
            raise UsageError("stdin", "no lines are piped to it", "ask --lines < questions.txt")
        self.total = _count_lines()
        """Number of lines; 0 if it is not known yet."""
        self._read: queue.Queue[bytes | OSError | None] = queue.Queue(_AHEAD)
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        """Put each line into the queue, and at the end None, or the error that ended it."""
        end: OSError | None = None
        try:
            # A reader of its own: Python aborts at exit if a thread holds the lock of sys.stdin.
            with open(sys.stdin.fileno(), "rb", closefd=False) as source:
                while data := source.readline(MAX_PROMPT_BYTES + 1):
                    self._read.put(data)
                    while len(data) > MAX_PROMPT_BYTES and not data.endswith(b"\n"):
                        data = source.readline(MAX_PROMPT_BYTES + 1)
        except OSError as error:
            end = error
        self._read.put(end)

    def __call__(self, is_busy: Callable[[], bool]) -> Iterator[tuple[int, bytes] | None]:
        """Yield lines with their numbers; None while none has come and there is other work.

        Raises:
            UsageError: if stdin cannot be read.
        """
        number = 0
        while True:
            try:
                data = self._read.get(block=not is_busy())
            except queue.Empty:
                yield None
                continue
            if isinstance(data, OSError):
                raise UsageError("stdin", reason(data), "pipe lines to it")
            if data is None:
                self.total = number
                return
            number += 1
            yield number, data


def _count_lines() -> int:
    """Count the lines of stdin if it is a file; 0 if not."""
    try:
        descriptor = sys.stdin.fileno()
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return 0
        n_lines, at, last = 0, os.lseek(descriptor, 0, os.SEEK_CUR), b"\n"
        while part := os.pread(descriptor, 1 << 20, at):
            n_lines, at, last = n_lines + part.count(b"\n"), at + len(part), part[-1:]
        return n_lines + (last != b"\n")
    except (OSError, ValueError):
        return 0


def answered_lines(path: Path) -> set[int]:
    """Return the numbers of the lines that a file of answers has, except those that failed.

    Lines that are no answers, such as one that was cut off, are ignored.

    Raises:
        UsageError: if it cannot be read, or has no answer at all.
    """
    what, advice = f"answers {str(path)!r}", "name the file with the answers so far"
    try:
        with open_regular(path) as file:
            numbers = [_answered(data) for data in file]
    except FileNotFoundError:
        streams.warn(f"{what}: no such file: all lines are answered")
        return set()
    except (OSError, ValueError) as error:
        raise UsageError(what, reason(error), advice) from None
    answered = {number for number in numbers if number is not None}
    if len(numbers) > 1 and not answered:
        raise UsageError(what, "it has no answers", advice)
    return answered


def _answered(data: bytes) -> int | None:
    """Return the number in an answer; None if it is an error, or no answer."""
    try:
        answer = parse_json(data.decode())
    except ValueError:
        return None
    if not isinstance(answer, dict) or "error" in answer:
        return None
    number = answer.get("line")
    return number if isinstance(number, int) else None
