"""Inputs for the programs that tests play in a terminal."""

from collections.abc import Callable

from prompt_toolkit.completion import Completer, DummyCompleter
from prompt_toolkit.history import InMemoryHistory

from llama_chat.terminal.keyboard import PromptInput


def new_input(
    completer: Completer | None = None, *, on_shown: Callable[[], None] = lambda: None
) -> PromptInput:
    """Make an input with a toolbar, which prints what fails."""
    return PromptInput(
        InMemoryHistory(),
        completer or DummyCompleter(),
        lambda: [("", "toolbar")],
        colored=False,
        on_open=lambda: None,
        on_shown=on_shown,
        on_clear=lambda: None,
        on_send=lambda: None,
        on_report=lambda sequence: None,
        on_failure=lambda error: print(f"failed: {error}"),
    )
