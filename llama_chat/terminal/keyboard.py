"""Input with keys, history and completion, and a plain one for terminals that only print."""

import readline
import signal
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from types import FrameType
from typing import Protocol

from prompt_toolkit import PromptSession
from prompt_toolkit.application import Application, run_in_terminal
from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
from prompt_toolkit.buffer import CompletionState
from prompt_toolkit.completion import CompleteEvent, Completer
from prompt_toolkit.filters import Condition, has_completions, is_searching
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.input.vt100 import Vt100Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.styles import Style

from llama_chat.errors import LlamaChatError
from llama_chat.files import create_private_file, state_home

_STYLE = Style.from_dict(
    {
        "prompt": "bold ansigreen",
        "auto-suggestion": "ansibrightblack",
        "bottom-toolbar": "noreverse ansibrightblack",
        "bottom-toolbar.text": "noreverse ansibrightblack",
        "bottom-toolbar.warning": "noreverse ansiyellow",
    }
)
_NO_STYLE = Style.from_dict({"bottom-toolbar": "noreverse"})

PROMPT = "› "


class Input(Protocol):
    """Input of commands and messages."""

    @property
    def text(self) -> str:
        """Text typed so far."""

    def read(self, default: str = "") -> str:
        """Let the user edit ``default``, and return the text that was sent.

        Raises:
            EOFError: on Ctrl-D.
            KeyboardInterrupt: on Ctrl-C with nothing typed.
        """

    def clear(self) -> None:
        """Delete the typed text."""

    def call(self, act: Callable[[], object]) -> None:
        """Call ``act`` in the thread of ``read``, if that runs; may be called from any thread."""

    def redraw(self) -> None:
        """Redraw the input and its toolbar."""

    def write_above(self, write: Callable[[], None]) -> None:
        """Call ``write``, which prints above the open input."""

    def end(self, error: BaseException) -> None:
        """Make ``read`` raise ``error``, if it runs."""


@contextmanager
def hold_keys() -> Iterator[None]:
    """Keep keys that are typed while no input is open, for the next one.

    Turns off echo, line buffering, and the translation of Enter to the newline that Ctrl-J types.
    Ctrl-C still sends SIGINT. Enter this once around a whole chat: an input restores the mode that
    it found.
    """
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    held = termios.tcgetattr(descriptor)
    held[0] &= ~termios.ICRNL
    held[3] &= ~(termios.ECHO | termios.ICANON)

    def hold(number: int = 0, frame: FrameType | None = None) -> None:
        termios.tcsetattr(descriptor, termios.TCSANOW, held)

    hold()
    # After Ctrl-Z and fg the terminal is in the shell's mode.
    on_continue = signal.signal(signal.SIGCONT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGCONT, on_continue)
        termios.tcsetattr(descriptor, termios.TCSANOW, before)


@contextmanager
def _echo() -> Iterator[None]:
    """Set the terminal to echo, which readline does only where it finds that.

    All else stays: readline changes it itself, and Enter typed before it does must stay Enter.
    """
    descriptor = sys.stdin.fileno()
    held = termios.tcgetattr(descriptor)
    echoing = termios.tcgetattr(descriptor)
    echoing[3] |= termios.ECHO
    termios.tcsetattr(descriptor, termios.TCSANOW, echoing)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, held)


def open_history(warn: Callable[[str], None], *, keep: bool) -> History:
    """Open the history of earlier sessions, a file that only the user may read.

    Without ``keep``, or if the file cannot be created, the history is in memory only.
    """
    if not keep:
        return InMemoryHistory()
    path = state_home() / "history"
    try:
        create_private_file(path)
    except LlamaChatError as error:
        warn(f"{error.what}: {error.why}: what you type is not remembered")
        return InMemoryHistory()
    return FileHistory(str(path))


class _RawInput(Vt100Input):
    """Input of prompt-toolkit that may stay in raw mode while text is written above the prompt.

    In the mode that prompt-toolkit sets meanwhile, keys would be echoed, and Enter would become the
    newline of Ctrl-J.
    """

    stays_raw = False

    def cooked_mode(self) -> AbstractContextManager[None]:
        """Return the context in which another program has the terminal, or text is written."""
        return nullcontext() if self.stays_raw else super().cooked_mode()


