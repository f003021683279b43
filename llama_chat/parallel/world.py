"""The place of this process among the ranks that ``torchrun`` started."""

import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class World:
    """Number of this process, its rank, and the number of all."""

    rank: int
    size: int
    local_rank: int
    """Rank among the processes of this machine, which is the number of its GPU."""
    local_size: int
    """Number of processes of this machine."""
    address: str
    """Address of the machine of rank 0."""

    @property
    def is_one_machine(self) -> bool:
        """True if all ranks are on this machine."""
        return self.local_size == self.size


def find_world() -> World | None:
    """Return what ``torchrun`` says of this process; None unless there are several ranks."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    try:
        rank, size, local_rank, local_size = (int(os.environ[name]) for name in names)
        address = os.environ["MASTER_ADDR"]
    except (KeyError, ValueError):
        return None
    return World(rank, size, local_rank, local_size, address) if size > 1 else None
