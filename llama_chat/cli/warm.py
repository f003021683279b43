"""Answers of a server that is running already, in place of loading the model."""

import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llama_chat.chat.conversation import Conversation
from llama_chat.chat.prompt_files import PromptFile
from llama_chat.cli.answering import write_answer
from llama_chat.cli.loading import model_path
from llama_chat.errors import LlamaChatError
from llama_chat.generation.constraints import Grammar
from llama_chat.generation.events import Event, Token, finish_of
from llama_chat.parallel.world import find_world
from llama_chat.server.client import OWN_KEY, health, stream
from llama_chat.server.sockets import default_socket
from llama_chat.settings.definitions import SETTINGS
from llama_chat.settings.settings import Settings
from llama_chat.terminal import streams

_TEMPLATE = ("template", "template_name")

_START_PATIENCE_S = 300.0
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


@dataclass(frozen=True, slots=True)
class Wanted:
    """Form of an answer, and what is written about it."""

    as_json: bool
    """True for one JSON object, with its receipt."""
    n_logprobs: int = 0
    """Most likely tokens at each position, for the JSON."""
    grammar: Grammar | None = None


class WarmModel:
    """A model that a server has loaded."""

    def __init__(self, path: Path, facts: dict[str, Any], wanted: Wanted) -> None:
        """Answer through the socket file ``path`` of a server, with the ``facts`` it has told."""
        self.name = str(facts["model"])
        self.described: dict[str, Any] = {}
        """Description of the last answer, for its JSON."""
        self._path = path
        self._facts = facts
        self._wanted = wanted

    def settings(self, settings: Settings) -> Settings:
        """Return the settings with what the model suggests where nothing else sets a value."""
        suggested = self._facts.get("suggested", {})
        return settings.with_model(suggested.get("values", {}), suggested.get("where", ""))

    def ask(self, message: str, settings: Settings, prompt: PromptFile | None) -> Iterator[Event]:
        """Answer a message through the chat template, after the examples of a prompt file."""
        examples, n = () if prompt is None else prompt.examples, self._wanted.n_logprobs
        preface = Conversation(settings.system, examples).preface()
        messages = [{"role": each.role, "content": each.text} for each in preface]
        messages.append({"role": "user", "content": message})
        body = {"messages": messages, "logprobs": n > 0, "top_logprobs": n}
        yield from self._events("/v1/chat/completions", settings, body)

    def complete(self, text: str, settings: Settings) -> Iterator[Event]:
        """Continue a raw text."""
        body = {"prompt": text, "logprobs": self._wanted.n_logprobs or None}
        yield from self._events("/v1/completions", settings, body)

    def _events(self, route: str, settings: Settings, prompt: dict[str, Any]) -> Iterator[Event]:
        limits = {"max_tokens": settings.max_tokens, "stop": list(settings.stop)}
        grammar = None if self._wanted.grammar is None else asdict(self._wanted.grammar)
        own = {OWN_KEY: {"receipt": self._wanted.as_json, "grammar": grammar}}
        body = {**prompt, **asdict(settings.sampling), **limits, **own}
        try:
            for chunk in stream(self._path, route, body):
                choice = chunk["choices"][0]
                text = choice["delta"].get("content", "") if "delta" in choice else choice["text"]
                if facts := chunk.get(OWN_KEY):
                    self.described = facts["described"]
                    yield finish_of(facts["finish"], text)
                elif text:
                    yield Token(-1, text, 0.0)
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise LostServer from error


class LostServer(LlamaChatError):
    """The server went away, or is none of ours."""

    def __init__(self) -> None:
        super().__init__("server", "the connection was lost", "try again, or --no-server")


def find_server(
    settings: Settings, tell: Callable[[str], object], *, starts: bool
) -> tuple[Path, dict[str, Any]] | None:
    """Find a running server of the model and the settings.

    Args:
        settings: the settings.
        tell: takes a line about what was found.
        starts: start one if there is none, and ``keep_warm`` says so.

    Returns:
        Its socket file, and what it says of itself; None if the model is to be loaded here.
    """
    is_elsewhere = settings.server_url is not None or find_world() is not None
    if not settings.server or settings.draft or is_elsewhere:
        return None
    path = default_socket()
    facts = health(path) if path.exists() else None
    if facts is None and starts and settings.keep_warm and not path.exists():
        facts = _start(settings, path)
    if facts is None:
        return None
    if facts.get("settings") != identity_of(settings):
        tell("the running server has another model or other settings")
        return None
    tell(f"answered by the server on {str(path)!r}")
    return path, facts


def find(settings: Settings, wanted: Wanted) -> WarmModel | None:
    """Find the server of the model and the settings, or start one if ``keep_warm`` says so.

    None if there is none: the model is then to be loaded here.
    """

    def tell(line: str) -> None:
        if settings.verbose:
            streams.say(f"llama-chat: {line}")

    found = find_server(settings, tell, starts=True)
    return None if found is None else WarmModel(*found, wanted)


def _start(settings: Settings, path: Path) -> dict[str, Any] | None:
    """Start a server in the background, and wait until it answers; None if it does not."""
    flags = ["--model", str(model_path(settings).resolve()), "--idle", settings.keep_warm or ""]
    for name, value in identity_of(settings).items():
        setting = SETTINGS[name]
        if name in ("model", "model_paths") or value == setting.default or value is None:
            continue
        flags += [setting.flag, str(value)]
    command = [sys.executable, "-m", "llama_chat", "serve", "--quiet", *flags]
    nowhere = subprocess.DEVNULL
    started = subprocess.Popen(
        command, stdin=nowhere, stdout=nowhere, stderr=nowhere, start_new_session=True
    )
    began = time.monotonic()
    while started.poll() is None and time.monotonic() - began < _START_PATIENCE_S:
        if (facts := health(path)) is not None:
            return facts
        time.sleep(0.05)
    return None


def write_warm(
    generate: Callable[[WarmModel, Settings], Iterator[Event]],
    settings: Settings,
    wanted: Wanted,
    *,
    raw: bool,
    echo: str = "",
    fail_on_length: bool = False,
) -> bool:
    """Write the answer of a running server; return False if there is none, or it went away.

    Args:
        generate: asks the server, with the settings that the model completes.
        settings: the settings of the answer.
        wanted: its form.
        raw: write every character unchanged.
        echo: text to write first.
        fail_on_length: whether an answer cut off by a limit is an error.

    Raises:
        LlamaChatError: if the server refuses the request, or goes away within the answer.
    """
    warm = find(settings, wanted)
    if warm is None:
        return False
    settings = warm.settings(settings)
    events = generate(warm, settings)
    try:
        first = next(events)
    except LostServer:
        return False
    write_answer(
        lambda hooks: itertools.chain([first], events),
        settings,
        model=warm.name,
        as_json=wanted.as_json,
        describe=lambda tokens, finish: warm.described,
        raw=raw,
        echo=echo,
        fail_on_length=fail_on_length,
    )
    return True
