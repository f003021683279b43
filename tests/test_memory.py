"""Free memory: that of the machine, and that of a control group with a limit."""

from pathlib import Path

import psutil
import pytest

from llama_chat.loading.memory import available_memory


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
