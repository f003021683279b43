"""Run the program, which gets stuck: while it loads, or on a message.

python -m tests.play_stuck load|message ARGUMENTS
"""

import sys
import time
from typing import Any

import llama_chat.cli.chat as command
from llama_chat.cli.app import run
from llama_chat.terminal.chat import Chat


def stuck(*arguments: Any, **options: Any) -> Any:
    """Say so, and do nothing for a long time, whatever happens."""
    print("stuck", flush=True)
    while True:
        time.sleep(100)


if __name__ == "__main__":
    if sys.argv[1] == "load":
        setattr(command, "_plan", stuck)  # noqa: B010 - not exported there
    else:
        Chat.send = stuck  # type: ignore[method-assign]
    sys.exit(run(sys.argv[2:]))
