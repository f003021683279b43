"""The program. Everything it needs is imported inside, so that Ctrl-C is quiet from the start."""

import gc
import os
import sys

from llama_chat.errors import INTERRUPTED_STATUS


def main() -> None:
    """Run the command line and exit with its status."""
    # Threads that wait for each other sleep after some microseconds, not milliseconds: else a busy
    # core, where one of them waits for its turn, slows all of them down many times. OpenMP reads
    # this when torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    try:
        # What lasts as long as the program need not be looked through for garbage.
        gc.disable()
        from llama_chat.cli.app import run

        gc.enable()
        status = run(sys.argv[1:])
    except KeyboardInterrupt:
        status = INTERRUPTED_STATUS
    sys.exit(status)


if __name__ == "__main__":
    main()
