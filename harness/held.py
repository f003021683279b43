"""Run the program, and let its model load only once a named pipe is opened for writing.

python -m harness.held PIPE ARGUMENT...
"""

import os
import sys

from llama_chat.__main__ import main
from llama_chat.llama import Llama
from llama_chat.loading.load_plan import LoadPlan, Report


def hold_loading(pipe: str) -> None:
    """Make loading report a tenth of the bytes, and then wait for ``pipe``."""
    load = LoadPlan.load

    def held(self: LoadPlan, report: Report | None = None) -> Llama:
        if report is not None:
            report(1, 10)
        os.close(os.open(pipe, os.O_RDONLY))
        return load(self, report)

    LoadPlan.load = held  # type: ignore[method-assign]


if __name__ == "__main__":
    hold_loading(sys.argv.pop(1))
    main()
