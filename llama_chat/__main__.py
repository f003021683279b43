"""Entry point; imports inside ``main``, so that Ctrl-C while importing prints no traceback."""

import gc
import os
import signal
import sys


def main() -> None:
    """Run the command line and exit with its status."""
    # Until all is imported, Ctrl-C ends the program at once, without a traceback.
    is_interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_interruptible:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Waiting OpenMP threads sleep after microseconds of spinning, not milliseconds: otherwise one
    # thread that waits for a busy core slows all of them down many times. OpenMP reads this when
    # torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # Imported objects live as long as the program: a collection would find little to free.
    gc.disable()
    from llama_chat.cli.app import run
    from llama_chat.errors import INTERRUPTED_STATUS

    gc.enable()
    try:
        try:
            if is_interruptible:
                signal.signal(signal.SIGINT, signal.default_int_handler)
            status = run(sys.argv[1:])
        finally:
            # All is written: while Python ends, Ctrl-C ends the program without a traceback.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
    except KeyboardInterrupt:
        status = INTERRUPTED_STATUS
    sys.exit(status)


if __name__ == "__main__":
    main()
