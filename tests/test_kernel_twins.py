"""The kernels of each level against the portable ones; those of ARM in an emulator.

``kernel_twins.c`` compares them. It is compiled once for each version of its sources.
"""

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from hatch_build import FLAGS, KERNELS, compile_sources
from llama_chat.kernels import native
from tests.conftest import ROOT

CROSS_COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"

needs_compiler = pytest.mark.skipif(
    not (shutil.which("cc") and native.supported_levels()), reason="no C compiler is here"
)
needs_emulator = pytest.mark.skipif(
    not (shutil.which(CROSS_COMPILER) and shutil.which(EMULATOR)),
    reason=f"no {CROSS_COMPILER} or {EMULATOR} is here (gcc-aarch64-linux-gnu, qemu-user)",
)


def build(cache: pytest.Cache, compiler: str, *options: str) -> Path:
    """Compile and link the comparison, unless the cache of pytest has it.

    Unless it is static, there is a library of the same kernels beside it, with the suffix ``.so``.
    It has no OpenMP.
    """
    tests = ROOT / "tests"
    sources = [*sorted(KERNELS.glob("*.c")), tests / "kernel_twins.c"]
    headers = sorted([*KERNELS.glob("*.h"), *tests.glob("*.h")])
    command = [compiler, *FLAGS, *options, f"-I{KERNELS}", f"-I{tests}"]
    texts = [path.read_text() for path in (*sources, *headers)]
    digest = hashlib.sha256(repr([command, texts]).encode()).hexdigest()
    program = cache.mkdir("kernel-twins") / f"{compiler}-{digest[:16]}"
    if not program.exists():
        for old in program.parent.glob(f"{compiler}-*"):
            old.unlink(missing_ok=True)
        with tempfile.TemporaryDirectory(dir=program.parent) as folder:
            objects = compile_sources(command, sources, Path(folder))
            linked = Path(folder) / "linked"
            if "-static" not in options:
                subprocess.run([*command, "-shared", *objects, "-o", linked, "-lm"], check=True)
                linked.replace(program.with_suffix(".so"))
            subprocess.run([*command, *objects, "-o", linked, "-lm"], check=True)
            linked.replace(program)
    return program


def run(*command: str | os.PathLike[str]) -> list[str]:
    """Run the comparison, and return the levels that it compared."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    return done.stdout.split()


def build_here(pytestconfig: pytest.Config) -> Path:
    """Build the comparison for this processor, and for two levels that it may lack.

    If it has AVX-512, AVX2 with VNNI is run in the encoding of that. Without AMX, its kernels run
    on a model of the tiles. ``LLAMA_CHAT_TEST_CFLAGS`` are further options: those of sanitizers.
    """
    cache = pytestconfig.cache
    assert cache is not None
    model = [] if "amx" in native.supported_levels() else ["-DTEST_AMX_MODEL"]
    further = os.environ.get("LLAMA_CHAT_TEST_CFLAGS", "").split()
    return build(cache, "cc", "-O0", "-DTEST_VNNI_OF_AVX512", *model, *further)


@needs_compiler
def test_the_levels_of_this_processor_compute_what_the_portable_one_does(
    pytestconfig: pytest.Config,
) -> None:
    """AVX2 with VNNI in the encoding of AVX-512, and AMX on a model, too."""
    expected = [*native.supported_levels()]
    if "avx512" in expected and "avx2_vnni" not in expected:
        expected.insert(expected.index("avx512"), "avx2_vnni")
    if "avx512_bf16" in expected and "amx" not in expected:
        expected.append("amx")
    assert run(build_here(pytestconfig)) == expected


@needs_emulator
def test_the_levels_of_arm_compute_what_the_portable_one_does(pytestconfig: pytest.Config) -> None:
    cache = pytestconfig.cache
    assert cache is not None
    program = build(cache, CROSS_COMPILER, "-Og", "-static")
    levels = ["portable", "neon", "neon_dotprod", "neon_i8mm"]
    assert run(EMULATOR, "-cpu", "max", program) == levels
    # Older processors lack optional instructions, and are found to do so.
    assert run(EMULATOR, "-cpu", "neoverse-n1", program, "list") == levels[:3]
    assert run(EMULATOR, "-cpu", "cortex-a72", program, "list") == levels[:2]
