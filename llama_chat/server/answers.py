"""Answers of the server on the Unix socket to several requests at a time."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_chat.endpoint.address import Address
from llama_chat.endpoint.client import Client, RefusedRequest, Timeouts
from llama_chat.errors import LlamaChatError
from llama_chat.server.client import SILENCE_S, LostServer, error_in

if TYPE_CHECKING:
    import httpx2

_TIMEOUTS = Timeouts(connect_s=5.0, silence_s=SILENCE_S)


def client_of(socket: Path) -> Client:
    """Return what sends to the server on a Unix socket."""
    return Client(Address("http://localhost", str(socket)), None, _TIMEOUTS)


async def chunks(
    client: Client,
    connections: "httpx2.AsyncClient",
    route: str,
    body: dict[str, Any],
    notify: Callable[[str], None] = lambda line: None,
) -> AsyncGenerator[Any]:
    """Post a request, and yield the objects of the stream that answers it.

    Raises:
        LlamaChatError: the error that the server answers with.
        LostServer: if the connection is lost.
    """
    body = {**body, "stream": True}
    try:
        async with aclosing(client.stream(connections, route, body, notify)) as source:
            async for chunk in source:
                yield chunk
    except RefusedRequest as refused:
        raise error_in(refused.refusal.found, refused.refusal.status) from None
    except (ConnectionError, LlamaChatError) as error:
        why = error.why if isinstance(error, LlamaChatError) else str(error)
        raise LostServer(why) from None
