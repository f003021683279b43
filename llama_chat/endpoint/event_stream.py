"""Parsing of event streams, https://html.spec.whatwg.org/multipage/server-sent-events.html."""

from collections.abc import Iterator

MAX_EVENT_BYTES = 4 * 2**20
"""Size limit of one event, far above a token with its log-probabilities."""


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
        self._size = 0
        self._is_first = True

    def feed(self, data: bytes) -> Iterator[str]:
        """Yield the data of each event that ``data`` completes.

        Bytes that are not UTF-8 become U+FFFD, as the standard says.

        Raises:
            ValueError: if an event is too large; the message says so.
        """
        self._rest += data
        if b"\n" not in data:
            self._check(len(self._rest))
            return
        *lines, rest = bytes(self._rest).split(b"\n")
        self._rest = bytearray(rest)
        for whole in lines:
            line = whole.removesuffix(b"\r")
            if self._is_first:
                line, self._is_first = line.removeprefix(b"\xef\xbb\xbf"), False
            if not line:
                if self._data:
                    yield b"\n".join(self._data).decode("utf-8", "replace")
                self._data, self._size = [], 0
                continue
            self._add(line)
        self._check(len(self._rest))

    def _add(self, line: bytes) -> None:
        self._check(len(line))
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
            self._size += len(value) + 1

    def _check(self, n_bytes: int) -> None:
        if self._size + n_bytes > self._max_bytes:
            raise ValueError(f"an event is larger than {self._max_bytes >> 10} KiB")
