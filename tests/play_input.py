"""Read a line while text is written above the input, until a file exists.

python -m tests.play_input FILE
"""

import sys
import time
from pathlib import Path
from threading import Thread

from llama_chat.terminal.raw_input import hold_keys
from tests.prompt_inputs import new_input


def main() -> None:
    """Read a line, and print it."""
    released = Path(sys.argv[1])

    def write() -> None:
        print("writing", flush=True)
        while not released.exists():
            time.sleep(0.01)
        print("written", flush=True)

    typed = new_input(on_shown=lambda: Thread(target=typed.write_above, args=(write,)).start())
    with hold_keys():
        print(f"sent: {typed.read()!r}")


if __name__ == "__main__":
    main()
