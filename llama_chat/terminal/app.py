"""The chat: read a message, show the reply, again."""

import itertools
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from llama_chat.errors import LlamaChatError
from llama_chat.generation.events import Event, Finish, Watch
from llama_chat.terminal.commands import Head, find_command, parse_command
from llama_chat.terminal.keyboard import open_history, open_keyboard
from llama_chat.terminal.progress import PREFILL_PATIENCE_S, progress
from llama_chat.terminal.renderer import Renderer
from llama_chat.terminal.toolbar import toolbar

if TYPE_CHECKING:
    from llama_chat.chat.session import ChatSession


class ChatApp:
    """A conversation on a terminal."""

    def __init__(
        self,
        session: "ChatSession",
        renderer: Renderer,
        model: str,
        before_prompt: Head | None = None,
    ) -> None:
        """Prepare the terminal.

        Args:
            session: the conversation.
            renderer: where it is shown.
            model: the name of the model.
            before_prompt: to what ``/prompt off`` goes back, if the session has a prompt file.
        """
        self.session = session
        self.renderer = renderer
        self.before_prompt = before_prompt
        self.last: Finish | None = None
        self._model = model
        self._leaving = False
        self._keyboard = open_keyboard(
            open_history(renderer.note), self._toolbar, colored=not renderer.console.no_color
        )

    def run(self) -> None:
        """Talk until the person leaves."""
        kept = ""
        interrupted = False
        while not self._leaving:
            try:
                line = self._keyboard.prompt(default=kept)
            except EOFError:
                return
            except KeyboardInterrupt:
                if interrupted:
                    return
                interrupted = True
                self.renderer.note("Ctrl-C again or Ctrl-D leaves")
                continue
            interrupted = False
            kept = self._handle(line)

    def _handle(self, line: str) -> str:
        """Obey a line; returns what is to stay in the input, because it could not be."""
        if not line.strip():
            return ""
        try:
            parsed = parse_command(line)
            if parsed is None:
                text = line[1:] if line.startswith("//") else line
                self.reply(lambda watch: self.session.send(text, watch))
            else:
                name, argument = parsed
                find_command(name).run(self, argument)
                self.renderer.space()
        except LlamaChatError as error:
            self.renderer.error(str(error))
            return line
        return ""

    def reply(self, generate: Callable[[Watch], Iterator[Event]]) -> None:
        """Show a reply as it comes. Ctrl-C stops it, in prefill too, and keeps what was said."""
        with _until_interrupt() as stopped:
            with progress("Reading", PREFILL_PATIENCE_S) as on_prefill:
                events = generate(Watch(should_stop=stopped, on_prefill=on_prefill))
                first = next(events)
            try:
                for event in itertools.chain([first], events):
                    self.renderer.stream(event.text)
            finally:
                self.renderer.end_reply()
        if isinstance(event, Finish):
            self.last = event
            self._tell_end(event)

    def prefill(self) -> None:
        """Read ahead what the next message will stand behind."""
        with _until_interrupt() as stopped, progress("Reading", PREFILL_PATIENCE_S) as on_prefill:
            self.session.settle(Watch(should_stop=stopped, on_prefill=on_prefill))

    def leave(self) -> None:
        """End the chat after this command."""
        self._leaving = True

    def _tell_end(self, finish: Finish) -> None:
        n = finish.usage.completion_tokens
        match finish.reason:
            case "interrupted":
                self.renderer.note(f"stopped after {n} tokens; what was said is kept")
            case "length":
                self.renderer.note(f"cut off after {n} tokens; /max-tokens allows more")
            case "context":
                self.renderer.note(f"cut off after {n} tokens: the context is full")

    def _toolbar(self) -> str:
        typed = self._keyboard.default_buffer.text
        message = "" if parse_command(typed) else typed
        width = self._keyboard.output.get_size().columns
        return toolbar(self.session, self._model, self.last, message, width)


@contextmanager
def _until_interrupt() -> Iterator[Callable[[], bool]]:
    """Turn Ctrl-C into a question that can be asked, so that it never strikes half-way."""
    stopped = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = True

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield lambda: stopped
    finally:
        signal.signal(signal.SIGINT, before)
