"""Free memory: that of the machine, and that of a control group with a limit."""

from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from harness.process import cold
from harness.program import COMMAND, Program, assert_clean_error, run
from llama_chat import load
from llama_chat.errors import LlamaChatError, unexpected
from llama_chat.generation.backend import TorchBackend
from llama_chat.generation.engine import Engine
from llama_chat.memory import available_memory, require
from llama_chat.settings.definitions import SETTINGS
from llama_chat.settings.setting import bytes_of
from tests import out_of_memory
from tests.model_files import byte_tokenizer
from tests.models import random_model


def write(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name.replace("__", ".")).write_text(f"{value}\n")


@pytest.fixture
def groups(tmp_path: Path) -> tuple[Path, Path]:
    """The folder of control groups, and the file that names those of a process."""
    (tmp_path / "cgroup").mkdir()
    return tmp_path / "cgroup", tmp_path / "membership"


def test_without_a_limit_it_is_that_of_the_machine(groups: tuple[Path, Path]) -> None:
    root, membership = groups
    expected = psutil.virtual_memory().available
    assert available_memory(root, membership) == pytest.approx(expected, rel=0.2)
    membership.write_text("0::/a/b\n")
    write(root / "a" / "b", memory__max="max", memory__current=10**6)
    assert available_memory(root, membership) == pytest.approx(expected, rel=0.2)


def test_the_tightest_group_counts(groups: tuple[Path, Path]) -> None:
    root, membership = groups
    membership.write_text("0::/a/b\n")
    write(root / "a", memory__max=5_000_000, memory__current=4_000_000)
    write(root / "a" / "b", memory__max=4_000_000, memory__current=1_000_000)
    assert available_memory(root, membership) == 1_000_000


def test_a_container_sees_its_own_group_as_the_root(groups: tuple[Path, Path]) -> None:
    root, membership = groups
    membership.write_text("0::/../../somewhere/else\n")
    write(root, memory__max=5_000_000, memory__current=4_000_000)
    assert available_memory(root, membership) == 1_000_000


def test_file_cache_that_the_kernel_can_reclaim_is_free(groups: tuple[Path, Path]) -> None:
    root, membership = groups
    membership.write_text("0::/\n")
    stat = "anon 1000000\ninactive_file 3000000\nactive_file 7"
    write(root, memory__max=5_000_000, memory__current=4_000_000, memory__stat=stat)
    assert available_memory(root, membership) == 4_000_000


def test_version_1_of_control_groups_is_read(groups: tuple[Path, Path]) -> None:
    root, membership = groups
    membership.write_text("9:cpu,cpuacct:/x\n4:memory:/x\n0::/\n")
    write(
        root / "memory" / "x",
        memory__limit_in_bytes=5_000_000,
        memory__usage_in_bytes=4_500_000,
        memory__stat="inactive_file 1\ntotal_inactive_file 500000",
    )
    assert available_memory(root, membership) == 1_000_000


def test_a_group_over_its_limit_has_nothing_left(groups: tuple[Path, Path]) -> None:
    root, membership = groups
    membership.write_text("0::/\n")
    write(root, memory__max=1000, memory__current=2000)
    assert available_memory(root, membership) == 0


def test_version_2_counts_every_parent_and_version_1_beside_it(groups: tuple[Path, Path]) -> None:
    root, membership = groups
    membership.write_text("4:memory:/x/y\n0::/a/b/c\n")
    write(root / "a", memory__max=9_000_000, memory__current=1_000_000)
    write(root / "a" / "b", memory__max="max", memory__current=1_000_000)
    write(root / "a" / "b" / "c", memory__max=8_000_000, memory__current=500_000)
    assert available_memory(root, membership) == 7_500_000
    v1 = {"memory__limit_in_bytes": 3_000_000, "memory__usage_in_bytes": 1_000_000}
    write(root / "memory" / "x", **v1)
    write(root / "memory" / "x" / "y", memory__limit_in_bytes=2**63 - 4096)  # v1's "no limit"
    assert available_memory(root, membership) == 2_000_000


def test_a_limit_of_the_user_counts_what_is_used(groups: tuple[Path, Path]) -> None:
    root, membership = groups
    used = psutil.Process().memory_info().rss
    left = available_memory(root, membership, limit=used + 50_000_000)
    assert left == pytest.approx(50_000_000, abs=10_000_000)
    assert available_memory(root, membership, limit=1000) == 0


def test_more_than_is_left_is_refused_before_it_is_allocated() -> None:
    require(1000)
    with pytest.raises(MemoryError):
        require(2**60)
    with pytest.raises(MemoryError):
        require(10**9, psutil.Process().memory_info().rss + 10**6)


