"""Entry point; imports inside ``main``, so that Ctrl-C while importing prints no traceback."""

import gc
import os
import signal
import sys

from llama_chat.errors import INTERRUPTED_STATUS


def main() -> None:
    """Run the command line and exit with its status."""
    # Waiting OpenMP threads sleep after microseconds of spinning, not milliseconds: otherwise one
    # thread that waits for a busy core slows all of them down many times. OpenMP reads this when
    # torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    try:
        try:
            # Imported objects live as long as the program: a collection would find little to free.
            gc.disable()
            from llama_chat.cli.app import run

            gc.enable()
            status = run(sys.argv[1:])
        finally:
            # All is written: while Python ends, Ctrl-C ends the program without a traceback.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
    except KeyboardInterrupt:
        status = INTERRUPTED_STATUS
    sys.exit(status)


if __name__ == "__main__":
    main()
