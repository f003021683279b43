"""The program as one of several ranks, which ``torchrun`` has started.

Rank 0 runs the program as if it were alone. The others wait until it loads a model, write nothing
and read nothing, and end when it ends.
"""

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

from llama_chat.errors import LostRankError
from llama_chat.parallel.world import World, find_world
from llama_chat.terminal import streams

if TYPE_CHECKING:
    from llama_chat.parallel.ranks import Ranks

_NOTICE_S = 1.0
"""Longest time between the end of a rank and the signal by which torchrun ends the others."""


_connected: "Ranks | None" = None
"""The other ranks, once rank 0 needs them."""


def other_ranks() -> "Ranks | None":
    """Return the other ranks, which from now on wait for orders; None if there are none."""
    global _connected
    world = find_world()
    if world is not None and _connected is None:
        from llama_chat.parallel.ranks import Ranks, end_process

        _connected = Ranks(world, end_process)
        _connected.gather()
    return _connected


def run_rank(world: World, command: Callable[[], int]) -> int:
    """Run the program as one of several ranks, and return its exit status.

    Args:
        world: place of this process among them.
        command: runs the program, on rank 0.
    """
    if world.rank:
        _follow(world)
    status = 1
    try:
        status = command()
    except LostRankError:
        pass
    except SystemExit as ended:  # a signal
        status = ended.code if isinstance(ended.code, int) else 1
    finally:
        status = _end_all(world, status)
    return status


def exit_at_once(status: int) -> NoReturn:
    """Exit without waiting for other threads, and let the other ranks end."""
    if (world := find_world()) is not None:
        from llama_chat.terminal.own_terminal import restore_terminal

        restore_terminal()
        status = _end_all(world, status)
    os._exit(status)


def _end_all(world: World, status: int) -> int:
    """Let the other ranks end, and return the exit status.

    If another rank had gone before, that is the error to report: the end of rank 0 follows from it.
    """
    with suppress(ValueError):  # not in the main thread: then the process ends at once
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun sends it, too
    was_terminated = status == 128 + signal.SIGTERM
    if _connected is not None:
        lost = _connected.find_loss(_NOTICE_S if was_terminated else 0)
        _connected.leave()
    else:
        lost = LostRankError("ranks", "torchrun has ended them") if was_terminated else None
        if lost is None:
            from llama_chat.parallel.ranks import dismiss

            dismiss(world)
    if lost is None:
        return status
    streams.fail(str(lost))
    return lost.status


def _follow(world: World) -> None:
    """Do what rank 0 says until the end of the process."""
    errors = _silence(keeps_errors=world.rank == 1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    from llama_chat.parallel.ranks import await_orders

    def end(*, in_order: bool) -> None:
        if not in_order and errors >= 0:  # nobody else is left to say so
            lost = LostRankError(f"rank 0 of {world.size}")
            os.write(errors, f"llama-chat: error: {lost}\n".encode())
        os._exit(0 if in_order else 1)

    try:
        orders = await_orders(world, lambda in_order: end(in_order=in_order))
    except OSError:  # rank 0 has left meanwhile
        orders = None
    if orders is None:
        os._exit(0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # rank 0 gets it, too, and decides what follows
    from llama_chat.loading.ranks import follow

    follow(orders)
    os._exit(1)


def _silence(*, keeps_errors: bool) -> int:
    """Detach this process from the streams that it shares with rank 0.

    Returns:
        A copy of stderr, or -1.
    """
    errors = os.dup(2) if keeps_errors else -1
    nowhere = os.open(os.devnull, os.O_RDWR)
    streams_kept = (0, 1) if os.environ.get("LLAMA_CHAT_TRACEBACK") else (0, 1, 2)
    for descriptor in streams_kept:
        os.dup2(nowhere, descriptor)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - not the terminal any more
    return errors
