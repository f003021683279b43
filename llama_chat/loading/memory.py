"""How much memory this process may still take."""

from collections.abc import Iterator
from pathlib import Path

import psutil

_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def available_memory(cgroups: Path = _CGROUPS, membership: Path = _MEMBERSHIP) -> int:
    """Bytes that are free: those of the machine, or those left in a control group if fewer.

    A container has all the memory of its machine on paper, and is killed at the limit of its group
    or of a group around it. Both versions of the interface are looked at
    (https://docs.kernel.org/admin-guide/cgroup-v2.html). The inactive part of a group's file cache
    counts as free, since the kernel gives it up first.

    Args:
        cgroups: where the kernel shows its control groups.
        membership: the file that names those of this process.
    """
    machine = int(psutil.virtual_memory().available)
    return min([machine, *_rooms(cgroups, membership)])


def _rooms(cgroups: Path, membership: Path) -> Iterator[int]:
    """Bytes left in each group that has a limit and holds this process."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:  # not on this system
        return
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if not controllers:
            names = ("memory.max", "memory.current", "inactive_file")
            yield from _rooms_above(cgroups, path, *names)
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            yield from _rooms_above(cgroups / "memory", path, *names)


def _rooms_above(root: Path, path: str, limit: str, usage: str, reclaimable: str) -> Iterator[int]:
    """Bytes left in the group ``path`` and in those around it.

    In a container its own group may be the root, whatever ``path`` says.
    """
    parts = [part for part in path.split("/") if part not in ("", "..")]
    for depth in range(len(parts) + 1):
        group = root.joinpath(*parts[:depth])
        allowed, used = _number(group / limit), _number(group / usage)
        if allowed is not None and used is not None:
            yield max(0, allowed - max(0, used - _statistic(group, reclaimable)))


def _number(path: Path) -> int | None:
    """The number in a file; None where there is no such file, or no limit."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _statistic(group: Path, name: str) -> int:
    try:
        lines = (group / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    values = [line.split() for line in lines]
    return sum(int(row[1]) for row in values if row[:1] == [name] and row[-1].isdigit())
