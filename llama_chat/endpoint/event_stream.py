"""Parsing of event streams, https://html.spec.whatwg.org/multipage/server-sent-events.html."""

from collections.abc import Iterator
from dataclasses import dataclass

MAX_EVENT_BYTES = 4 * 2**20
"""Size limit of one event, far above a token with its log-probabilities."""


_DONE = b"[DONE]"


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """An event of a stream."""

    name: str
    """Its kind; empty for the usual one."""
    data: str


class EventStream:
    """Events of a stream, from its bytes as they arrive."""

    def __init__(self, max_bytes: int = MAX_EVENT_BYTES) -> None:
        """Begin before the first byte.

        Args:
            max_bytes: size limit of one event.
        """
        self._max_bytes = max_bytes
        self._rest = bytearray()
        """Beginning of a line."""
        self._data: list[bytes] = []
        self._name = b""
        self._size = 0
        self._is_first = True
        self._ended_in_cr = False

    def feed(self, data: bytes) -> Iterator[StreamEvent]:
        """Yield each event that ``data`` completes.

        Bytes that are not UTF-8 become U+FFFD, as the standard says. The mark of OpenAI that ends a
        stream is complete with its line: some servers send no more, and keep the connection.

        Raises:
            ValueError: if an event is too large; the message says so.
        """
        if self._ended_in_cr:
            data = data.removeprefix(b"\n")
        self._ended_in_cr = data.endswith(b"\r")
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        self._rest += data
        if b"\n" not in data:
            self._check(len(self._rest))
            return
        *lines, rest = bytes(self._rest).split(b"\n")
        self._rest = bytearray(rest)
        for line in lines:
            if self._is_first:
                line, self._is_first = line.removeprefix(b"\xef\xbb\xbf"), False
            if line:
                self._add(line)
            is_end = not line or self._data == [_DONE]
            if is_end and self._data:
                yield StreamEvent(_text(self._name), _text(b"\n".join(self._data)))
            if is_end:
                self._data, self._name, self._size = [], b"", 0
        self._check(len(self._rest))

    def _add(self, line: bytes) -> None:
        self._check(len(line))
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
            self._size += len(value) + 1
        elif name == b"event":
            self._name = value.removeprefix(b" ")

    def _check(self, n_bytes: int) -> None:
        if self._size + n_bytes > self._max_bytes:
            raise ValueError(f"an event is larger than {self._max_bytes >> 10} KiB")


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")
