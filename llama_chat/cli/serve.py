"""``llama-chat serve``: a warm server on a Unix socket, and on a TCP port."""

import os
import resource
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Literal

import psutil
import typer

from llama_chat.cli.loading import load_model, model_path
from llama_chat.cli.options import takes_settings
from llama_chat.cli.sizes import n_bytes, seconds
from llama_chat.cli.warm import facts_of
from llama_chat.endpoint.address import parse_key
from llama_chat.errors import LlamaChatError, UsageError, counted
from llama_chat.files import expand_user
from llama_chat.server.access import parse_origin
from llama_chat.server.client import health
from llama_chat.server.sockets import (
    LOOPBACK,
    SocketFile,
    default_socket,
    holder_of,
    listening_on_port,
)
from llama_chat.settings.settings import Settings
from llama_chat.terminal import streams

_STOP_TIMEOUT_S = 60.0

_MIN_FILES = 64
"""Least limit on open files: the program takes up to twenty, and each client one."""


@takes_settings
def serve(
    settings: Settings,
    action: Annotated[
        Literal["start", "status", "stop"],
        typer.Argument(
            metavar="[start|status|stop]",
            help="Start a server, describe the running one, or stop it.",
        ),
    ] = "start",
    socket: Annotated[
        str | None, typer.Option("--socket", metavar="PATH", help="Unix socket to listen on.")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            "--port",
            metavar="N",
            min=0,
            max=2**16 - 1,
            help="Also listen on TCP port N; 0 picks a free one.",
        ),
    ] = None,
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="Address to bind the TCP port to.")
    ] = "127.0.0.1",
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key",
            metavar="KEY",
            envvar="LLAMA_CHAT_API_KEY",
            help="Key that clients of the port must send.",
        ),
    ] = None,
    cors: Annotated[
        list[str] | None,
        typer.Option("--cors", metavar="ORIGIN", help="Origin that CORS allows."),
    ] = None,
    grace: Annotated[
        str,
        typer.Option(
            "--grace", metavar="TIME", help="Time that running answers have to end when it stops."
        ),
    ] = "10s",
    idle: Annotated[
        str | None,
        typer.Option("--idle", metavar="TIME", help="Stop after TIME without a request."),
    ] = None,
    max_requests: Annotated[
        int, typer.Option("--max-requests", metavar="N", min=1, help="Requests at a time.")
    ] = 256,
    cache_memory: Annotated[
        str | None,
        typer.Option(
            "--cache-memory",
            metavar="SIZE",
            help="Memory for the KV caches of all conversations; by default that of one full "
            "context, and a quarter of what the model leaves free.",
        ),
    ] = None,
    log_prompts: Annotated[
        bool, typer.Option("--log-prompts", help="With -v, also log what clients send.")
    ] = False,
) -> None:
    """Keep a model loaded and serve it on a Unix socket and a port.

    The API is OpenAI-compatible: /v1/chat/completions, /v1/completions and /v1/models; besides,
    /v1/tokenize, /health and /metrics.
    """
    path = expand_user(socket) if socket else default_socket()
    if action == "status":
        _show_status(path)
    elif action == "stop":
        _stop(path)
    else:
        key = None if api_key is None else _key(api_key)
        _check_host(host, key)
        origins = frozenset(map(parse_origin, cors or ()))
        _check_open_files()
        model_path(settings)  # a wrong name, or a folder that is gone, is told first
        grace_s = seconds(grace, "--grace")
        idle_s = None if idle is None else seconds(idle, "--idle")
        max_bytes = None if cache_memory is None else n_bytes(cache_memory, "--cache-memory")
        with ExitStack() as taken:  # before the model is loaded
            socket_file = taken.enter_context(SocketFile(path))
            listener = None
            if port is not None:
                listener = taken.enter_context(listening_on_port(host, port))
            _serve(
                settings,
                socket_file,
                listener=listener,
                host=host,
                api_key=key,
                origins=origins,
                logs_prompts=log_prompts,
                max_requests=max_requests,
                grace_s=grace_s,
                idle_s=idle_s,
                max_bytes=max_bytes,
            )


def _key(text: str) -> str:
    key = parse_key(text, "--api-key")
    if not key:
        raise UsageError("--api-key", "it is empty", "give a key, or leave it out")
    return key


def _check_host(host: str, api_key: str | None) -> None:
    if host not in LOOPBACK and api_key is None:
        why = "others can reach that address"
        raise UsageError(f"--host {host}", why, "set a key: LLAMA_CHAT_API_KEY or --api-key")


def _check_open_files() -> None:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and limit < _MIN_FILES:
        why = "too few open files for a server and its clients"
        raise UsageError(f"ulimit -n {limit}", why, f"raise it to {_MIN_FILES} or more")


def _serve(
    settings: Settings,
    socket: SocketFile,
    *,
    max_requests: int,
    max_bytes: int | None,
    **options: object,
) -> None:
    started_with = facts_of(settings)
    llama, settings = load_model(settings)  # which imports torch with care, before all else does
    from llama_chat.server.prompts import Prompts
    from llama_chat.server.serving import Options, serve
    from llama_chat.server.worker import ModelWorker

    suggested = llama.checkpoint.generation
    scheduler = llama.scheduler(settings.parallel, max_bytes=max_bytes, keeps_replies=True)
    identity = {
        "model": llama.name,
        "pid": os.getpid(),
        "context": llama.context,
        "max_requests": max_requests,
        **started_with,
        "suggested": {"values": suggested.sampling, "where": suggested.where},
    }

    def announce(addresses: Sequence[str]) -> None:
        if not settings.quiet:
            streams.say(f"llama-chat: {llama.name} answers on {' and '.join(addresses)}")

    serve(
        ModelWorker(scheduler, max_requests),
        Prompts(llama, settings),
        identity,
        Options(socket, **options),  # type: ignore[arg-type] # checked by its caller
        log=streams.say if settings.verbose else lambda line: None,
        on_ready=announce,
    )


def _show_status(path: Path) -> None:
    found, holder = health(path), holder_of(path)
    if found is None and holder is not None and not holder.listens:
        raise LlamaChatError(f"server on {str(path)!r}", "it is loading its model", "ask again")
    if found is None:
        raise LlamaChatError(
            f"server on {str(path)!r}", "none is running", "start one: llama-chat serve"
        )
    streams.write_json(found)


def _stop(path: Path) -> None:
    """End the server, and wait until its process has ended."""
    holder = holder_of(path)
    if holder is None:
        raise LlamaChatError(f"server on {str(path)!r}", "none is running", "nothing to end")
    if holder.pid is None:
        raise LlamaChatError("server", "its process is not known", "end its process")
    try:
        process = psutil.Process(holder.pid)
        process.terminate()
    except (psutil.Error, OSError) as error:
        raise LlamaChatError("server", f"cannot be ended: {error}", "end its process") from None
    began = time.monotonic()
    while holder_of(path) == holder or _runs(process):
        if time.monotonic() - began > _STOP_TIMEOUT_S:
            why = f"still ending after {counted(int(_STOP_TIMEOUT_S), 'second')}"
            raise LlamaChatError("server", why, "end its process")
        time.sleep(0.05)


def _runs(process: psutil.Process) -> bool:
    """True unless a process has ended, even if its parent has not taken note of that."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
