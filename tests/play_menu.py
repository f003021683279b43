"""Read a line, with a menu for ``/b``; listing one for ``/slow`` takes until a file is removed.

python -m tests.play_menu FILE
"""

import sys
import time
from collections.abc import Iterable
from pathlib import Path

from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document

from llama_chat.terminal.raw_input import hold_keys
from tests.prompt_inputs import new_input

HELD = Path(sys.argv[1])


class SlowCompleter(Completer):
    """Completer that creates the file, and waits until it is removed."""

    def get_completions(self, document: Document, event: CompleteEvent) -> Iterable[Completion]:
        """Complete ``/b``."""
        if document.text == "/slow":
            HELD.touch()
            while HELD.exists():
                time.sleep(0.01)
        if document.text == "/b":
            yield Completion("/branch", -2, display_meta="listed")


def main() -> None:
    """Read a line, and print it."""
    typed = new_input(SlowCompleter())
    with hold_keys():
        print(f"sent: {typed.read()!r}")


if __name__ == "__main__":
    main()
