"""Checks of every request before it is read: its origin, its key, its size and its pace."""

import asyncio
import hmac
import json
import time
from collections.abc import Callable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llama_chat.errors import unexpected
from llama_chat.server.access import AccessRules
from llama_chat.server.replies import error_body

_ASKED = "access-control-request-headers"

MAX_BODY_BYTES = 16 * 2**20

BODY_TIMEOUT_S = 30.0
"""Longest wait for more of a body."""

READER_TIMEOUT_S = 60.0
"""Longest wait for a client to read what is sent."""


class _Refused(Exception):
    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status
        self.why = why


class RequestGuard:
    """Application around another one, which gets the requests that pass the checks."""

    def __init__(
        self,
        app: ASGIApp,
        rules: AccessRules,
        log: Callable[[str], None],
        *,
        logs_bodies: bool = False,
    ) -> None:
        """Guard ``app``.

        Args:
            app: the application.
            rules: what requests over TCP must show.
            log: called with a line about each request.
            logs_bodies: add the bodies to the lines; they hold what people write.
        """
        self._app = app
        self._rules = rules
        self._log = log
        self._logs_bodies = logs_bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with an error; see the ASGI specification."""
        if scope["type"] != "http":
            return
        began, status = time.monotonic(), 0
        headers = {name.decode("latin-1"): value for name, value in scope["headers"]}
        extra: list[tuple[bytes, bytes]] = []
        data = b""

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *extra]
            try:
                await asyncio.wait_for(send(message), READER_TIMEOUT_S)
            except TimeoutError:
                raise ConnectionResetError from None

        is_over_tcp = _is_over_tcp(scope)
        try:
            if is_over_tcp:
                extra += self._check_origin(headers)
            if scope["method"] == "OPTIONS" and extra:  # a browser asks, and sends no key yet
                await _answer(send_on, 204, None)
            else:
                if is_over_tcp:
                    self._check_key(headers)
                data = await _read_body(receive, headers)
                await self._app(scope, _with_body(data, receive), send_on)
        except _Refused as refused:
            if not status:
                kind = "authentication_error" if refused.status == 401 else "invalid_request_error"
                await _answer(send_on, refused.status, error_body(refused.why, kind))
        except ConnectionResetError:
            pass
        except Exception as error:  # a bug, which the application has answered
            self._log(unexpected(error))
        finally:
            line = f"{scope['method']} {scope['path']} {status} {time.monotonic() - began:.2f} s"
            prompts = f" {data!r}" if self._logs_bodies else ""
            self._log(line + prompts)

    def _check_origin(self, headers: dict[str, bytes]) -> list[tuple[bytes, bytes]]:
        """Check where a request over TCP comes from; returns headers of the answer.

        Raises:
            _Refused: if that is not allowed.
        """
        rules = self._rules
        host = headers.get("host", b"").decode("latin-1").lower()
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if rules.hosts is not None and name not in rules.hosts:
            raise _Refused(403, "wrong Host")
        origin = headers.get("origin", b"").decode("latin-1")
        if origin and origin not in rules.origins:
            raise _Refused(403, "web pages of other origins are not served")
        if not origin:
            return []
        return [
            (b"access-control-allow-origin", origin.encode("latin-1")),
            (b"access-control-allow-headers", headers.get(_ASKED, b"authorization, content-type")),
            (b"vary", b"origin, " + _ASKED.encode()),
        ]

    def _check_key(self, headers: dict[str, bytes]) -> None:
        """Check the key of a request over TCP.

        Raises:
            _Refused: if it is another one.
        """
        wanted = self._rules.api_key
        scheme, _, key = headers.get("authorization", b"").partition(b" ")
        if wanted is not None and not (
            scheme.lower() == b"bearer" and hmac.compare_digest(key.strip(), wanted.encode())
        ):
            raise _Refused(401, "wrong API key")


def _is_over_tcp(scope: Scope) -> bool:
    """True if a request came through a port, not through the Unix socket."""
    server = scope.get("server")
    return server is not None and server[1] is not None


async def _read_body(receive: Receive, headers: dict[str, bytes]) -> bytes:
    """Read the whole body of a request.

    Raises:
        _Refused: if it is too large, or does not come.
        ConnectionResetError: if the client has gone.
    """
    length = headers.get("content-length", b"0")
    data = bytearray()
    is_too_large = not length.isdigit() or int(length) > MAX_BODY_BYTES
    while not is_too_large:
        try:
            message = await asyncio.wait_for(receive(), BODY_TIMEOUT_S)
        except TimeoutError:
            raise _Refused(408, "the body does not come") from None
        if message["type"] == "http.disconnect":
            raise ConnectionResetError
        data += message.get("body", b"")
        if not message.get("more_body", False):
            return bytes(data)
        is_too_large = len(data) > MAX_BODY_BYTES
    raise _Refused(413, f"the body is larger than {MAX_BODY_BYTES >> 20} MiB")


def _with_body(data: bytes, receive: Receive) -> Receive:
    """Return a function that receives ``data``, and later the end of the connection."""
    messages: list[Message] = [{"type": "http.request", "body": data, "more_body": False}]

    async def receive_next() -> Message:
        return messages.pop() if messages else await receive()

    return receive_next


async def _answer(send: Send, status: int, body: dict[str, Any] | None) -> None:
    data = b"" if body is None else json.dumps(body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(data))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})
