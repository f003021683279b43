"""Plays a recorded reply through the program's own renderer, in a process of its own.

    python -m tests.play_reply TOKENS PAUSE

TOKENS is a JSON array of texts. After the first one that makes the reply end with PAUSE it waits
for a line on stdin.
"""

import json
import sys
from pathlib import Path

from llama_chat.terminal.renderer import Renderer


def main() -> None:
    """See the module."""
    tokens, pause = sys.argv[1:]
    writer = Renderer().reply()
    text = ""
    for token in json.loads(Path(tokens).read_text()):
        text += token
        writer.push(token)
        if text.endswith(pause):
            sys.stdin.readline()
    writer.finish()


if __name__ == "__main__":
    main()
