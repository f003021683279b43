"""Play a recorded reply through the program's renderer, in a separate process.

    python -m tests.play_reply TOKENS PAUSE [WRAP]

TOKENS is a JSON array of texts. Where the reply so far ends with PAUSE, it waits for a line on
stdin. WRAP is a value of the setting ``wrap``.
"""

import json
import sys
from pathlib import Path

from llama_chat.settings.definitions import OutputSettings
from llama_chat.terminal.renderer import Renderer
from llama_chat.terminal.theme import Background


def main() -> None:
    """Play the reply."""
    tokens, pause, *wrap = sys.argv[1:]
    writer = Renderer(OutputSettings(wrap=wrap[0] if wrap else "words"), Background()).reply()
    text = ""
    for token in json.loads(Path(tokens).read_text()):
        text += token
        writer.push(token)
        if text.endswith(pause):
            sys.stdin.readline()
    writer.finish()


if __name__ == "__main__":
    main()
