"""A model file that is cut short while it is mapped: an error, and not the end of the program."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from harness.terminal import CTRL_D, READY, Terminal
from llama_chat.kernels import native
from tests.execute import EXECUTE
from tests.model_files import write_gguf

pytestmark = pytest.mark.skipif(not native.LIBRARY.exists(), reason="the kernels are not built")

WHY = "model: one of its files was cut short, or cannot be read any more: restore the file"


@pytest.fixture
def floats(tmp_path: Path) -> Path:
    """A model whose weights are used where they are mapped."""
    write_gguf(tmp_path / "floats.gguf")
    return tmp_path / "floats.gguf"


@pytest.mark.parametrize("use", ["load", "check", "convert"])
def test_what_reads_it_ends_with_an_error(floats: Path, use: str) -> None:
    command = [sys.executable, "-m", "tests.cut_file", str(floats), use]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert WHY in done.stdout


MAPPING = """
import ctypes, os, sys
from mmap import MAP_ANON, MAP_PRIVATE, PAGESIZE, PROT_READ, PROT_WRITE
from pathlib import Path
from llama_chat.checkpoints.weight_files import map_file
from llama_chat.kernels import mapped_files, native

FIXED = 0x10
c = ctypes.CDLL(None)
c.mmap.restype = ctypes.c_size_t
c.mmap.argtypes = ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long

def map_at(address, n_pages, flags, descriptor=-1):
    flags |= MAP_PRIVATE
    return c.mmap(address, n_pages * PAGESIZE, PROT_READ | PROT_WRITE, flags, descriptor, 0)

def read(address, n_pages=1):
    return ctypes.string_at(address, n_pages * PAGESIZE)

page = bytes([1]) * PAGESIZE
file = Path(sys.argv[2])
file.write_bytes(2 * page)
descriptor = os.open(file, os.O_RDONLY)
"""

LOST_BEFORE_OTHERS = """
# A mapping of two pages, in a place where a longer one was watched before; then other memory.
start = map_at(None, 4, MAP_ANON)
native.library().watch_mapping(start, 4 * PAGESIZE)
assert map_at(start, 2, FIXED, descriptor) == start
native.library().watch_mapping(start, 2 * PAGESIZE)
ctypes.memmove(start + 2 * PAGESIZE, 2 * page, 2 * PAGESIZE)
os.truncate(file, PAGESIZE)
assert read(start + PAGESIZE) == bytes(PAGESIZE)
assert read(start) == page
assert read(start + 2 * PAGESIZE, 2) == 2 * page
try:
    mapped_files.check()
except mapped_files.ModelError:
    print("noticed")
"""

LOST_UNWATCHED = """
# A file in the place of a mapping that has ended, which nobody watches.
mapped = map_file(file)
start = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
del mapped
assert map_at(start, 2, FIXED, descriptor) == start
os.truncate(file, PAGESIZE)
read(start + PAGESIZE)
"""


def run_script(script: str, file: Path) -> subprocess.CompletedProcess[str]:
    """Run a script with some pages of a file."""
    command = [*EXECUTE, MAPPING + script, str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_no_more_than_the_lost_page_is_replaced(tmp_path: Path) -> None:
    done = run_script(LOST_BEFORE_OTHERS, tmp_path / "file")
    assert (done.returncode, done.stdout, done.stderr) == (0, "noticed\n", "")


def test_a_mapping_that_ended_is_not_watched(tmp_path: Path) -> None:
    assert run_script(LOST_UNWATCHED, tmp_path / "file").returncode == -signal.SIGBUS


def test_the_chat_goes_on_and_keeps_what_was_said(floats: Path, tmp_path: Path) -> None:
    flags = ("-m", floats, "--temperature", "0", "--max-tokens", "8")
    with Terminal(*flags, home=tmp_path) as chat:
        chat.wait_for(READY)
        chat.ask("hello", r"tok/s|ended it at once")
        os.truncate(floats, 4096)
        chat.refuse("again", r"one of its files was cut short")
        chat.ask("/context", r"hello\n")
        chat.type(CTRL_D)
        assert chat.wait_for_end() == 0
