"""Requests to the server, answered by its application in this process; nothing is generated."""

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any, cast

from llama_chat.errors import LlamaChatError
from llama_chat.generation.events import Finish, Timings, Usage
from llama_chat.loading.plan import load
from llama_chat.server.api import Api
from llama_chat.server.prompts import Prompts
from llama_chat.server.schema import ChatRequest, CompletionRequest
from llama_chat.server.worker import Counts, Deliver, Job, ModelWorker
from llama_chat.settings.settings import Settings
from tests.fuzz.archives import mutate_bytes
from tests.fuzz.documents import mutate_json
from tests.model_files import write_gguf

_CHAT: dict[str, object] = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "the cat"}]},
    ],
    "max_tokens": 3,
    "temperature": 0.5,
    "top_p": 1,
    "top_k": 5,
    "min_p": 0.1,
    "seed": 1,
    "stop": ["x"],
    "n": 2,
    "logprobs": True,
    "top_logprobs": 2,
    "repeat_penalty": 1.1,
    "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}},
}
_COMPLETION: dict[str, object] = {
    "prompt": ["the hat", "a"],
    "max_tokens": 2,
    "n": 2,
    "logprobs": 1,
    "stream": True,
    "stream_options": {"include_usage": True},
}
_ROUTES: dict[str, list[dict[str, object]]] = {
    "/v1/chat/completions": [_CHAT, {"messages": [{"role": "user", "content": "hi"}]}],
    "/v1/completions": [_COMPLETION, {"prompt": "a", "echo": True, "stop": "b"}],
    "/v1/tokenize": [{"text": "the cat", "add_special": True}],
}
BODIES = [
    f"POST {route} application/json\n".encode() + json.dumps(body).encode()
    for route, bodies in _ROUTES.items()
    for body in bodies
]
"""Good requests: method, path and type in a line, and the body."""

_NAMES = sorted({*ChatRequest.model_fields, *CompletionRequest.model_fields})
_ODD = ("/v1/models", "/health", "/metrics", "/nothing", "/v1/../health", "/v1/completions/")
_TYPES = ("text/plain", "application/json; charset=utf-16", "APPLICATION/JSON", "\udcff")


class _Encoder:
    """Stands for the thread that computes: it encodes the prompts of a job, and ends it."""

    counts = Counts()
    is_full = False
    n_jobs = 0
    sizes: dict[str, int] = {  # noqa: RUF012 - never changed
        "running_sequences": 0,
        "waiting_sequences": 0,
        "stored_prefixes": 0,
        "cache_bytes": 0,
    }

    def submit(self, encode: Callable[[], Sequence[Any]], deliver: Deliver) -> Job:
        try:
            for number, request in enumerate(encode()):
                usage = Usage(len(request.ids), 0, 0)
                deliver(number, Finish("stop", "", usage, Timings(0.0, 0.0, 0.0), 0))
        except LlamaChatError as error:
            deliver(0, error)
        return Job(encode, deliver)

    def cancel(self, job: Job) -> None:
        pass

    def call(self, task: Callable[[], object]) -> None:
        task()


class Server:
    """The application, on a small random model."""

    def __init__(self, folder: Path) -> None:
        write_gguf(folder / "random.gguf")
        llama = load(folder / "random.gguf", threads=1)
        prompts = Prompts(llama, Settings())
        self._app = Api(cast("ModelWorker", _Encoder()), prompts, {}).app()
        self._loop = asyncio.new_event_loop()

    def mutate(self, data: bytes, random: Random) -> bytes:
        """Change the body, or rarely the line before it."""
        head, _, body = data.partition(b"\n")
        if random.random() < 0.9:
            body = mutate_json(body, random, _NAMES)
        if random.random() < 0.15:
            method, route, kind = head.decode().split(" ", 2)
            method = random.choice((method, "GET", "PUT", "OPTIONS", "HEAD", "X"))
            route = random.choice((*_ROUTES, *_ODD, route + random.choice(("?a=b", "%00", "//"))))
            kind = random.choice((*_TYPES, kind, kind))
            head = f"{method} {route} {kind}".encode("utf-8", "surrogateescape")
        if random.random() < 0.05:
            body = mutate_bytes(body or b" ", random)
        return head + b"\n" + body

    def answer(self, data: bytes) -> None:
        """Answer a request.

        Raises:
            AssertionError: if the answer is none that a client of such a request may get.
        """
        head, _, body = data.partition(b"\n")
        method, route, kind = [*head.split(b" ", 2), b"", b""][:3]
        status, answer = self._loop.run_until_complete(self._call(method, route, kind, body))
        expected = status in (200, 307) or 400 <= status < 500  # 307 for a slash at the end
        assert expected, f"status {status}: {answer[:200]!r}"
        if status >= 400 and method != b"HEAD":
            message = json.loads(answer)["error"]["message"]
            assert isinstance(message, str)
            assert len(message) < 1000

    async def _call(
        self, method: bytes, route: bytes, kind: bytes, body: bytes
    ) -> tuple[int, bytes]:
        """Call the application as a web server does; the client stays until the answer ends."""
        parts = [
            {"type": "http.request", "body": body[: len(body) // 2], "more_body": True},
            {"type": "http.request", "body": body[len(body) // 2 :], "more_body": False},
        ]
        status, answer, never = 0, bytearray(), asyncio.Event()

        async def receive() -> dict[str, Any]:
            if not parts:
                await never.wait()
            return parts.pop(0)

        async def send(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)
            answer.extend(message.get("body", b""))

        path, _, query = route.partition(b"?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method.decode("latin-1"),
            "path": path.decode("latin-1"),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "scheme": "http",
            "headers": [(b"content-type", kind)],
            "client": None,
            "server": ("localhost", 80),
        }
        await self._app(scope, cast("Any", receive), send)
        return status, bytes(answer)
