"""Requests to a server, and the objects that it answers with."""

import asyncio
import json
import os
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from llama_chat import __version__
from llama_chat.documents import parse_json
from llama_chat.endpoint.address import Address
from llama_chat.endpoint.answers import Hidden
from llama_chat.endpoint.event_stream import EventStream, StreamEvent
from llama_chat.endpoint.refusals import Refusal, plain, read_refusal
from llama_chat.errors import LlamaChatError, counted

if TYPE_CHECKING:
    import httpx2

MAX_ANSWER_BYTES = 2**28
"""Size limit of an answer as it is sent, with all log-probabilities."""

_MAX_BODY_BYTES = 8 * 2**20
"""Size limit of an answer that is no stream."""

_MAX_ERROR_BYTES = 2**16
"""Bytes that are read of an error."""

_TRIES = 4
"""Limit on the attempts at a request, unless the server asks to wait."""

_MAX_WAIT_S = 60.0
"""Longest total wait for a server that asks for later retries."""

_LEAST_WAIT_S = 1.0
"""Least wait asked for by the server that allows more than ``_TRIES`` attempts."""

_REFUSED_WAITS_S = (0.2, 0.5, 1.0)
"""Waits between attempts if no server listens: it may be starting."""

_AFTER_END_S = 5.0
"""Longest wait for what may follow the last part of an answer: the counts, and the end."""

_REDIRECTS = (301, 302, 303, 307, 308)
_KEPT_REDIRECTS = (307, 308)
"""Statuses of redirects that keep method and body of a request."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Longest waits in seconds."""

    connect_s: float
    """For a connection."""
    silence_s: float
    """For the first part of an answer, and for each of the others."""


