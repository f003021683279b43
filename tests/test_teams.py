"""Teams of POSIX threads, where the compiler has no OpenMP."""

import sys
from pathlib import Path

import pytest

from harness.program import Program
from hatch_build import APPLE_OPENMP, thread_flags
from tests.execute import EXECUTE
from tests.test_kernel_twins import build_here, needs_compiler

Flags = tuple[list[str], list[str]]

SETUP = """
import os, signal, sys, threading
from pathlib import Path
import torch
from llama_chat.kernels import native
native.LIBRARY = Path({library!r})
from tests.models import TINY, native_backend, packed_model

assert not native.describe()["has_openmp"]
backend = native_backend(packed_model(TINY, (8, 4), torch.float32))

def run(n_new, threads, backend=backend):
    backend.threads = threads
    logits = backend.forward(list(range(n_new)), backend.new_cache(), all_logits=True)
    assert backend.kernels.take_times().n_threads == threads
    return logits

alone = {{n: run(n, 1) for n in (1, 8, 40)}}
"""

SAME_IN_ANY_NUMBER = """
for threads in (2, 3, 2, 5):
    for n, expected in alone.items():
        assert run(n, threads).equal(expected), (threads, n)
matrix = backend.model.output.packed
x = torch.randn(40, matrix.shape[1])
torch.set_num_threads(1)
expected = matrix.multiply(x), matrix.unpack_rows(torch.arange(300), torch.empty(300, TINY.dim))
torch.set_num_threads(3)
assert matrix.multiply(x).equal(expected[0])
assert matrix.unpack_rows(torch.arange(300), torch.empty(300, TINY.dim)).equal(expected[1])
"""

CONCURRENT = """
def repeat(threads):
    mine = native_backend(backend.model)
    for _ in range(20):
        for n, expected in alone.items():
            assert run(n, threads, mine).equal(expected)
    done.append(threads)

done = []
callers = [threading.Thread(target=repeat, args=(n,)) for n in (2, 2, 3)]
for caller in callers:
    caller.start()
for caller in callers:
    caller.join()
assert sorted(done) == [2, 2, 3]
"""

FORKED = """
run(40, 3)
if child := os.fork():
    assert os.waitpid(child, 0)[1] == 0
    assert run(40, 3).equal(alone[40])
else:
    same = run(40, 3).equal(alone[40])
    os._exit(0 if same else 1)
"""

SIGNALLED = """
# Threads of a team handle no signals, which are for the main thread.
run(40, 3)
tasks = set(os.listdir("/proc/self/task")) - {str(threading.get_native_id())}
blocked = [
    int(line.split()[1], 16)
    for task in tasks
    for line in Path(f"/proc/self/task/{task}/status").read_text().splitlines()
    if line.startswith("SigBlk")
]
assert sum(bool(mask >> signal.SIGINT - 1 & 1) for mask in blocked) == 2, blocked
"""

LOSING_A_PAGE = """
# The second half of the ids, which member 1 reads, is cut off their file.
from llama_chat.checkpoints.weight_files import map_file
from llama_chat.errors import ModelError
from llama_chat.kernels import mapped_files

matrix = backend.model.output.packed
half, file = 4 * os.sysconf("SC_PAGESIZE"), Path.home() / "ids"
file.write_bytes(torch.ones(2 * half // 8, dtype=torch.int64).numpy().tobytes())
ids = torch.frombuffer(map_file(file), dtype=torch.int64)
os.truncate(file, half)
torch.set_num_threads(2)
rows = matrix.unpack_rows(ids, torch.empty(len(ids), TINY.dim))
first = matrix.unpack_rows(torch.tensor([1, 0]), torch.empty(2, TINY.dim))
assert rows.view(2, -1, TINY.dim).equal(first.unsqueeze(1).expand(2, len(ids) // 2, -1))
try:
    mapped_files.check()
except ModelError:
    pass
else:
    raise AssertionError("the loss of a page was not noticed")
"""

MORE_THAN_THE_STACK = """
# What is kept for each thread does not grow with a number that nobody can have.
from llama_chat.kernels.likeliest import find_likeliest

matrix = backend.model.output.packed
x, logits = torch.randn(1, matrix.shape[1]), torch.randn(300)
expected = matrix.multiply(x), find_likeliest([logits], 3, 1.0)
torch.get_num_threads = lambda: 2**24  # torch itself would begin them
assert matrix.multiply(x).equal(expected[0])
assert find_likeliest([logits], 3, 1.0) == expected[1]
"""

SCRIPTS = {
    "any number of threads": SAME_IN_ANY_NUMBER,
    "concurrent callers": CONCURRENT,
    "a forked process": FORKED,
    "signals": SIGNALLED,
    "a lost page": LOSING_A_PAGE,
    "more than the stack": MORE_THAN_THE_STACK,
}


@needs_compiler
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="no /proc here")
@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_posix_threads_compute_the_same_as_one(
    script: str, pytestconfig: pytest.Config, tmp_path: Path
) -> None:
    library = build_here(pytestconfig).with_suffix(".so")
    code = SETUP.format(library=str(library)) + script
    with Program(code, home=tmp_path, command=EXECUTE) as process:
        out, err = process.communicate()
        assert (process.wait(30), out, err) == (0, b"", b"")


def test_torchs_openmp_is_used_on_macos_if_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain: Flags = (["-fopenmp"], [])
    simd: Flags = (["-fopenmp-simd"], [])
    assert list(thread_flags(tmp_path)) == [plain, simd]
    monkeypatch.setattr(sys, "platform", "darwin")
    assert list(thread_flags(tmp_path)) == [plain, simd]
    library = tmp_path / APPLE_OPENMP
    library.parent.mkdir(parents=True)
    library.touch()
    first, (compiling, linking), last = thread_flags(tmp_path)
    assert (first, last) == (plain, simd)
    assert compiling == ["-Xclang", "-fopenmp"]
    assert linking[0] == str(library)
    assert linking[1:] == [
        "-Wl,-rpath,@loader_path/../../torch/lib",
        f"-Wl,-rpath,{library.parent}",
    ]
