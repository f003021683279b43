"""Ranks of one model, started as ``torchrun`` starts them."""

from collections.abc import Sequence
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

from torch import distributed

from harness.program import TIMEOUT_S, Program, Result
from harness.request import COMMAND

LEAVING_S = 10.0
"""Longest time that all ranks may take to end once one of them has."""


class RankGroup:
    """The program, or another one, as several ranks with pipes; killed at the end of a ``with``."""

    def __init__(
        self,
        n: int,
        *arguments: str | Path,
        home: Path,
        command: Sequence[str] = COMMAND,
        n_machines: int = 1,
        **env: str,
    ) -> None:
        """Start ``n`` ranks, as many on each machine; other arguments as of ``Program``."""
        self.store = distributed.TCPStore(  # type: ignore[attr-defined] # as is documented
            "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(minutes=1)
        )
        self._stack = ExitStack()
        self.ranks = [
            self._stack.enter_context(
                Program(
                    *arguments,
                    home=home,
                    command=command,
                    **rank_environment(rank, n, self.store.port, n // n_machines),
                    **env,
                )
            )
            for rank in range(n)
        ]

    def __enter__(self) -> "RankGroup":
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def finish(self, stdin: bytes = b"", seconds: float = TIMEOUT_S) -> Result:
        """Pipe ``stdin`` to rank 0, wait for the end of all, and return the result of rank 0.

        The others must have written nothing, and ended well.
        """
        first, *others = self.ranks
        out, err = first.communicate(stdin, seconds)
        for other in others:
            assert other.wait(LEAVING_S) == 0
            assert other.stdout.read() + other.stderr.read() == b""
        return Result(first.wait(0), out.decode(), err.decode())


def rank_environment(rank: int, size: int, port: int, local_size: int) -> dict[str, str]:
    """Return the variables that ``torchrun`` sets for a rank.

    Args:
        rank: number of the rank.
        size: number of all.
        port: port of the store.
        local_size: number of ranks on each machine.
    """
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank % local_size),
        "LOCAL_WORLD_SIZE": str(local_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
