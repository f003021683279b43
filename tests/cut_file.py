"""Program that cuts a model file short while it is mapped, and goes on; see test_cut_files.

Its arguments are the file, and what goes on: ``load``, ``check`` or ``convert``. It prints the
error that this ends with.
"""

import os
import sys
from pathlib import Path

from llama_chat.conversion.gguf import GGUFFile
from llama_chat.errors import ModelError
from llama_chat.loading.checks import ModelCheck
from llama_chat.loading.formats import open_checkpoint
from llama_chat.loading.plan import plan


def main(path: Path, use: str) -> None:
    """Map the file, cut it in half, and use it."""
    half = path.stat().st_size // 2
    try:
        if use == "load":
            planned = plan(path, quantize="int8")  # which reads all of it
            os.truncate(path, half)
            planned.load()
        elif use == "check":
            for finding in ModelCheck(path).run():
                if finding.name == "headers":
                    os.truncate(path, half)
                if finding.name == "weights":
                    print(finding.error)
        else:
            checkpoint = open_checkpoint(path)
            file = GGUFFile(checkpoint, checkpoint.read_vocabulary(), "F32")
            os.truncate(path, half)
            file.write(path.with_name("out.gguf"), lambda done, total: None)
    except ModelError as error:
        print(error)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
