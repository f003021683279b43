"""The C library: its description, when it is loaded, and when it is refused."""

import ctypes
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import hatch_build
from harness.program import FORBIDDEN, environment
from hatch_build import KERNELS, KernelBuildHook, build_library
from llama_chat.errors import LlamaChatError
from llama_chat.kernels import native
from llama_chat.kernels.abi import STRUCTS

needs_compiler = pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler is here")
needs_library = pytest.mark.skipif(
    not native.supported_levels(), reason="no C compiler was there at installation"
)

NOT_OURS = "int pack_panels(void) { __builtin_trap(); }\n"
"""Source of a library without a description, whose function would crash the program."""

Compile = Callable[[str], Path]


@pytest.fixture
def compile_library(tmp_path: Path) -> Compile:
    """Compile C source into a library."""

    def compile_source(source: str) -> Path:
        path = tmp_path / "foreign.so"
        (tmp_path / "foreign.c").write_text(source)
        command = ["cc", "-shared", "-fPIC", str(tmp_path / "foreign.c"), "-o", str(path)]
        subprocess.run(command, check=True)
        return path

    return compile_source


def describing(description: object) -> str:
    """Return C source of a library with this description."""
    text = json.dumps(json.dumps(description))
    copy = "for (long i = 0; (to[i] = text[i]); i++);"
    return f"void describe_library(char *to, long n) {{ char text[] = {text}; (void)n; {copy} }}\n"


