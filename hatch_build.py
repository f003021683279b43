"""Builds the C functions for packed weights, where a C compiler is to be had."""

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

KERNELS = Path(__file__).with_name("llama_chat") / "kernels"

# Arithmetic sets no errno and raises no signal here, and need not be kept from vectors for it.
FLAGS = (
    *("-O3", "-std=gnu11", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"),
    *("-fPIC", "-shared", "-fvisibility=hidden"),
)


class KernelBuildHook(BuildHookInterface):  # type: ignore[type-arg] # generic only since 1.28
    """Compiles what is in C into the package; without a compiler there is plain torch."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build before the files of the wheel are chosen."""
        if self.target_name != "wheel":
            return
        library = KERNELS / "_packed.so"
        library.unlink(missing_ok=True)
        if build_library(sorted(KERNELS.glob("*.c")), library):
            build_data["artifacts"].append("/llama_chat/kernels/_packed.so")
            build_data["pure_python"] = False
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["tag"] = f"py3-none-{platform}"


def build_library(sources: Sequence[Path], library: Path) -> bool:
    """Compile ``sources``, in several threads if the compiler knows how; False if it cannot."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        return False
    for threads in (["-fopenmp"], []):
        command = [
            *compiler.split(),
            *FLAGS,
            *threads,
            *map(str, sources),
            "-o",
            str(library),
            "-lm",
        ]
        try:
            built = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError:
            return False
        if built.returncode == 0:
            return True
    print(f"no C kernels: {built.stderr.strip()[-500:]}", file=sys.stderr)
    return False
