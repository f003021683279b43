"""Read a line while something in the input fails, every time.

python -m tests.play_failure WHAT
"""

import asyncio
import sys
from collections.abc import Callable, Iterable

from prompt_toolkit.application import get_app
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.history import InMemoryHistory

from llama_chat.terminal.keyboard import PromptInput
from llama_chat.terminal.raw_input import hold_keys

WHAT = sys.argv[1]


def fail(what: str) -> None:
    if what == WHAT:
        raise RuntimeError(f"the {what} fails")


class FailingHistory(InMemoryHistory):
    """History that cannot be read, or not be added to."""

    def load_history_strings(self) -> Iterable[str]:
        fail("history")
        return super().load_history_strings()

    def store_string(self, string: str) -> None:
        fail("storing")
        super().store_string(string)


class FailingCompleter(Completer):
    """Completer that fails before or between its completions."""

    def get_completions(self, document: Document, event: CompleteEvent) -> Iterable[Completion]:
        if event.completion_requested:
            fail("tab")
        yield Completion("/help", -len(document.text))
        fail("menu")


def toolbar() -> StyleAndTextTuples:
    fail("toolbar")
    return [("", "toolbar")]


async def task() -> None:
    fail("task")


async def lost_task() -> None:
    fail("lost task")


def main() -> None:
    """Read a line, and print it."""

    def act(what: str) -> Callable[[], None]:
        return lambda: fail(what)

    def on_shown() -> None:
        typed.write_above(act("writing"))
        typed.call(act("callback"))
        typed.call(lambda: get_app().create_background_task(task()))
        typed.call(lambda: asyncio.ensure_future(lost_task()) and None)
        if not told:
            fail("first drawing")

    def on_open() -> None:
        if not told:
            fail("opening")

    def on_failure(error: Exception) -> None:
        if str(error) not in told:
            told.add(str(error))
            typed.write_above(lambda: print(f"told: {error}"))

    told: set[str] = set()
    typed = PromptInput(
        FailingHistory(),
        FailingCompleter(),
        toolbar,
        colored=False,
        on_open=on_open,
        on_shown=on_shown,
        on_clear=act("clearing"),
        on_send=act("sending"),
        on_report=lambda sequence: None,
        on_failure=on_failure,
    )
    with hold_keys():
        line = typed.read()
    print(f"sent: {line!r}; failures: {told}")


if __name__ == "__main__":
    main()
