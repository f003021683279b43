"""Build the C kernels into the package, if there is a C compiler."""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

KERNELS = Path(__file__).with_name("llama_chat") / "kernels"

# The kernels use neither errno nor floating-point traps, which would prevent vectorization.
FLAGS = (
    *("-O3", "-std=gnu11", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"),
    *("-fPIC", "-fvisibility=hidden", "-pthread"),
)

APPLE_OPENMP = "torch/lib/libomp.dylib"
"""OpenMP of torch in its package, since Apple's compiler comes without a library of its own."""


def thread_flags(packages: Path) -> Iterator[tuple[list[str], list[str]]]:
    """Yield flags to try in turn, for compiling and for linking.

    OpenMP, with torch's library among ``packages`` on macOS; then only its SIMD directives, and
    POSIX threads.
    """
    yield ["-fopenmp"], []
    library = packages / APPLE_OPENMP
    if sys.platform == "darwin" and library.exists():
        beside = f"@loader_path/../../{Path(APPLE_OPENMP).parent}"
        paths = [f"-Wl,-rpath,{path}" for path in (beside, library.parent)]
        yield ["-Xclang", "-fopenmp"], [str(library), *paths]
    yield ["-fopenmp-simd"], []


class KernelBuildHook(BuildHookInterface):  # type: ignore[type-arg] # generic only since 1.28
    """Hook that compiles the kernels into the wheel; without a compiler the package uses torch."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build before the files of the wheel are chosen."""
        if self.target_name != "wheel":
            return
        library = KERNELS / "_packed.so"
        if not build_library(sorted(KERNELS.glob("*.c")), library):
            library.unlink(missing_ok=True)  # of other sources: torch computes what these would
        else:
            build_data["artifacts"].append("/llama_chat/kernels/_packed.so")
            build_data["pure_python"] = False
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["tag"] = f"py3-none-{platform}"


def build_library(sources: Sequence[Path], library: Path) -> bool:
    """Compile and link ``sources``, with OpenMP if the compiler has it.

    Returns:
        True if the library was built; otherwise one line on stderr says why not.
    """
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    reason = "no C compiler"
    variants = thread_flags(Path(sysconfig.get_path("platlib")))
    for compiling, linking in variants if compiler else ():
        try:
            words = shlex.split(str(compiler))
            _build([*words, *FLAGS, *compiling], linking, sources, library)
        except subprocess.CalledProcessError as error:
            reason = _first_error(error.stderr)
        except (OSError, ValueError) as error:
            reason = str(error)
        else:
            return True
    print(f"no C kernels: {reason}", file=sys.stderr)
    return False


def compile_sources(
    compile_with: Sequence[str], sources: Sequence[Path], folder: Path
) -> list[str]:
    """Compile each source, as many at a time as there are cores, and return the object files.

    Those for other processors are compiled too, and hold no code.

    Raises:
        CalledProcessError: if the compiler fails.
        OSError: if there is no such compiler.
    """
    objects = [str(folder / f"{source.stem}.o") for source in sources]
    with ThreadPoolExecutor(_n_cores()) as pool:
        # The portable kernels take longest and are last in the alphabet: start with them.
        running = [
            pool.submit(_run, [*compile_with, "-c", str(source), "-o", to])
            for source, to in reversed(list(zip(sources, objects, strict=True)))
        ]
        try:
            for done in running:
                done.result()
        finally:
            pool.shutdown(cancel_futures=True)
    return objects


def _build(
    compile_with: Sequence[str], linking: Sequence[str], sources: Sequence[Path], library: Path
) -> None:
    """Compile the sources, link them and load the library; raises what ``compile_sources`` does."""
    with TemporaryDirectory() as folder:
        objects = compile_sources(compile_with, sources, Path(folder))
        # Replace the file, never overwrite it: a running program has the old one mapped.
        linked = library.with_name(f"{library.name}.{os.getpid()}")
        try:
            _run([*compile_with, "-shared", *objects, *linking, "-o", str(linked), "-lm"])
            # A library that another one provides may be where this one does not look.
            if linking:
                _run([sys.executable, "-c", f"import ctypes; ctypes.CDLL({str(linked)!r})"])
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
    """Return the first error line of a compiler's output."""
    lines = output.strip().splitlines() or ["the C compiler failed without output"]
    return next((line for line in lines if "error" in line), lines[-1])[:500]
