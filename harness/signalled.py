"""Run the program, and send it a signal at an exact moment of its main thread.

    python -m harness.signalled NUMBER AT FUNCTION ARGUMENT...

The signal NUMBER is sent at the AT-th event of Python's profiler from the first call of FUNCTION:
at a call or a return of a function, in Python or C. These are the moments at which Python runs the
handler of a signal.
"""

import os
import sys
from types import FrameType

from llama_chat.__main__ import main


def strike(number: int, at: int, function: str) -> None:
    """Send this process a signal at that event."""
    count = 0

    def on_event(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        name = getattr(argument, "__name__", "") if event == "c_call" else frame.f_code.co_name
        if count or name == function:
            count += 1
            if count == at:
                sys.setprofile(None)
                os.kill(os.getpid(), number)

    sys.setprofile(on_event)


if __name__ == "__main__":
    number, at, function = sys.argv[1:4]
    del sys.argv[1:4]
    strike(int(number), int(at), function)
    main()
