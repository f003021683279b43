"""Read a line while text is written above the input, until a file exists.

python -m tests.play_input FILE
"""

import sys
import time
from pathlib import Path
from threading import Thread

from prompt_toolkit.completion import DummyCompleter
from prompt_toolkit.history import InMemoryHistory

from llama_chat.terminal.keyboard import PromptInput
from llama_chat.terminal.raw_input import hold_keys


def main() -> None:
    """Read a line, and print it."""
    released = Path(sys.argv[1])

    def write() -> None:
        print("writing", flush=True)
        while not released.exists():
            time.sleep(0.01)
        print("written", flush=True)

    typed = PromptInput(
        InMemoryHistory(),
        DummyCompleter(),
        lambda: [("", "toolbar")],
        colored=False,
        on_open=lambda: None,
        on_shown=lambda: Thread(target=typed.write_above, args=(write,)).start(),
        on_clear=lambda: None,
        on_send=lambda: None,
        on_report=lambda sequence: None,
        on_failure=lambda error: None,
    )
    with hold_keys():
        print(f"sent: {typed.read()!r}")


if __name__ == "__main__":
    main()