SIZES = {"8G": 2**33, "8g": 2**33, "8GiB": 2**33, "8GB": 8 * 10**9, "512M": 2**29, "0.5K": 512,
         "1000": 1000, "1 T": 2**40, "3B": 3}  # fmt: skip


@pytest.mark.parametrize("size", SIZES)
def test_sizes(size: str) -> None:
    assert bytes_of(size) == SIZES[size]
    assert SETTINGS["memory"].parse(size) == size


@pytest.mark.parametrize(
    "size",
    ["", "0", "8X", "G", "-1G", "nan", "1e9", "8GG", "8G\x1b", "9" * 400, "8,5G", "²G", "٣G"],
)
def test_what_is_no_size_is_one_line(size: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a size such as 512M or 8G"):
        SETTINGS["memory"].parse(size)


def test_integers_of_a_settings_file_are_bytes() -> None:
    assert SETTINGS["memory"].check(10**9) == "1000000000"
    for value in (True, 0, -1, 10**400, 1.5, None):
        with pytest.raises(ValueError, match="a size such as"):
            SETTINGS["memory"].check(value)


def test_a_model_that_exceeds_the_limit_is_refused(gguf_model: Path, tmp_path: Path) -> None:
    ask = ("ask", "hello", "-m", gguf_model, "--max-tokens", "4", "--memory")
    assert_clean_error(run(*ask, "1M", home=tmp_path), 3, " of --memory 1.0 MB: ")
    assert_clean_error(run(*ask, "much", home=tmp_path), 2, "'much' does not fit")
    assert run(*ask, "4G", home=tmp_path).status == 0


def test_a_context_grows_within_the_limit_alone() -> None:
    config = replace(out_of_memory.CONFIG, context_length=2**16)
    free, limited = (TorchBackend(random_model(config)) for _ in range(2))
    limited.memory = psutil.Process().memory_info().rss + 8 * 2**20
    engine = Engine(limited, byte_tokenizer())
    engine.prefill_cached([3] * 300)
    with pytest.raises(LlamaChatError, match="of context: not enough memory: use a smaller"):
        engine.prefill_cached([3] * 8_000)
    assert 300 <= engine.cache.length < 4000
    engine.prefill_cached([3] * engine.cache.length + [4])  # it goes on
    Engine(free, byte_tokenizer()).prefill_cached([3] * 8_000)


def test_each_model_of_a_process_has_a_limit_of_its_own(gguf_model: Path) -> None:
    limited = load(gguf_model, memory=10**10)
    assert load(gguf_model).backend.memory is None
    assert limited.backend.memory == 10**10


def run_limited(kilobytes: int, *arguments: str | Path, home: Path) -> tuple[int, str]:
    """Run the program under ``ulimit -v``, and return its status and stderr."""
    script = 'ulimit -v "$1"; shift; exec "$@"'
    program = (str(kilobytes), *COMMAND, *arguments)
    with cold(), Program(*program, home=home, command=("bash", "-c", script, "bash")) as limited:
        _, err = limited.communicate()
        return limited.wait(0), err.decode()


def test_ulimit_refuses_a_model_in_one_line(gguf_model: Path, tmp_path: Path) -> None:
    # The address space of a program with torch is far larger than its memory.
    arguments = ("ask", "hello", "-m", gguf_model, "--context", "512")
    status, err = run_limited(6_000_000, *arguments, home=tmp_path)
    assert status in (0, 1, 3)
    assert err.count("llama-chat: error: ") == (status != 0)
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("command", "kilobytes"),
    [("ask", 400_000), ("ask", 650_000), ("tokenize", 800_000), ("convert", 1_000_000),
     ("check", 800_000)],
)  # fmt: skip
def test_too_little_address_space_for_torch_is_refused_before_its_import(
    command: str, kilobytes: int, gguf_model: Path, tmp_path: Path
) -> None:
    arguments = {
        "ask": ("ask", "hello", "-m", gguf_model),
        "tokenize": ("tokenize", __file__, "-m", gguf_model),
        "convert": ("convert", gguf_model, tmp_path / "out.gguf"),
        "check": ("check", gguf_model),
    }
    status, err = run_limited(kilobytes, *arguments[command], home=tmp_path)
    why = "not enough memory for torch: raise it to 1048576 or more"
    assert (status, err) == (3, f"llama-chat: error: ulimit -v {kilobytes}: {why}\n")


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("std::bad_alloc"), OSError(12, "")])
def test_an_error_of_memory_is_no_bug(error: Exception) -> None:
    assert unexpected(error).startswith("this process: not enough memory: ")
    assert unexpected(ValueError("std")).startswith("unexpected: std: ")
