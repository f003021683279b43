"""Answers of a server that is running already, in place of loading the model."""

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, cast

from llama_chat import __version__
from llama_chat.cli.answering import AnswerOptions, write_answer
from llama_chat.cli.config import toml_line
from llama_chat.cli.loading import model_path
from llama_chat.parallel.world import find_world
from llama_chat.server.client import MAX_SCORED, LostServer, health
from llama_chat.server.sockets import default_socket, holder_of
from llama_chat.server.warm_model import WarmModel, WarmRequest
from llama_chat.settings.definitions import SETTINGS
from llama_chat.settings.settings import Settings
from llama_chat.terminal import streams

_OTHERS = {
    "settings": "another model or other settings",
    "version": "another version of the program",
    "changed": "files of the model that were changed since",
}
"""Descriptions of a mismatch, by the fact about the server that differs."""

_TEMPLATE = ("template", "template_name")

_START_TIMEOUT_S = 300.0
"""Longest wait for a server that was started here."""


def identity_of(settings: Settings) -> dict[str, Any]:
    """Return the settings that decide which model a server has, and how it is computed."""
    names = [
        name
        for name, setting in SETTINGS.items()
        if setting.scope == "load" and setting.group == "Model"
    ]
    found: dict[str, Any] = {name: settings.value(name) for name in (*names, *_TEMPLATE)}
    found = {name: list(each) if isinstance(each, tuple) else each for name, each in found.items()}
    return {**found, "model": str(model_path(settings).resolve())}


def facts_of(settings: Settings) -> dict[str, Any]:
    """Return the facts that a server and its clients must have in common."""
    return {
        "settings": identity_of(settings),
        "version": __version__,
        "changed": _changed(model_path(settings)),
    }


def _changed(model: Path) -> int:
    """Return the time of the latest change of a model's files, in nanoseconds."""
    files = [model, *model.iterdir()] if model.is_dir() else [model]
    return max(file.stat().st_mtime_ns for file in files if file.exists())


def find_server(
    settings: Settings, tell: Callable[[str], object], *, starts: bool
) -> tuple[Path, dict[str, Any]] | None:
    """Find a running server of the model and the settings.

    Args:
        settings: the settings.
        tell: takes a line about what was found.
        starts: start one if there is none, and ``keep_warm`` says so.

    Returns:
        Its Unix socket, and its description of itself; None if the model must be loaded locally.
    """
    is_elsewhere = settings.server_url is not None or find_world() is not None
    if not settings.server or settings.draft or is_elsewhere:
        return None
    path = default_socket()
    facts = health(path) if path.exists() else None
    if facts is None and starts and settings.keep_warm:
        facts = _start(settings, path)
    if facts is None:
        return None
    differing = [name for name, value in facts_of(settings).items() if facts.get(name) != value]
    if differing:
        tell(f"the running server has {_OTHERS[differing[0]]}")
        return None
    tell(f"answered by the server on {str(path)!r}")
    return path, facts


def open_warm(
    settings: Settings, *, n_logprobs: int = 0, receipts: bool = False, n_choices: int = 0
) -> tuple[WarmModel, Settings] | None:
    """Find the server of the model and the settings, or start one if ``keep_warm`` says so.

    Args:
        settings: the settings.
        n_logprobs: likely tokens at each position to ask for.
        receipts: ask for a receipt with each answer.
        n_choices: number of replies that it is to score; for too many there is no server.

    Returns:
        Its model, and the settings with what that suggests; None if it must be loaded locally.
    """

    def tell(line: str) -> None:
        if settings.verbose:
            streams.say(f"llama-chat: {line}")

    if n_choices > MAX_SCORED:
        tell(f"a server scores {MAX_SCORED} choices at most")
        return None
    found = find_server(settings, tell, starts=True)
    if found is None:
        return None
    model = WarmModel(*found, n_logprobs=n_logprobs, receipts=receipts)
    return model, model.settings(settings)


def _start(settings: Settings, path: Path) -> dict[str, Any] | None:
    """Start a server in the background, and wait until it answers; None if it does not.

    Of several that are started at the same time, the first has the Unix socket, and the others
    end before they load the model.
    """
    holder = holder_of(path)
    started = _launch(settings) if holder is None else None
    began = time.monotonic()
    while time.monotonic() - began < _START_TIMEOUT_S:
        listens = holder is not None and holder.listens
        if (facts := health(path)) is not None:
            return facts
        if listens or (holder is None and (started is None or started.poll() is not None)):
            return None
        time.sleep(0.05)
        holder = holder_of(path)
    return None


def _launch(settings: Settings) -> "subprocess.Popen[bytes]":
    """Start a server with the settings of this process alone, not those of its usual file."""
    wanted = {**identity_of(settings), "parallel": settings.parallel}
    config = "".join(toml_line(name, value) + "\n" for name, value in wanted.items())
    # With -P and elsewhere, nothing in the current folder takes the place of a module.
    command = [sys.executable, "-P", "-m", "llama_chat", "serve", "--quiet"]
    command += ["--config", "/dev/stdin", "--idle", settings.keep_warm or ""]
    ours = {setting.variable for setting in SETTINGS.values()}
    started = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env={name: value for name, value in os.environ.items() if name not in ours},
        start_new_session=True,
    )
    with suppress(BrokenPipeError), cast("IO[bytes]", started.stdin) as stdin:
        stdin.write(config.encode())
    return started


def write_warm(
    ask: Callable[[WarmModel, Settings], WarmRequest],
    settings: Settings,
    options: AnswerOptions,
    *,
    through_template: bool = True,
    echo: str = "",
) -> bool:
    """Write the answer of a running server; return False if there is none, or it went away.

    Args:
        ask: makes the request, with the settings that the model completes.
        settings: the settings of the answer.
        options: flags about the answer; JSON has a receipt.
        through_template: whether it answers a message, or continues a raw text.
        echo: text to write first.

    Raises:
        LlamaChatError: if the server refuses the request, or goes away within the answer.
    """
    found = open_warm(settings, n_logprobs=options.n_logprobs, receipts=options.as_json)
    if found is None:
        return False
    model, settings = found
    request = ask(model, settings)
    events = model.generate_request(request)
    try:
        first = next(events)
    except LostServer:
        return False
    write_answer(
        lambda hooks: itertools.chain([first], events),
        settings,
        options,
        model=model.name,
        describe=request.describe,
        through_template=through_template,
        echo=echo,
    )
    return True