def run_python(
    code: str, home: Path, *arguments: str, **env: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment(home, **env),
        input="in the hin",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@needs_library
def test_it_describes_how_it_was_compiled() -> None:
    description = native.describe()
    assert next(iter(description["levels"])) == "portable"
    portable = {"is_supported": True, "is_slow": False, "tile_sizes": [1, 2, 4]}
    assert description["levels"]["portable"] == portable
    assert description["structs"].keys() == STRUCTS.keys()
    assert native.supported_levels()[0] == "portable"
    for level in description["levels"].values():
        if level["is_supported"]:
            assert level["tile_sizes"][0] == 1
            assert level["tile_sizes"] == sorted(level["tile_sizes"])


def refuse(library: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Load another library in place of ours, and return why it was refused."""
    monkeypatch.setattr(native, "LIBRARY", library)
    native.library.cache_clear()
    try:
        with pytest.raises(LlamaChatError) as caught:
            native.library()
    finally:
        native.library.cache_clear()
    assert caught.value.status == 1
    assert caught.value.advice == "build them again with make chat"
    return caught.value.why


@needs_library
@needs_compiler
def test_a_library_without_a_description_is_refused(
    compile_library: Compile, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "do not describe themselves" in refuse(compile_library(NOT_OURS), monkeypatch)


@needs_library
@needs_compiler
@pytest.mark.parametrize("name", ["abi", "panel", "max_exact_batch", *STRUCTS])
def test_a_library_of_other_sources_is_refused(
    name: str, compile_library: Compile, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = json.loads(json.dumps(native.describe()))
    sizes = other if name in other else other["structs"]
    sizes[name] += 8
    why = refuse(compile_library(describing(other) + NOT_OURS), monkeypatch)
    assert f"({name} is {sizes[name]}, not {sizes[name] - 8})" in why


@needs_library
@needs_compiler
@pytest.mark.parametrize("description", [[], 3, {}, {"structs": {}}, {"structs": {}, "levels": {}}])
def test_a_library_with_an_invalid_description_is_refused(
    description: object, compile_library: Compile, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert refuse(compile_library(describing(description)), monkeypatch)


def test_a_file_that_is_no_library_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.so").write_text("no library")
    assert "cannot be loaded" in refuse(tmp_path / "text.so", monkeypatch)


@needs_library
@needs_compiler
def test_a_refused_library_ends_the_program_with_one_line(
    compile_library: Compile, gguf_model: Path, tmp_path: Path
) -> None:
    code = (
        "import sys; from pathlib import Path; from llama_chat.kernels import native; "
        f"native.LIBRARY = Path({str(compile_library(NOT_OURS))!r}); "
        "from llama_chat.__main__ import main; main()"
    )
    arguments = ["complete", "-", "-m", str(gguf_model), "--max-tokens", "1"]
    done = run_python(code, tmp_path, *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = (line for line in done.stderr.splitlines() if "error:" in line)
    assert line.startswith("llama-chat: error: C kernels '")
    assert line.endswith(": build them again with make chat")
    assert not any(word in done.stderr for word in FORBIDDEN)
    # Torch needs no library.
    done = run_python(code, tmp_path, *arguments, LLAMA_CHAT_KERNEL="torch")
    assert done.returncode == 0


@needs_library
@needs_compiler
def test_a_level_of_another_processor_is_not_offered(
    compile_library: Compile, tmp_path: Path
) -> None:
    other = json.loads(json.dumps(native.describe()))
    other["levels"] = {
        "portable": {"is_supported": True, "is_slow": False, "tile_sizes": [1, 2]},
        "abacus": {"is_supported": False, "is_slow": False, "tile_sizes": []},
    }
    functions = "".join(f"void {name}(void) {{}}\n" for name in native.SIGNATURES)
    code = f"""
from pathlib import Path
from llama_chat.errors import UsageError
from llama_chat.kernels import native

native.LIBRARY = Path({str(compile_library(describing(other) + functions))!r})
assert native.supported_levels() == ("portable",)
try:
    native.level_name()
except UsageError as error:
    print(error)
"""
    done = run_python(code, tmp_path, LLAMA_CHAT_KERNEL="abacus")
    assert done.stdout == (
        "LLAMA_CHAT_KERNEL: 'abacus' is not here: give one of portable, torch\n"
    ), done.stderr


@needs_library
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc here")
def test_importing_everything_loads_no_library(tmp_path: Path) -> None:
    code = """
import os
from pathlib import Path
import llama_chat.cli.app, llama_chat.generation.measuring, llama_chat.llama
from llama_chat.kernels import native

def is_loaded():
    return native.LIBRARY.name in Path("/proc/self/maps").read_text()

assert not is_loaded()
os.environ["LLAMA_CHAT_KERNEL"] = "portable"  # as a forked process is told
assert native.level_name() == "portable"
assert is_loaded()
"""
    done = run_python(code, tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("level", native.supported_levels())
def test_the_environment_chooses_the_level(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, native.VARIABLE, level)
    native.level_name.cache_clear()
    try:
        assert native.level_name() == level
        assert native.level_number() == native.level_number(level)
    finally:
        native.level_name.cache_clear()


SOURCE = KERNELS / "gguf_blocks.c"


@pytest.mark.parametrize("compiler", ["false", "/nonexistent/cc"])
def test_without_a_compiler_nothing_is_built(
    compiler: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("CC", compiler)
    assert not build_library([SOURCE], tmp_path / "a.so")
    assert not list(tmp_path.iterdir())
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("no C kernels: ")


@needs_compiler
def test_a_failed_build_says_why_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "wrong.c").write_text(
        "int f(void) { return missing; }\nint g(void) { return also; }"
    )
    assert not build_library([SOURCE, tmp_path / "wrong.c"], tmp_path / "a.so")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("no C kernels: ")
    assert "missing" in line
    assert not (tmp_path / "a.so").exists()


@needs_compiler
def test_words_of_a_compiler_may_be_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compiler = tmp_path / "my compiler"
    compiler.write_text('#!/bin/sh\nexec cc "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", f"'{compiler}' -DNAME='a b'")
    assert build_library([SOURCE], tmp_path / "a.so")
    monkeypatch.setenv("CC", "'cc")
    assert not build_library([SOURCE], tmp_path / "b.so")
    assert capsys.readouterr().err == "no C kernels: No closing quotation\n"


@needs_compiler
def test_the_library_stays_until_another_is_built_or_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "_packed.so"
    compiler = tmp_path / "compiler"
    compiler.write_text(f'#!/bin/sh\ntest -e "{library}" || exit 1\nexec cc "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setattr(hatch_build, "KERNELS", tmp_path)
    monkeypatch.setenv("CC", str(compiler))
    (tmp_path / "a.c").write_text("int one(void) { return 1; }\n")
    library.write_text("of other sources")
    unused: Any = None
    hook = KernelBuildHook(str(tmp_path), {}, unused, unused, "", "wheel")
    data: dict[str, Any] = {"artifacts": []}
    hook.initialize("standard", data)
    assert data["artifacts"] == ["/llama_chat/kernels/_packed.so"]
    assert library.read_bytes().startswith(b"\x7fELF")
    (tmp_path / "a.c").write_text("wrong")
    hook.initialize("standard", data)
    assert not library.exists()


@needs_compiler
def test_a_compiler_without_openmp_builds_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text(
        "#!/bin/sh\n"
        'case " $* " in *" -fopenmp "*) echo no OpenMP >&2; exit 1;; esac\n'
        'exec cc "$@"\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    assert build_library([SOURCE], tmp_path / "a.so")
    assert capsys.readouterr().err == ""
    assert ctypes.CDLL(str(tmp_path / "a.so")).pack_blocks
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.so", "compiler"]


@needs_compiler
def test_a_running_program_keeps_the_library_that_it_loaded(tmp_path: Path) -> None:
    library = tmp_path / "a.so"
    assert build_library([SOURCE], library)
    with library.open("rb") as loaded:
        assert build_library([SOURCE], library)
        assert os.fstat(loaded.fileno()).st_ino != library.stat().st_ino