class RefusedRequest(Exception):
    """The server has answered with an error, and done nothing."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


class Client:
    """Sender of requests to one address, and to no other."""

    def __init__(self, address: Address, key: str | None, timeouts: Timeouts) -> None:
        """Send to ``address``.

        Args:
            address: where the server is.
            key: the key for it.
            timeouts: longest waits.
        """
        self.address = address
        self.timeouts = timeouts
        self.key = key
        """The key; messages never contain it, unless it is as short as a word."""

    def open(self) -> "httpx2.AsyncClient":
        """Return connections, to be used in the block of one event loop."""
        import httpx2

        headers = {"User-Agent": f"llama-chat/{__version__}", "Accept-Encoding": "identity"}
        if self.key is not None:
            headers["Authorization"] = f"Bearer {self.key}"
        socket = self.address.socket
        timeout = httpx2.Timeout(
            self.timeouts.silence_s, connect=self.timeouts.connect_s, read=None, pool=None
        )
        return httpx2.AsyncClient(
            headers=headers,
            timeout=timeout,
            verify=_trust() if self.address.is_encrypted else _no_trust(),
            transport=httpx2.AsyncHTTPTransport(uds=socket) if socket else None,
            limits=httpx2.Limits(max_connections=None),
            trust_env=not self.address.is_here,  # proxies
        )

    async def get(self, route: str) -> Any:
        """Return the JSON that a route answers with.

        Raises:
            RefusedRequest: if it is an error.
            LlamaChatError: if there is no answer, or it is not JSON.
        """
        async with (
            self.open() as connections,
            self._answered(connections, "GET", route, None, no_notice) as response,
        ):
            return await self._whole(response)

    async def stream(
        self,
        connections: "httpx2.AsyncClient",
        route: str,
        body: dict[str, Any],
        notify: Callable[[str], None],
        is_complete: Callable[[], bool] = lambda: False,
    ) -> AsyncGenerator[Any]:
        """Post a request, and yield the JSON values of the stream that answers it.

        If the server does not stream, its one value is yielded. Once ``is_complete`` is true, the
        end of the stream is not waited for long.

        Raises:
            RefusedRequest: if the answer is an error.
            ConnectionError: if the connection is lost, or the server is silent too long.
            LlamaChatError: if there is no answer, or it cannot be read.
        """
        async with self._answered(connections, "POST", route, body, notify) as response:
            kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
            if kind == "application/json":
                yield await self._whole(response)
                return
            if kind not in ("text/event-stream", ""):
                raise self._wrong(f"it answers with {plain(self.hide(kind), 40)}")
            events, size, loop = EventStream(), 0, asyncio.get_running_loop()
            parts = aiter(response.aiter_raw())
            deadline = self._deadline()
            while (data := await self._next(parts, deadline)) is not None:
                size += len(data)
                if size > MAX_ANSWER_BYTES:
                    raise self._wrong(f"its answer is larger than {MAX_ANSWER_BYTES >> 20} MiB")
                try:
                    for event in events.feed(data):
                        if event.data.strip() == "[DONE]":
                            return
                        yield _value_of(event)
                        if is_complete():
                            deadline = min(deadline, loop.time() + _AFTER_END_S)
                        else:
                            deadline = self._deadline()
                except ValueError as error:
                    raise self._wrong(f"a part of its answer cannot be read ({error})") from None
            raise ConnectionError("the stream ended early")

    def _deadline(self) -> float:
        """Return the deadline of the next complete event; partial data does not extend it."""
        return asyncio.get_running_loop().time() + self.timeouts.silence_s

    async def _next(self, parts: AsyncIterator[bytes], deadline: float) -> bytes | None:
        """Return the next bytes of a body; None at its end."""
        import httpx2

        try:
            async with asyncio.timeout_at(deadline):
                return await anext(parts, None)
        except TimeoutError:
            raise ConnectionError(self._silence) from None
        except (httpx2.TransportError, httpx2.StreamError):
            raise ConnectionError("the connection was lost") from None

    async def _whole(self, response: "httpx2.Response") -> Any:
        data = await self._read(response, _MAX_BODY_BYTES)
        if len(data) > _MAX_BODY_BYTES:
            raise self._wrong(f"its answer is larger than {_MAX_BODY_BYTES >> 20} MiB")
        try:
            return parse_json(data.decode("utf-8", "replace"))
        except ValueError as error:
            raise self._wrong(f"its answer cannot be read ({error})") from None

    async def _read(self, response: "httpx2.Response", limit: int) -> bytes:
        """Return a body; if it is too large, a little more than ``limit`` bytes of it."""
        data, parts, deadline = bytearray(), aiter(response.aiter_raw()), self._deadline()
        while len(data) <= limit and (part := await self._next(parts, deadline)) is not None:
            data += part
        return bytes(data)

    @asynccontextmanager
    async def _answered(
        self,
        connections: "httpx2.AsyncClient",
        method: str,
        route: str,
        body: dict[str, Any] | None,
        notify: Callable[[str], None],
    ) -> AsyncIterator["httpx2.Response"]:
        """Send a request, with retries where they are safe, and open its answer."""
        waited, url = 0.0, self.address.url + route
        n_failed = 0
        while n_failed < _TRIES:
            n_failed += 1
            try:
                response = await self._send(connections, method, url, body)
            except _NobodyListens as error:
                wait = _REFUSED_WAITS_S[min(n_failed, len(_REFUSED_WAITS_S)) - 1]
                if n_failed == _TRIES:
                    raise error.reported from None
                await asyncio.sleep(wait)
                continue
            try:
                if response.status_code in _REDIRECTS:
                    url = self._redirected(response)
                    continue
                if response.is_success:
                    self._check_encoding(response)
                    yield response
                    return
                refusal = await self._refusal(response)
            finally:
                await response.aclose()
            asked = refusal.retry_after_s
            if not refusal.is_temporary or asked is None or n_failed == _TRIES:
                raise RefusedRequest(refusal)
            waited += asked
            if waited > _MAX_WAIT_S:
                raise RefusedRequest(refusal)
            if asked >= _LEAST_WAIT_S:
                n_failed = 0
            if asked >= 1:
                notify(f"the server asks to wait {counted(round(asked), 'second')}")
            await asyncio.sleep(asked)
        raise self._wrong("it redirects again and again")

    async def _send(
        self,
        connections: "httpx2.AsyncClient",
        method: str,
        url: str,
        body: dict[str, Any] | None,
    ) -> "httpx2.Response":
        """Send a request once, and return the answer as soon as its headers are there."""
        import httpx2

        what, advice = self.address.what, "check the address, and that the server runs"
        data = None if body is None else json.dumps(body).encode()
        headers = {} if body is None else {"Content-Type": "application/json"}
        request = connections.build_request(method, url, content=data, headers=headers)
        try:
            async with asyncio.timeout(self.timeouts.connect_s + self.timeouts.silence_s):
                return await connections.send(request, stream=True)
        except httpx2.ConnectTimeout:
            why = f"no connection within {self.timeouts.connect_s:g} s"
            raise LlamaChatError(what, why, advice) from None
        except (TimeoutError, httpx2.TimeoutException):
            advice = "raise --endpoint-timeout, or try again"
            raise LlamaChatError(what, self._silence, advice) from None
        except httpx2.ConnectError as error:
            causes = list(_causes(error))
            if any(isinstance(cause, ssl.SSLError) for cause in causes):
                why = f"no secure connection ({plain(str(causes[-1]), 100)})"
                advice = "check the URL; SSL_CERT_FILE names other certificates to trust"
                raise LlamaChatError(what, why, advice) from None
            reported = LlamaChatError(what, f"no connection ({_reason(causes)})", advice)
            if any(isinstance(c, ConnectionRefusedError | FileNotFoundError) for c in causes):
                raise _NobodyListens(reported) from None
            raise reported from None
        except (httpx2.TransportError, httpx2.InvalidURL) as error:
            why = f"no answer ({plain(str(error) or type(error).__name__, 100)})"
            raise LlamaChatError(what, self.hide(why), advice) from None

    def _redirected(self, response: "httpx2.Response") -> str:
        """Return the URL that a request is redirected to, if it is at the same server.

        Raises:
            LlamaChatError: if it is another, which must not get the key or the conversation.
        """
        import httpx2

        try:
            here = response.url
            there = here.join(response.headers.get("Location", ""))
            same = (there.scheme, there.host, there.port) == (here.scheme, here.host, here.port)
            shown = self.hide(f"{there.scheme}://{there.host}")
        except (httpx2.InvalidURL, ValueError):
            same, shown = False, "nowhere"
        if same and response.status_code in _KEPT_REDIRECTS:
            return str(there)
        why = f"it redirects to {plain(shown, 80)}" + (" for another method" if same else "")
        raise LlamaChatError(self.address.what, why, "give the URL of the server itself")

    async def _refusal(self, response: "httpx2.Response") -> Refusal:
        try:
            body = await self._read(response, _MAX_ERROR_BYTES)
        except ConnectionError:
            body = b""
        wait = response.headers.get("Retry-After", "")
        return read_refusal(response.status_code, body[:_MAX_ERROR_BYTES], wait, self.hide)

    def _check_encoding(self, response: "httpx2.Response") -> None:
        coding = response.headers.get("Content-Encoding", "identity")
        if coding.strip().lower() != "identity":
            raise self._wrong("its answer is compressed, which was not asked for")

    def _wrong(self, why: str) -> LlamaChatError:
        advice = "check that the URL is that of an OpenAI-compatible server"
        return LlamaChatError(self.address.what, why, advice)

    def hide(self, text: str) -> str:
        """Return text of the server without the key."""
        return Hidden(self.key).whole(text)

    @property
    def _silence(self) -> str:
        return f"it was silent for {self.timeouts.silence_s:g} s"


def _value_of(event: StreamEvent) -> Any:
    """Return the JSON value of an event; that of an error has ``error`` for a key.

    Raises:
        ValueError: if it is not JSON.
    """
    if event.name != "error":
        return parse_json(event.data)
    try:
        found = parse_json(event.data)
    except ValueError:
        found = event.data
    return found if isinstance(found, dict) and "error" in found else {"error": found}


class _NobodyListens(Exception):
    """No server listens at the address, or not yet."""

    def __init__(self, reported: LlamaChatError) -> None:
        super().__init__()
        self.reported = reported


def _causes(error: BaseException) -> list[BaseException]:
    """Return an error and what caused it, the last of several attempts included."""
    found: list[BaseException] = []
    left: list[BaseException | None] = [error]
    while left and len(found) < 32:
        each = left.pop(0)
        if each is not None and each not in found:
            found.append(each)
            left += [each.__cause__, each.__context__]
            left += each.exceptions if isinstance(each, BaseExceptionGroup) else ()
    return found


def _reason(causes: list[BaseException]) -> str:
    """Return the words of the operating system about a failed connection."""
    for cause in reversed(causes):
        if isinstance(cause, OSError) and cause.errno is not None and cause.errno > 0:
            return os.strerror(cause.errno).lower()
        if isinstance(cause, OSError) and cause.strerror:  # of a name that is not known
            return plain(cause.strerror.lower(), 100)
    return plain(str(causes[0]) or type(causes[0]).__name__, 100)


def no_notice(line: str) -> None:
    """Ignore progress; the default callback."""


@lru_cache
def _trust() -> ssl.SSLContext:
    """Return the TLS context, which takes time to create."""
    import httpx2

    return httpx2.create_ssl_context()


@lru_cache
def _no_trust() -> ssl.SSLContext:
    """Return a TLS context that accepts no certificate, for plain HTTP."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
