"""Continuations that are computed together, and read one after the other."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

from llama_chat.errors import LlamaChatError
from llama_chat.generation.events import Event, Finish

AnyRequest = TypeVar("AnyRequest")


class BatchReader(Generic[AnyRequest]):
    """Continuations of several prompts, computed as far as they are read."""

    def __init__(
        self,
        generate_all: Callable[[Iterator[tuple[int, AnyRequest]]], Iterator[tuple[int, Any]]],
        requests: Sequence[AnyRequest | LlamaChatError],
    ) -> None:
        """Begin with the first event that is read; an error is that of its continuation.

        Args:
            generate_all: yields the events of requests with their keys; see ``batch.generate_all``.
            requests: the requests.
        """
        self._events: list[deque[Event | LlamaChatError]] = [deque() for _ in requests]
        self._source = generate_all(
            (i, each) for i, each in enumerate(requests) if not isinstance(each, LlamaChatError)
        )
        for events, request in zip(self._events, requests, strict=True):
            if isinstance(request, LlamaChatError):
                events.append(request)

    def read(self, index: int) -> Iterator[Event]:
        """Yield the events of one of the requests, computing as far as needed.

        Raises:
            LlamaChatError: its own error.
        """
        events = self._events[index]
        while True:
            while not events:
                i, event = next(self._source)
                self._events[i].append(event)
            event = events.popleft()
            if isinstance(event, LlamaChatError):
                raise event
            yield event
            if isinstance(event, Finish):
                return
