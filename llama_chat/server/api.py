"""The routes of the server."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from llama_chat.chat.receipts import Describe
from llama_chat.errors import LlamaChatError, unexpected
from llama_chat.generation.continuation import Request as Continued
from llama_chat.generation.events import Event, Finish
from llama_chat.server.metrics import metrics_text
from llama_chat.server.prompts import Prompts
from llama_chat.server.replies import (
    Choice,
    Format,
    ServerClosingError,
    error_body,
    error_of,
)
from llama_chat.server.schema import ChatRequest, CompletionRequest, TokenizeRequest
from llama_chat.server.worker import Job, ModelWorker

Body = TypeVar("Body", bound=BaseModel)
Generation = TypeVar("Generation", ChatRequest, CompletionRequest)


_CLIENT_GONE = 499
"""Status for the log, as other servers write it; nobody reads the answer."""


class _Refused(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, body: dict[str, Any], **headers: str) -> None:
        super().__init__(status)
        self.response = JSONResponse(body, status, headers or None)


def _invalid(message: str, field: str | None = None) -> _Refused:
    return _Refused(400, error_body(message, "invalid_request_error", field=field))


class Api:
    """Handlers of all routes, on one model."""

    def __init__(self, worker: ModelWorker, prompts: Prompts, identity: dict[str, Any]) -> None:
        """Answer with ``worker``.

        Args:
            worker: computes.
            prompts: encodes what clients send, on the thread of the worker.
            identity: what ``/health`` says about the model and its settings.
        """
        self._worker = worker
        self._prompts = prompts
        self._identity = identity
        self.is_closing = False
        """True if no request is accepted any more."""
        self.on_request: Callable[[], None] = lambda: None
        """Called when a request begins and when it ends."""

    def app(self) -> Starlette:
        """Return the application."""
        routes = [
            Route("/v1/chat/completions", self._guarded(self._chat), methods=["POST"]),
            Route("/v1/completions", self._guarded(self._complete), methods=["POST"]),
            Route("/v1/tokenize", self._guarded(self._tokenize), methods=["POST"]),
            Route("/v1/models", self._guarded(self._models)),
            Route("/v1/models/{name:path}", self._guarded(self._model)),
            Route("/health", self._health),
            Route("/metrics", self._metrics),
        ]
        handlers: Any = {404: _not_found, 405: _not_found, Exception: _unexpected}
        return Starlette(routes=routes, exception_handlers=handlers)

    def _guarded(self, handler: Callable[[Request], Any]) -> Callable[[Request], Any]:
        """Return a handler that turns every failure into an answer."""

        async def guarded(request: Request) -> Response:
            self.on_request()
            try:
                response: Response = await handler(request)
            except _Refused as refused:
                response = refused.response
            except LlamaChatError as error:
                status, body = error_of(error)
                response = JSONResponse(body, status)
            except ClientDisconnect:
                response = Response(status_code=_CLIENT_GONE)
            finally:
                self.on_request()
            return response

        return guarded

    # ---- routes

    async def _chat(self, request: Request) -> Response:
        body = await _read(request, ChatRequest)
        self._check(body.model)
        form = self._format(body, chat=True)
        return await self._answer(request, body, form, self._prompts.chat, ())

    async def _complete(self, request: Request) -> Response:
        body = await _read(request, CompletionRequest)
        self._check(body.model)
        form = self._format(body, chat=False)
        echoes: list[str] = []

        def encode(body: CompletionRequest) -> Sequence[Continued]:
            requests = self._prompts.completions(body)
            if body.echo:  # once the prompts are known to fit
                texts = map(self._prompts.text, body.prompts)
                echoes.extend(text for text in texts for _ in range(body.n))
            return requests

        return await self._answer(request, body, form, encode, echoes)

    async def _tokenize(self, request: Request) -> Response:
        body = await _read(request, TokenizeRequest)
        found = await self._on_worker(lambda: self._prompts.tokenize(body))
        return JSONResponse(found)

    async def _models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._described_model]})

    async def _model(self, request: Request) -> Response:
        self._check_name(request.path_params["name"])
        return JSONResponse(self._described_model)

    @property
    def _described_model(self) -> dict[str, Any]:
        return {"id": self._prompts.name, "object": "model", "created": 0, "owned_by": "local"}

    async def _health(self, request: Request) -> Response:
        status = "closing" if self.is_closing else "ok"
        return JSONResponse({"status": status, **self._identity}, 503 if self.is_closing else 200)

    async def _metrics(self, request: Request) -> Response:
        sizes = await self._on_worker(lambda: self._worker.sizes)
        return PlainTextResponse(metrics_text(self._worker.counts, sizes, self._worker.n_jobs))

    # ---- generation

    def _check(self, model: str | None) -> None:
        """Refuse a request that cannot be taken."""
        if self.is_closing:
            raise ServerClosingError
        if model:
            self._check_name(model)
        if self._worker.is_full:
            body = error_body("too many requests at a time", "rate_limit_error")
            raise _Refused(429, body, **{"Retry-After": "1"})

    def _check_name(self, model: str) -> None:
        if not self._prompts.has(model):
            message = f"model {model[:100]!r} is not here: this server has {self._prompts.name!r}"
            kind, code = "invalid_request_error", "model_not_found"
            raise _Refused(404, error_body(message, kind, code, field="model"))

    def _format(self, body: ChatRequest | CompletionRequest, *, chat: bool) -> Format:
        return Format(
            chat=chat,
            model=self._prompts.name,
            tokenizer=self._prompts.tokenizer,
            n=body.n,
            n_logprobs=body.n_logprobs,
            tells_tokens=body.own.tokens,
        )

    async def _answer(
        self,
        request: Request,
        body: Generation,
        form: Format,
        encode: Callable[[Generation], Sequence[Continued]],
        echoes: Sequence[str],
    ) -> Response:
        n = body.n * (len(body.prompts) if isinstance(body, CompletionRequest) else 1)
        describes: list[Describe] = []

        def begin() -> Sequence[Continued]:
            requests = encode(body)
            if body.own.receipt or body.own.choices:
                describes.extend(self._prompts.describe(body, each) for each in requests)
            return requests

        answer = _Answer(self._worker, begin, n, describes)
        try:
            if body.stream:
                first = await _unless_gone(request, answer.next())  # an error has a status yet
                stream = self._stream(answer, form, first, echoes, body.includes_usage)
                return _EventStream(stream, lambda: self._end(answer))
            while not answer.is_complete:
                await _unless_gone(request, answer.next())
        except BaseException:
            answer.cancel()
            raise
        return JSONResponse(form.whole(answer.choices, echoes))

    async def _stream(
        self,
        answer: "_Answer",
        form: Format,
        first: tuple[int, Event],
        echoes: Sequence[str],
        includes_usage: bool,
    ) -> AsyncIterator[str]:
        begun: set[int] = set()
        number, event = first
        while True:
            if number not in begun:
                begun.add(number)
                yield _sse(form.first_chunk(number, echoes[number] if echoes else ""))
            if event.text or form.has_chunk_per_token or isinstance(event, Finish):
                yield _sse(form.chunk(number, event, answer.described(number)))
            if answer.is_complete:
                break
            try:
                number, event = await answer.next()
            except LlamaChatError as error:
                yield _sse(error_of(error)[1])
                break
        if includes_usage:
            yield _sse(form.usage_chunk(answer.choices))
        yield "data: [DONE]\n\n"

    def _end(self, answer: "_Answer") -> None:
        """End what a stream has left of an answer."""
        answer.cancel()
        self.on_request()

    async def _on_worker(self, task: Callable[[], Any]) -> Any:
        """Run something on the thread of the worker."""
        loop = asyncio.get_running_loop()
        result: asyncio.Future[Any] = loop.create_future()

        def run() -> None:
            try:
                settle = partial(_settle, result, task(), None)
            except Exception as error:  # the caller's: the thread goes on
                settle = partial(_settle, result, None, error)
            with suppress(RuntimeError):  # the loop has closed
                loop.call_soon_threadsafe(settle)

        self._worker.call(run)
        return await result


def _settle(result: "asyncio.Future[Any]", value: object, error: Exception | None) -> None:
    """Set the result of a task, unless nobody waits for it any more."""
    if result.done():
        return
    if error is None:
        result.set_result(value)
    else:
        result.set_exception(error)


class _Answer:
    """The events of a job, on the event loop."""

    def __init__(
        self,
        worker: ModelWorker,
        encode: Callable[[], Sequence[Continued]],
        n: int,
        describes: Sequence[Describe],
    ) -> None:
        loop = asyncio.get_running_loop()
        self.choices = [Choice() for _ in range(n)]
        self._describes = describes
        self._events: asyncio.Queue[tuple[int, Event | LlamaChatError]] = asyncio.Queue()
        self._worker = worker

        def deliver(number: int, event: Event | LlamaChatError) -> None:
            with suppress(RuntimeError):  # the loop has closed
                loop.call_soon_threadsafe(self._events.put_nowait, (number, event))

        self._job: Job = worker.submit(encode, deliver)

    @property
    def is_complete(self) -> bool:
        """True if all choices have ended."""
        return all(choice.finish is not None for choice in self.choices)

    def described(self, number: int) -> dict[str, Any]:
        """Return what describes a choice that has ended, if that was asked for."""
        choice = self.choices[number]
        if choice.finish is None or not self._describes:
            return {}
        return self._describes[number](choice.tokens, choice.finish)

    async def next(self) -> tuple[int, Event]:
        """Wait for the next event.

        Raises:
            LlamaChatError: the error that ended the job.
        """
        number, event = await self._events.get()
        if isinstance(event, LlamaChatError):
            raise event
        self.choices[number].add(event)
        return number, event

    def cancel(self) -> None:
        """End the job, if it goes on."""
        if not self.is_complete:
            self._worker.cancel(self._job)


class _EventStream(StreamingResponse):
    """A stream of events; ``end`` is called at its end, even if none was sent.

    The iterator cannot see that: it is never begun if the client goes away before the headers.
    """

    def __init__(self, content: AsyncIterator[str], end: Callable[[], None]) -> None:
        super().__init__(content, media_type="text/event-stream")
        self._end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._end()


async def _unless_gone(request: Request, event: Any) -> tuple[int, Event]:
    """Wait for an event, unless the client goes away first.

    Raises:
        ClientDisconnect: if it does.
    """
    waiting = asyncio.ensure_future(event)
    gone = asyncio.ensure_future(_wait_until_gone(request))
    try:
        await asyncio.wait({waiting, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            raise ClientDisconnect
        found: tuple[int, Event] = await waiting
        return found
    finally:
        waiting.cancel()
        gone.cancel()


async def _wait_until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _read(request: Request, kind: type[Body]) -> Body:
    """Read and check the body of a request."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        body = error_body("the body is not application/json", "invalid_request_error")
        raise _Refused(415, body)
    try:
        return kind.model_validate_json(await request.body())
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = [str(part) for part in found["loc"]]
        message = f"{'.'.join(where)[:200] or 'body'}: {found['msg']}"
        raise _invalid(message, where[0] if where else None) from None
    except RecursionError:
        raise _invalid("body: nested too deeply") from None


def _sse(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=True)}\n\n"


async def _unexpected(request: Request, error: Exception) -> Response:
    return JSONResponse(error_body(unexpected(error), "server_error"), 500)


async def _not_found(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    why = "no such route" if status == 404 else "no such method"
    return JSONResponse(error_body(why, "invalid_request_error"), status)
