"""Builds the C kernels into the package, where there is a C compiler."""

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

KERNELS = Path(__file__).with_name("llama_chat") / "kernels"

# Arithmetic sets no errno and raises no signal here, and need not be kept from vectors for it.
FLAGS = (
    *("-O3", "-std=gnu11", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"),
    *("-fPIC", "-fvisibility=hidden"),
)

THREADS = ("-fopenmp", "-fopenmp-simd")
"""Flags to try, one after the other: the second leaves only the vectors of OpenMP."""


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
    """Compile and link ``sources``, with threads if the compiler has OpenMP.

    Returns:
        True if it could. If not, one line on stderr has said why.
    """
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    reason = "no C compiler"
    for threads in THREADS if compiler else ():
        try:
            _build([*str(compiler).split(), *FLAGS, threads], sources, library)
        except subprocess.CalledProcessError as error:
            reason = _first_error(error.stderr)
        except OSError as error:
            reason = str(error)
        else:
            return True
    print(f"no C kernels: {reason}", file=sys.stderr)
    return False


def _build(compile_with: Sequence[str], sources: Sequence[Path], library: Path) -> None:
    """Compile each source, as many at a time as there are cores, and link all of them.

    Raises:
        CalledProcessError: if the compiler fails.
        OSError: if there is no such compiler.
    """
    with TemporaryDirectory() as folder, ThreadPoolExecutor(_n_cores()) as pool:
        objects = [Path(folder) / f"{source.stem}.o" for source in sources]
        commands = [
            [*compile_with, "-c", str(source), "-o", str(to)]
            for source, to in zip(sources, objects, strict=True)
        ]
        # The last ones in the alphabet take longest, the portable kernels: they go first.
        running = [pool.submit(_run, command) for command in reversed(commands)]
        try:
            for done in running:
                done.result()
        finally:
            pool.shutdown(cancel_futures=True)
        # A program that has loaded the library keeps the file it loaded.
        linked = library.with_name(f"{library.name}.{os.getpid()}")
        try:
            _run([*compile_with, "-shared", *map(str, objects), "-o", str(linked), "-lm"])
            linked.replace(library)
        finally:
            linked.unlink(missing_ok=True)


def _run(command: Sequence[str]) -> None:
    subprocess.run(command, capture_output=True, text=True, check=True)


def _n_cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _first_error(output: str) -> str:
    """Pick the line of a compiler's output that says what is wrong."""
    lines = output.strip().splitlines() or ["the C compiler failed without a word"]
    return next((line for line in lines if "error" in line), lines[-1])[:500]
