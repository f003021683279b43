"""The input line: keys, history, completion."""

import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prompt_toolkit import PromptSession
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.styles import Style

from llama_chat.errors import LlamaChatError
from llama_chat.files import create_private_file, state_home
from llama_chat.terminal.completion import CommandCompleter

_STYLE = Style.from_dict(
    {
        "prompt": "bold ansigreen",
        "bottom-toolbar": "noreverse ansibrightblack",
        "bottom-toolbar.text": "noreverse ansibrightblack",
    }
)
_NO_STYLE = Style.from_dict({"bottom-toolbar": "noreverse"})


@contextmanager
def hold_keys() -> Iterator[None]:
    """Keep what is typed while no input is open for the next one.

    It is not echoed into a reply, and Enter stays Enter: the terminal would make it the newline
    that Ctrl-J types. Ctrl-C still interrupts. To be held around a whole chat: an input restores
    the mode it found.
    """
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    held = termios.tcgetattr(descriptor)
    held[0] &= ~termios.ICRNL
    held[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(descriptor, termios.TCSANOW, held)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)


def open_history(warn: Callable[[str], None]) -> History:
    """The history of earlier sessions, in a file that nobody else may read.

    Where it cannot be had, this session still has one of its own.
    """
    path = state_home() / "history"
    try:
        create_private_file(path)
    except LlamaChatError as error:
        warn(f"{error.what}: {error.why}: what you type is not remembered")
        return InMemoryHistory()
    return FileHistory(str(path))


def open_keyboard(
    history: History, toolbar: Callable[[], str], *, colored: bool
) -> PromptSession[str]:
    """An input of many lines that Enter sends."""
    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    @keys.add("c-j")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c")
    def _(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt, style="class:aborting")

    return PromptSession(
        [("class:prompt", "› ")],
        multiline=True,
        prompt_continuation="  ",
        history=history,
        completer=CommandCompleter(),
        complete_while_typing=False,
        key_bindings=keys,
        bottom_toolbar=toolbar,
        style=_STYLE if colored else _NO_STYLE,
        enable_open_in_editor=True,
        tempfile_suffix=".md",
    )
