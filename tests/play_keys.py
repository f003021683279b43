"""Read lines, and print each as it was sent, until one is ``end``.

python -m tests.play_keys [plain] [late]
"""

import select
import sys

from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.history import InMemoryHistory

from llama_chat.terminal.keyboard import Input
from llama_chat.terminal.plain_input import PlainInput
from llama_chat.terminal.raw_input import hold_keys
from tests.prompt_inputs import new_input


class Words(Completer):
    """Completer of one word."""

    def get_completions(self, document: Document, event: CompleteEvent) -> list[Completion]:
        """Complete ``word``."""
        text = document.text_before_cursor
        return [Completion("word", -len(text))] if text and "word".startswith(text) else []


def open_input() -> Input:
    """Open the input that the command line names."""
    if "plain" in sys.argv:
        return PlainInput(InMemoryHistory(), Words, lambda: None)
    return new_input(Words())


def main() -> None:
    """Print every line."""
    lines = open_input()
    with hold_keys():
        if "late" in sys.argv:
            print("waiting", flush=True)
            select.select([0], [], [])
        sent = ""
        while sent != "end":
            sent = lines.read()
            print(f"sent: {sent!r}", flush=True)


if __name__ == "__main__":
    main()
