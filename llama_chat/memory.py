"""Memory available to this process: of the machine, of control groups, and of limits."""

import resource
from collections.abc import Iterator
from pathlib import Path

import psutil

_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def require(n_bytes: int, limit: int | None = None) -> None:
    """Check that memory is free before it is allocated: later, the kernel would kill the process.

    ``limit`` is that of ``available_memory``.

    Raises:
        MemoryError: if it is not.
    """
    if n_bytes > available_memory(limit=limit):
        raise MemoryError(f"{n_bytes} bytes are not free")


def available_memory(
    cgroups: Path = _CGROUPS,
    membership: Path = _MEMBERSHIP,
    *,
    limit: int | None = None,
    reclaimable: int = 0,
) -> int:
    """Return the free bytes of the machine, or those left in a control group or limit if fewer.

    A container is shown all the memory of its machine, but is killed at the limit of its group or
    of a parent group. Both versions of control groups are supported
    (https://docs.kernel.org/admin-guide/cgroup-v2.html). The inactive part of a group's file cache
    counts as free, since the kernel reclaims it first.

    Args:
        cgroups: mount point of the control groups.
        membership: file that names the groups of this process.
        limit: bytes that this process may use in all, besides ``ulimit -v``.
        reclaimable: bytes that this process uses, and will free.
    """
    machine = int(psutil.virtual_memory().available)
    left = min([machine, *_bytes_left(cgroups, membership)]) + reclaimable
    return min([left, *_bytes_left_to_us(limit, reclaimable)])


def _bytes_left_to_us(limit: int | None, reclaimable: int) -> Iterator[int]:
    """Yield the bytes that this process may take under its own limits."""
    address_space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit is None and address_space == resource.RLIM_INFINITY:
        return
    used = psutil.Process().memory_info()
    if limit is not None:
        yield max(0, limit - max(0, used.rss - reclaimable))
    if address_space != resource.RLIM_INFINITY:
        yield max(0, address_space - max(0, used.vms - reclaimable))


def _bytes_left(cgroups: Path, membership: Path) -> Iterator[int]:
    """Yield the bytes left in each group with a limit that contains this process."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:  # the system has no control groups
        return
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if not controllers:
            names = ("memory.max", "memory.current", "inactive_file")
            yield from _bytes_left_in_parents(cgroups, path, *names)
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            yield from _bytes_left_in_parents(cgroups / "memory", path, *names)


def _bytes_left_in_parents(
    root: Path, path: str, limit: str, usage: str, reclaimable: str
) -> Iterator[int]:
    """Yield the bytes left in the group ``path`` and in its parents, of those with a limit.

    The root is included: in a container it may be the container's own group, whatever ``path`` is.
    """
    parts = [part for part in path.split("/") if part not in ("", "..")]
    for depth in range(len(parts) + 1):
        group = root.joinpath(*parts[:depth])
        allowed, used = _number(group / limit), _number(group / usage)
        if allowed is not None and used is not None:
            yield max(0, allowed - max(0, used - _statistic(group, reclaimable)))


def _number(path: Path) -> int | None:
    """Read the number in a file; None if there is no file, or no limit."""
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