class PromptInput:
    """Multi-line input that Enter sends, with a toolbar below."""

    def __init__(
        self,
        history: History,
        completer: Completer,
        toolbar: Callable[[], StyleAndTextTuples],
        *,
        colored: bool,
        on_open: Callable[[], None],
        on_shown: Callable[[], None],
        on_clear: Callable[[], None],
        on_send: Callable[[], object],
    ) -> None:
        """Create the input, closed.

        Args:
            history: earlier inputs.
            completer: for Tab, and while a command is typed.
            toolbar: returns the text of the toolbar; called at every key and ``redraw``.
            colored: whether to use colour.
            on_open: called whenever the input opens.
            on_shown: called whenever it is visible and takes keys.
            on_clear: called when Ctrl-C clears it.
            on_send: called when Enter sends it, before anything else happens.
        """
        self._on_open = on_open
        self._input = _RawInput(sys.stdin)
        self._session: PromptSession[str] = PromptSession(
            [("class:prompt", PROMPT)],
            input=self._input,
            multiline=True,
            prompt_continuation=" " * len(PROMPT),
            history=history,
            auto_suggest=AutoSuggestFromHistory(),
            completer=completer,
            complete_while_typing=Condition(self._is_command),
            complete_in_thread=True,  # keys must not wait for a slow disk
            key_bindings=_keys(completer, on_clear, on_send),
            bottom_toolbar=toolbar,
            style=_STYLE if colored else _NO_STYLE,
            enable_open_in_editor=True,
            enable_suspend=True,
            tempfile_suffix=".md",
        )

        self._is_shown = False

        def after_render(app: Application[str]) -> None:
            if not self._is_shown:
                self._is_shown = True
                on_shown()

        self._session.app.after_render += after_render

    @property
    def text(self) -> str:
        """See ``Input``."""
        return self._session.default_buffer.text

    def read(self, default: str = "") -> str:
        """See ``Input``."""
        self._is_shown = False
        return self._session.prompt(default=default, pre_run=self._on_open, handle_sigint=False)

    def clear(self) -> None:
        """See ``Input``."""
        self._session.default_buffer.reset()

    def redraw(self) -> None:
        """See ``Input``."""
        self._session.app.invalidate()

    def write_above(self, write: Callable[[], None]) -> None:
        """See ``Input``."""

        async def act() -> None:
            self._input.stays_raw = True
            try:
                await run_in_terminal(write)
            finally:
                self._input.stays_raw = False

        self.call(lambda: self._session.app.create_background_task(act()))

    def end(self, error: BaseException) -> None:
        """See ``Input``."""
        self.call(lambda: self._session.app.exit(exception=error))

    def call(self, act: Callable[[], object]) -> None:
        """See ``Input``."""
        app = self._session.app
        loop = app.loop  # read once: the main thread sets it to None when the input closes
        if loop is not None:
            with suppress(RuntimeError):  # the loop was closed since
                loop.call_soon_threadsafe(lambda: act() if app.is_running else None)

    def _is_command(self) -> bool:
        return self.text.startswith("/") and "\n" not in self.text


def _keys(
    completer: Completer, on_clear: Callable[[], None], on_send: Callable[[], object]
) -> KeyBindings:
    keys = KeyBindings()
    writing = ~is_searching

    @keys.add("enter", filter=writing)
    def _(event: KeyPressEvent) -> None:
        on_send()
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter", filter=writing)
    @keys.add("c-j", filter=writing)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c", filter=writing)
    def _(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
            on_clear()
        else:
            event.app.exit(exception=KeyboardInterrupt, style="class:aborting")

    @keys.add("tab", filter=writing)
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.complete_state:
            buffer.complete_next()
            return
        # Completed here: prompt-toolkit ignores a Tab while its own completion still runs.
        asked = CompleteEvent(completion_requested=True)
        fitting = list(completer.get_completions(buffer.document, asked))
        if len(fitting) == 1:
            buffer.apply_completion(fitting[0])
        elif fitting:
            buffer.complete_state = CompletionState(buffer.document, fitting)
            buffer.complete_next()

    @keys.add("c-g", filter=writing & ~has_completions)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.open_in_editor()

    return keys


class PlainInput:
    """Input by readline: nothing is drawn that a screen reader would read again."""

    def __init__(self, history: History) -> None:
        readline.clear_history()
        for line in reversed(list(history.load_history_strings())):
            readline.add_history(line)
        readline.set_auto_history(False)
        readline.parse_and_bind(r'"\C-j": "\C-v\C-j"')
        self._history = history

    @property
    def text(self) -> str:
        """Empty text: the line is not known before it is sent."""
        return ""

    def read(self, default: str = "") -> str:
        """See ``Input``."""
        readline.set_startup_hook(lambda: readline.insert_text(default))
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with _echo():
                line = input("> ")
        except (EOFError, KeyboardInterrupt):
            sys.stdout.write("\n")  # the cursor is still at the end of the typed line
            raise
        finally:
            signal.signal(signal.SIGINT, before)
        if line.strip():
            self._history.append_string(line)
            readline.add_history(line)
        return line

    def clear(self) -> None:
        """Do nothing: a line cannot be changed before it is sent."""

    def redraw(self) -> None:
        """Do nothing: there is no toolbar."""

    def call(self, act: Callable[[], object]) -> None:
        """Do nothing: background jobs are handled before the next line is read."""

    def write_above(self, write: Callable[[], None]) -> None:
        """Do nothing: a line that is being read must not be disturbed."""

    def end(self, error: BaseException) -> None:
        """Do nothing: ``read`` cannot be ended from outside."""
