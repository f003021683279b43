"""Keys of the input, besides those of prompt-toolkit."""

from collections.abc import Callable

from prompt_toolkit.application import Application, get_app
from prompt_toolkit.buffer import CompletionState
from prompt_toolkit.completion import CompleteEvent, Completer
from prompt_toolkit.filters import (
    Condition,
    Filter,
    emacs_insert_mode,
    emacs_mode,
    has_completions,
    has_selection,
    is_searching,
    shift_selection_mode,
    vi_insert_mode,
)
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.key_binding.key_processor import KeyProcessor
from prompt_toolkit.selection import SelectionState

from llama_chat.terminal.echo import is_long
from llama_chat.terminal.graphemes import length_after, length_before
from llama_chat.terminal.history import put_aside, take_up

_Handler = Callable[[KeyPressEvent], None]

_has_text = Condition(lambda: bool(get_app().current_buffer.text))
_writing = ~is_searching
_inserting = _writing & (emacs_insert_mode | vi_insert_mode)


class _Keys(KeyBindings):
    """Key bindings whose failure loses none of the keys typed after them."""

    def __init__(self, on_failure: Callable[[Exception], None]) -> None:
        super().__init__()
        self._on_failure = on_failure

    def on(
        self, *keys: str, when: Filter = _writing, eager: bool = False
    ) -> Callable[[_Handler], _Handler]:
        """Bind keys to the decorated handler.

        With ``eager`` a longer binding that begins with them is not waited for.
        """

        def bind(handler: _Handler) -> _Handler:
            def guarded(event: KeyPressEvent) -> None:
                try:
                    handler(event)
                except Exception as error:
                    self._on_failure(error)

            self.add(*keys, filter=when, eager=eager)(guarded)
            return handler

        return bind


def chat_keys(
    completer: Completer,
    on_clear: Callable[[], None],
    on_send: Callable[[], object],
    on_failure: Callable[[Exception], None],
    edit: Callable[[], None],
) -> KeyBindings:
    """Return the key bindings of the input; see ``PromptInput`` for the arguments.

    Args:
        completer: for Tab.
        on_clear: called when Ctrl-C clears it.
        on_send: called when Enter sends it.
        on_failure: called with what fails in a key.
        edit: opens an editor.
    """
    keys = _Keys(on_failure)

    @keys.on("enter")
    def _(event: KeyPressEvent) -> None:
        on_send()
        event.app.erase_when_done = is_long(event.current_buffer.text)
        take_up(event.current_buffer)
        event.current_buffer.validate_and_handle()

    @keys.on("escape", "enter", when=_writing & emacs_mode)
    @keys.on("c-j")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    keys.on("backspace", when=_inserting & ~has_selection)(_delete_before)
    keys.on("delete", when=_inserting & ~has_selection)(_delete_after)
    keys.on("c-d", when=_writing & emacs_insert_mode & _has_text)(_delete_after)

    @keys.on("delete", when=shift_selection_mode)
    @keys.on("c-u", when=shift_selection_mode)
    @keys.on("c-w", when=shift_selection_mode)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.cut_selection()

    @keys.on("<bracketed-paste>", when=shift_selection_mode)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.cut_selection()
        event.key_processor.feed(event.key_sequence[0], first=True)

    @keys.on("c-c", eager=True)  # prompt-toolkit indents a selection by Ctrl-C and ">"
    def _(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            put_aside(event.current_buffer)
            event.app.vi_state.reset()  # to inserting, as in a new line
            on_clear()
        else:
            event.app.exit(exception=KeyboardInterrupt, style="class:aborting")

    @keys.on("tab")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.complete_state and buffer.complete_state.completions:
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

    @keys.on("c-g", when=_writing & ~has_completions)
    @keys.on("c-x", "c-e")
    def _(event: KeyPressEvent) -> None:
        edit()

    return keys


def select_all(app: Application[str]) -> None:
    """Select the text of the input until the next key, so that typing replaces it."""
    buffer = app.current_buffer
    buffer.selection_state = SelectionState(0)
    buffer.selection_state.enter_shift_mode()

    def end(keys: KeyProcessor) -> None:
        app.key_processor.after_key_press -= end
        buffer.exit_selection()

    app.key_processor.after_key_press += end


def _delete_before(event: KeyPressEvent) -> None:
    buffer = event.current_buffer
    length = length_before(buffer.document.text_before_cursor, event.arg)
    if not buffer.delete_before_cursor(length):
        event.app.output.bell()


def _delete_after(event: KeyPressEvent) -> None:
    buffer = event.current_buffer
    if not buffer.delete(length_after(buffer.document.text_after_cursor, event.arg)):
        event.app.output.bell()
