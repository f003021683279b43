"""Input with keys, history and completion."""

import asyncio
import logging
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from prompt_toolkit import PromptSession, print_formatted_text
from prompt_toolkit.application import Application, run_in_terminal
from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
from prompt_toolkit.completion import Completer
from prompt_toolkit.document import Document
from prompt_toolkit.enums import EditingMode
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import FormattedText, StyleAndTextTuples
from prompt_toolkit.history import History
from prompt_toolkit.layout.controls import UIContent
from prompt_toolkit.layout.dimension import Dimension
from prompt_toolkit.layout.screen import Char
from prompt_toolkit.output import ColorDepth
from prompt_toolkit.styles import Style

from llama_chat.errors import LlamaChatError
from llama_chat.terminal.completion import MenuCompleter
from llama_chat.terminal.echo import is_long, shortened
from llama_chat.terminal.editor import edit_text
from llama_chat.terminal.graphemes import left_of, right_of
from llama_chat.terminal.history import put_aside
from llama_chat.terminal.keys import chat_keys, select_all
from llama_chat.terminal.raw_input import ESCAPE_S, RawInput
from llama_chat.terminal.resizing import Resizes
from llama_chat.terminal.row_breaks import height_for_line
from llama_chat.terminal.sanitizer import REPLACEMENTS, sanitize

_STYLE = {
    "prompt": "bold ansigreen",
    "auto-suggestion": "fg:default dim",
    "bottom-toolbar": "noreverse",
    "bottom-toolbar.text": "noreverse dim",
    "bottom-toolbar.warning": "noreverse bold",
    **dict.fromkeys(("search", "completion-menu"), "fg:default bg:default reverse"),
    "completion-menu.completion.current": "fg:default bg:default noreverse bold",
    "completion-menu.meta.completion": "fg:default bg:default",
    "completion-menu.meta.completion.current": "fg:default bg:default noreverse",
    **dict.fromkeys(("scrollbar.background", "scrollbar.button"), "bg:default"),
    **dict.fromkeys(("aborting", "exiting"), "fg:default dim"),
    "nbsp": "fg:default underline",
}
"""Styles that read well on any background: on some, bright black and yellow are not to be seen."""
_NO_COLOR = {"auto-suggestion": "nodim underline"}

# The table by which prompt-toolkit draws every character: of the input, suggestions, completions
# and the toolbar. The text of the input stays as it is.
Char.display_mappings |= REPLACEMENTS
# The cursor would move by characters, also within what is drawn as one.
Document.get_cursor_left_position = left_of  # type: ignore[method-assign,assignment]
Document.get_cursor_right_position = right_of  # type: ignore[method-assign,assignment]
UIContent.get_height_for_line = height_for_line  # type: ignore[method-assign,assignment]

PROMPT = "› "

_N_TOOLBARS = 2
"""Lines below the input: its toolbar, and one while the history is searched or a count typed."""

for _name in ("asyncio", "prompt_toolkit"):
    # What fails is told by ``on_failure``; without a handler a stack trace would be written too.
    logging.getLogger(_name).addHandler(logging.NullHandler())


