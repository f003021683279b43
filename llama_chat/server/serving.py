"""The server as a process: its sockets, its idle time, its end."""

import asyncio
import logging
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from llama_chat.server.access import AccessRules
from llama_chat.server.api import Api
from llama_chat.server.prompts import Prompts
from llama_chat.server.replies import ServerClosingError
from llama_chat.server.request_guard import RequestGuard
from llama_chat.server.sockets import LOOPBACK, SocketFile
from llama_chat.server.worker import ModelWorker

_MAX_CONNECTIONS = 512

_MAX_HEADER_BYTES = 64 * 2**10

_HEADER_TIMEOUT_S = 10.0
"""Longest time until the headers of a request are there, from the connection or an answer on."""


@dataclass(frozen=True, slots=True)
class Options:
    """Addresses to listen on, and limits of time."""

    socket_file: SocketFile
    listener: socket.socket | None = None
    """That of a port; None for the socket file alone."""
    host: str = LOOPBACK[0]
    api_key: str | None = None
    origins: frozenset[str] = frozenset()
    grace_s: float = 10.0
    """Seconds that running answers have at the end."""
    idle_s: float | None = None
    """Seconds without a request after which it ends; None for never."""
    logs_prompts: bool = False


class _Protocol(H11Protocol):
    """HTTP that closes connections without a request, or with one that does not end."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_headers()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._expect_headers()

    def _expect_headers(self) -> None:
        """End the connection unless the headers of a request come in time."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(_HEADER_TIMEOUT_S, self._end_if_silent)

    def _end_if_silent(self) -> None:
        is_answering = self.cycle is not None and not self.cycle.response_complete
        if not is_answering and not self.transport.is_closing():
            self.transport.close()


class _Server(uvicorn.Server):
    """uvicorn, which lets running answers end before it closes."""

    def __init__(
        self, config: uvicorn.Config, api: Api, worker: ModelWorker, options: Options
    ) -> None:
        super().__init__(config)
        self._api = api
        self._worker = worker
        self._options = options
        self._last_request = time.monotonic()
        self._closing_since: float | None = None
        api.on_request = self._note_request

    def _note_request(self) -> None:
        self._last_request = time.monotonic()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end at a signal; a second one ends at once."""
        if self._closing_since is None:
            self._closing_since = time.monotonic()
            self._api.is_closing = True
        else:
            self.should_exit = self.force_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Called several times a second; True ends the server."""
        now = time.monotonic()
        if self._worker.n_jobs:
            self._last_request = now
        if self._closing_since is not None:
            if not self._worker.n_jobs:
                return True
            if now - self._closing_since > self._options.grace_s:
                self._worker.end_all(ServerClosingError())  # which clients get until the next tick
        idle = self._options.idle_s
        if idle is not None and now - self._last_request > idle:
            return True
        return await super().on_tick(counter)


def serve(
    worker: ModelWorker,
    prompts: Prompts,
    identity: dict[str, Any],
    options: Options,
    *,
    log: Callable[[str], None],
    on_ready: Callable[[Sequence[str]], None],
) -> None:
    """Serve until a signal, or until idle for too long.

    Args:
        worker: computes.
        prompts: encodes.
        identity: facts for ``/health``.
        options: where to listen.
        log: called with a line about each request.
        on_ready: called with the addresses, once connections are accepted.

    Raises:
        UsageError: if the socket cannot be had.
    """
    api = Api(worker, prompts, identity)
    # Others reach this machine by names that it cannot know, and need a key.
    is_local = options.host in LOOPBACK or options.api_key is None
    hosts = frozenset(LOOPBACK) if is_local else None
    rules = AccessRules(hosts, options.origins, options.api_key)
    guard = RequestGuard(api.app(), rules, log, logs_bodies=options.logs_prompts)
    config = uvicorn.Config(
        guard,
        http=_Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=_MAX_CONNECTIONS,
        h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
        timeout_graceful_shutdown=2,
    )
    logging.getLogger("uvicorn.error").disabled = True  # it writes of every malformed request
    with ExitStack() as stack:
        sockets = [stack.enter_context(options.socket_file.listening())]
        addresses = [str(options.socket_file.path)]
        if options.listener is not None:
            sockets.append(options.listener)
            host, port = sockets[-1].getsockname()[:2]
            addresses.append(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
        on_ready(addresses)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        _Server(config, api, worker, options).run(sockets=sockets)
    worker.stop()
