"""The thread that computes, and the routes on it, when clients leave and passes fail."""

import asyncio
import json
import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvicorn
import uvicorn.server
from starlette.requests import ClientDisconnect
from starlette.testclient import TestClient
from torch import Tensor

from llama_chat import Llama, load
from llama_chat.errors import LlamaChatError
from llama_chat.generation.backend import Extension, TorchBackend
from llama_chat.generation.batch import Scheduler, Update
from llama_chat.generation.continuation import Request
from llama_chat.generation.events import Event, Finish, Token
from llama_chat.generation.sampling import Sampler
from llama_chat.server import serving
from llama_chat.server.api import Api
from llama_chat.server.prompts import Prompts
from llama_chat.server.worker import ModelWorker
from llama_chat.settings.sampling import Sampling
from llama_chat.settings.settings import Settings
from tests import out_of_memory
from tests.model_files import byte_tokenizer
from tests.models import TINY, random_model

BODY = {"prompt": "a", "stream": True, "temperature": 0}


class _Failing(TorchBackend):
    """A model of which each pass fails."""

    def _run(
        self, extensions: Sequence[Extension], should_stop: Callable[[], bool] | None
    ) -> list[Tensor]:
        raise LlamaChatError("pass", "it failed", "")


class _Held(Scheduler):
    """A scheduler that computes a prompt and one token, and then waits."""

    goes_on = threading.Event()

    def step(self, should_stop: Callable[[], bool] | None = None) -> list[Update]:
        if self.n_evaluated:
            assert self.goes_on.wait(30)
        return super().step(should_stop)


def request(ids: Sequence[int] = (1, 2, 3)) -> Request:
    return Request(ids, Sampler(Sampling(temperature=0)), max_tokens=4)


def test_a_request_of_several_answers_fails_once() -> None:
    backend = _Failing(random_model(TINY))
    worker = ModelWorker(Scheduler(backend, byte_tokenizer(), frozenset(), max_parallel=8), 8)
    events: queue.Queue[Event | LlamaChatError] = queue.Queue()
    worker.submit(lambda: [request() for _ in range(4)], lambda number, event: events.put(event))
    assert [str(events.get(timeout=30)) for _ in range(4)] == ["pass: it failed: "] * 4
    worker.stop()
    assert (worker.counts.requests, worker.counts.failed) == (1, 1)


def test_a_request_that_memory_runs_out_for_fails_alone() -> None:
    backend = TorchBackend(random_model(replace(out_of_memory.CONFIG, context_length=2**16)))
    backend.memory = psutil.Process().memory_info().rss + 16 * 2**20
    worker = ModelWorker(Scheduler(backend, byte_tokenizer(), frozenset(), max_parallel=2), 8)
    ended: queue.Queue[tuple[int, Event | LlamaChatError]] = queue.Queue()
    for ids in ([65] * 20, [66] * 12_000):

        def encode(ids: Sequence[int] = ids) -> Sequence[Request]:
            return [request(ids)]

        def deliver(number: int, event: Event | LlamaChatError, first: int = ids[0]) -> None:
            if not isinstance(event, Token):
                ended.put((first, event))

        worker.submit(encode, deliver)
    last = dict(ended.get(timeout=60) for _ in range(2))
    worker.stop()
    assert isinstance(last[65], Finish)
    assert "of context: not enough memory" in str(last[66])
    assert worker.counts.failed == 1


@pytest.mark.parametrize("spec_version", ["2.3", "2.4"])  # of ASGI: they tell of it differently
def test_a_client_that_leaves_before_the_headers_stops_its_answer(
    gguf_model: Path, spec_version: str
) -> None:
    llama = load(gguf_model, threads=1)
    scheduler = _Held(llama.backend, llama.tokenizer, llama.end_ids, max_parallel=4)
    scheduler.goes_on.clear()
    worker = ModelWorker(scheduler, 4)
    app = Api(worker, Prompts(llama, Settings()), {}).app()
    headers_came, body = asyncio.Event(), json.dumps(BODY).encode()
    messages: list[Any] = [{"type": "http.request", "body": body, "more_body": False}]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": spec_version},
        "method": "POST",
        "path": "/v1/completions",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await headers_came.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        headers_came.set()
        if spec_version == "2.4":
            raise OSError
        await asyncio.Event().wait()

    async def call() -> None:
        with suppress(ClientDisconnect):
            await app(scope, receive, send)

    asyncio.run(asyncio.wait_for(call(), 30))
    scheduler.goes_on.set()
    sizes: queue.Queue[dict[str, int]] = queue.Queue()
    worker.call(lambda: sizes.put(worker.sizes))  # after the cancelling
    assert sizes.get(timeout=30)["running_sequences"] == 0
    worker.stop()
    assert worker.counts.cancelled == 1


def test_headers_that_do_not_come_end_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "_HEADER_TIMEOUT_S", 0.3)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def ask() -> None:
        config = uvicorn.Config(app, http=serving._Protocol, lifespan="off", log_config=None)
        config.load()
        state, loop = uvicorn.server.ServerState(), asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: serving._Protocol(config, state, {}), "127.0.0.1", 0
        )
        begun = b"GET / HTTP/1.1\r\nHost: x\r\n"
        async with server:
            for n_before, sent in ((0, b""), (0, begun), (2, begun)):
                port = server.sockets[0].getsockname()[1]
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                for _ in range(n_before):
                    writer.write(begun + b"\r\n")
                    assert b" 204 " in await reader.readuntil(b"\r\n\r\n")
                writer.write(sent)
                assert await reader.read() == b""  # to the end of the connection
                writer.close()

    asyncio.run(asyncio.wait_for(ask(), 30))


class _Watched(Prompts):
    """Prompts that note the threads on which texts are decoded."""

    def __init__(self, llama: Llama, settings: Settings) -> None:
        super().__init__(llama, settings)
        self.threads: list[str] = []

    def text(self, prompt: str | list[int]) -> str:
        self.threads.append(threading.current_thread().name)
        return super().text(prompt)


@pytest.mark.parametrize(("n_ids", "status"), [(3, 200), (100_000, 400)])
def test_a_prompt_is_decoded_on_the_worker_once_it_is_known_to_fit(
    n_ids: int, status: int, gguf_model: Path
) -> None:
    llama = load(gguf_model, threads=1)
    worker, prompts = ModelWorker(llama.scheduler(4), 4), _Watched(llama, Settings())
    body = {"prompt": [5] * n_ids, "echo": True, "max_tokens": 1}
    with TestClient(Api(worker, prompts, {}).app()) as server:
        answer = server.post("/v1/completions", json=body)
    worker.stop()
    assert answer.status_code == status
    assert prompts.threads == ["worker"] * (status == 200)
