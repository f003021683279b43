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
            _discard_unwritten_errors()
    except KeyboardInterrupt:
        status = INTERRUPTED_STATUS
    sys.exit(status)


def _discard_unwritten_errors() -> None:
    """Discard what stderr does not take: Python would fail again at its end, with status 120."""
    try:
        if sys.stderr is not None and not sys.stderr.closed:
            sys.stderr.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)


if __name__ == "__main__":
    main()