class Input(Protocol):
    """Input of commands and messages."""

    @property
    def text(self) -> str:
        """Text typed so far."""

    def read(self, default: str = "", *, selected: bool = False) -> str:
        """Let the user edit ``default``, and return the text that was sent.

        If it is ``selected``, typing replaces it, where the keys allow that.

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

    def close(self) -> None:
        """Leave the terminal in the mode in which the input found it."""

    def end(self, error: BaseException) -> None:
        """Make ``read`` raise ``error``, if it runs."""


class _Session(PromptSession[str]):
    """Session whose menu takes no more lines than the window has.

    prompt-toolkit reserves eight for it, and in a window without these draws no input at all.
    """

    def _get_default_buffer_control_height(self) -> Dimension:
        n_free = max(self.app.output.get_size().rows - _N_TOOLBARS, 0)
        return Dimension(min=min(super()._get_default_buffer_control_height().min, n_free))


class PromptInput:
    """Multi-line input that Enter sends, with a toolbar below."""

    def __init__(
        self,
        history: History,
        completer: Completer,
        toolbar: Callable[[], StyleAndTextTuples],
        *,
        colored: bool,
        vi: bool = False,
        on_open: Callable[[], None],
        on_shown: Callable[[], None],
        on_clear: Callable[[], None],
        on_send: Callable[[], object],
        on_report: Callable[[str], None],
        on_failure: Callable[[Exception], None],
    ) -> None:
        """Create the input, closed.

        Args:
            history: earlier inputs.
            completer: for Tab, and while a command is typed.
            toolbar: returns the text of the toolbar; called at every key and ``redraw``.
            colored: whether to use colour.
            vi: whether the keys are those of vi.
            on_open: called whenever the input opens.
            on_shown: called whenever it is visible and takes keys.
            on_clear: called when Ctrl-C clears it.
            on_send: called when Enter sends it, before anything else happens.
            on_report: called with sequences that are no keys, such as reports of the terminal.
            on_failure: called with what fails meanwhile in a key, the toolbar, the history, a
                completion or any other callback; the input goes on.
        """
        self._on_open = on_open
        self._on_failure = on_failure
        self._ended_by: BaseException | None = None
        """Argument of ``end``, once that was called."""
        self._input = RawInput(sys.stdin, on_report)
        menu = MenuCompleter(completer)
        self._session = _Session(
            [("class:prompt", PROMPT)],
            input=self._input,
            multiline=True,
            editing_mode=EditingMode.VI if vi else EditingMode.EMACS,
            prompt_continuation=" " * len(PROMPT),
            history=history,
            auto_suggest=AutoSuggestFromHistory(),
            completer=menu,
            complete_while_typing=Condition(self._is_command),
            key_bindings=chat_keys(completer, on_clear, on_send, on_failure, self._edit),
            bottom_toolbar=lambda: self._drawn(toolbar),
            style=Style.from_dict(_STYLE if colored else _STYLE | _NO_COLOR),
            color_depth=ColorDepth.DEPTH_4_BIT if colored else ColorDepth.DEPTH_1_BIT,
            enable_suspend=True,
        )
        menu.follow(self._session.default_buffer)

        self._session.app.ttimeoutlen = ESCAPE_S
        self._is_shown = False

        def after_render(app: Application[str]) -> None:
            if not self._is_shown:
                self._is_shown = True
                on_shown()

        self._session.app.after_render += after_render
        self._resizes = Resizes(self._session.app)

    @property
    def text(self) -> str:
        """See ``Input``."""
        return self._session.default_buffer.text

    def read(self, default: str = "", *, selected: bool = False) -> str:
        """See ``Input``."""
        self._ended_by = None
        try:
            return self._prompt(default, selected=selected)
        except Exception as error:
            if self._ended_by is not None or isinstance(error, EOFError):
                if self.text.strip():  # for Up in the next chat
                    self._session.history.append_string(self.text)
                raise self._ended_by or error from None
            self._on_failure(error)
        return self._prompt(self.text)  # what fails again ends the chat

    def _prompt(self, default: str, *, selected: bool = False) -> str:
        self._is_shown = False
        self._session.app.erase_when_done = False
        self._resizes.settle()
        try:
            text = self._session.prompt(
                default=default,
                pre_run=lambda: self._prepare(selected=selected),
                handle_sigint=False,
                set_exception_handler=False,  # it would wait for Enter
            )
            if is_long(text):
                echo = [("class:prompt", PROMPT), ("", sanitize(shortened(text)))]
                print_formatted_text(
                    FormattedText(echo),
                    style=self._session.style,
                    color_depth=self._session.color_depth,
                )
            return text
        finally:
            self._session.app.renderer.reset()  # if the first drawing failed, it is still set up
            self._mark_pastes(True)  # one made before the next input would become many messages

    def _prepare(self, *, selected: bool) -> None:
        asyncio.get_running_loop().set_exception_handler(self._on_loop_error)
        if selected and self._session.editing_mode == EditingMode.EMACS:
            select_all(self._session.app)
        self._on_open()

    def _on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception") or RuntimeError(context["message"])
        if isinstance(error, Exception):
            self._on_failure(error)

    def _drawn(self, toolbar: Callable[[], StyleAndTextTuples]) -> StyleAndTextTuples:
        """Call ``toolbar``; if it fails, the input is drawn without it."""
        try:
            return toolbar()
        except Exception as error:
            self._on_failure(error)
            return []

    def _edit(self) -> None:
        """Open an editor with the typed text."""
        buffer = self._session.default_buffer

        def edit() -> None:
            edited = edit_text(buffer.text, lambda: self._ended_by is not None)
            buffer.document = Document(edited)

        async def act() -> None:
            await run_in_terminal(edit)

        self._session.app.create_background_task(act())

    def clear(self) -> None:
        """See ``Input``."""
        put_aside(self._session.default_buffer)

    def redraw(self) -> None:
        """See ``Input``."""
        self._session.app.invalidate()

    def write_above(self, write: Callable[[], None]) -> None:
        """See ``Input``."""

        async def act() -> None:
            self._input.n_writers += 1
            try:
                await run_in_terminal(write)
            finally:
                self._input.n_writers -= 1

        self.call(lambda: self._session.app.create_background_task(act()))

    def close(self) -> None:
        """See ``Input``."""
        self._mark_pastes(False)

    def _mark_pastes(self, wanted: bool) -> None:
        output = self._session.app.output
        with suppress(OSError, LlamaChatError):  # the terminal has gone
            mark = output.enable_bracketed_paste if wanted else output.disable_bracketed_paste
            mark()
            output.flush()

    def end(self, error: BaseException) -> None:
        """See ``Input``."""
        self._ended_by = error
        app = self._session.app
        self.call(lambda: None if app.is_done else app.exit(exception=error))

    def call(self, act: Callable[[], object]) -> None:
        """See ``Input``."""
        app = self._session.app
        loop = app.loop  # read once: the main thread sets it to None when the input closes
        if loop is not None:
            with suppress(RuntimeError):  # the loop was closed since
                loop.call_soon_threadsafe(lambda: act() if app.is_running else None)

    def _is_command(self) -> bool:
        return self.text.startswith("/") and "\n" not in self.text
