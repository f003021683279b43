"""The chat uses a running server of its model, and shows what it would without one."""

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.terminal import READY, Terminal
from llama_chat.generation.events import Event, Finish, Hooks
from llama_chat.server import client
from llama_chat.server.warm_session import WarmPlan
from llama_chat.settings.settings import Settings
from tests.servers import Server, running_server
from tests.test_server import metrics

FLAGS = ("--temperature", "0", "--max-tokens", "6")
ENDED = r"cut off after \d+ tokens.*\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, gguf_model: Path) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("server"), gguf_model) as running:
        yield running


def chat(home: Path, model: Path, server: Server, *flags: str) -> Terminal:
    arguments: tuple[str | Path, ...] = ("-m", model, *FLAGS, *flags)
    return Terminal(*arguments, home=home, XDG_RUNTIME_DIR=server.runtime)


def talk(terminal: Terminal) -> list[str]:
    """Hold a conversation; returns what was shown, without times and cached tokens."""
    terminal.wait_for(READY)
    shown = [terminal.ask(line, ENDED) for line in ("the cat", "the hat", "/retry", "/continue")]
    shown += [
        terminal.ask("/context", r"\d+ of 512 tokens, \d+ free"),
        terminal.ask("/why 1", r"%[\s\S]*\n\n(?=›)"),
        terminal.ask("/undo", r"\n\n(?=›)"),
        terminal.ask("/seed 7", "seed is 7"),
        terminal.ask("/temperature 1.5", "temperature is"),
        terminal.ask("and then", ENDED),
        terminal.ask("/stats", r"seed[\s\S]*\n\n(?=›)"),
    ]
    shown = [re.sub(r"[\d.]+ (s|tokens/s|tok/s|MB|KB)\b", "N", text) for text in shown]
    return [re.sub(r"(?m)^(\d+ +\w+ +\d+) +\d+", r"\1 N", text) for text in shown]


def test_a_chat_with_the_server_shows_what_one_without_it_does(
    server: Server, gguf_model: Path, tmp_path: Path
) -> None:
    with chat(tmp_path, gguf_model, server) as warm:
        shown = talk(warm)
        assert "on the warm server · context 512" in warm.text
    with chat(tmp_path, gguf_model, server, "--no-server") as here:
        assert talk(here)[:-1] == shown[:-1]
        assert "warm server" not in here.text


def test_control_c_stops_the_server_too(starter_model: Path, tmp_path: Path) -> None:
    with (
        running_server(tmp_path, starter_model) as server,
        chat(tmp_path, starter_model, server, "--max-tokens", "4000") as terminal,
    ):
        terminal.wait_for(READY)
        terminal.line("Write a long story about a river.")
        terminal.wait_for(r"about a river\.\n(\S.*\n)*\S.{40}")
        assert metrics(server)["running_sequences"] == 1
        terminal.child.kill(signal.SIGINT)
        terminal.wait_for(r"stopped")
        terminal.wait_until(lambda: metrics(server)["running_sequences"] == 0)
        terminal.ask("/max-tokens 3", "max-tokens is 3")
        terminal.ask("/continue", r"cut off after 3 tokens")


def test_the_seed_of_a_stopped_reply_gives_its_text_again(server: Server, gguf_model: Path) -> None:
    facts = client.health(server.socket)
    assert facts is not None
    model = WarmPlan(server.socket, facts, gguf_model).load()

    def reply(seed: int | None) -> tuple[str, Finish]:
        """Stop after four tokens; returns the text and the end."""
        session = model.chat(template="plain")
        session.configure(Settings(temperature=2.0, seed=seed))
        events: list[Event] = []
        events.extend(session.send("the cat", Hooks(lambda: len(events) >= 4)))
        assert isinstance(events[-1], Finish)
        assert session.seed == events[-1].seed
        return "".join(event.text for event in events), events[-1]

    # Few replies of a random model end by themselves before they are stopped.
    stopped = (each for each in map(reply, [None] * 20) if each[1].reason == "interrupted")
    text, finish = next(stopped)
    again, _ = reply(finish.seed)
    n = min(len(text), len(again))  # either may have been stopped a token later
    assert n > 0
    assert text[:n] == again[:n]


def test_a_server_that_goes_away_loses_nothing(gguf_model: Path, tmp_path: Path) -> None:
    with running_server(tmp_path, gguf_model) as server, chat(tmp_path, gguf_model, server) as warm:
        warm.wait_for(READY)
        warm.ask("the cat", ENDED)
        server.process.kill()
        server.process.wait(10)
        warm.refuse("the hat", r"server: no connection .*: /model NAME loads it here")
        warm.type("\x15")
        warm.ask(f"/model {gguf_model}", r"cpu · context 512")
        text = warm.ask("the hat", ENDED)
        assert "error" not in text
        assert "1 the cat" not in text
