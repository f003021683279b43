"""The group of ranks: rank 0, which gives orders, and the others, which follow them.

Rank 0 owns the terminal, the files and the conversation. The others only hold their part of the
model and of its caches, and compute what rank 0 orders. If any rank ends, rank 0 ends with an error
that says so, and with it all others.
"""

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from llama_chat.errors import LlamaChatError, LostRankError
from llama_chat.parallel.channel import Connection, Gone, Listener, Message, connect, encode
from llama_chat.parallel.collectives import abort
from llama_chat.parallel.world import World

_KEY = "listener"
"""Key in the store with the address of rank 0; its value is empty if no rank is needed."""

_LEAVE = "leave"
"""Order to end the process."""

_STOP = "stop"
"""Order to stop the running load."""

_PROGRESS = "progress"
_FAILED = "failed"

_FOREVER = timedelta(days=365)
"""Timeout while rank 0 may be asking its user; torchrun notices if it ends."""

_CONNECT = timedelta(seconds=60)

_LOSS_S = 5.0
"""Longest time until a failed collective is known to be the loss of a rank."""


def join_store(world: World) -> Store:
    """Connect to the store that ``torchrun`` keeps for all ranks."""
    found = rendezvous("env://", world.rank, world.size, timeout=_CONNECT)
    store, _, _ = next(found)
    return PrefixStore("llama-chat", store)


class Ranks:
    """The other ranks, as rank 0 sees them."""

    def __init__(self, world: World, on_loss: Callable[[], object]) -> None:
        """Begin without any; ``gather`` waits for them.

        Args:
            world: of rank 0.
            on_loss: called in a thread of its own when one of them has gone.
        """
        self.world = world
        self.lock = threading.RLock()
        """Held while an order is given and carried out, which threads must not mix."""
        self.store = join_store(world)
        self.loss: LostRankError | None = None
        """Error about the first of them that has gone."""
        self._on_loss = on_loss
        self._noticed = threading.Event()
        self._leaving = False
        self._losing = threading.Lock()
        self._progress: dict[int, float] = {}
        self._found: dict[int, Connection] = {}

    def gather(self) -> None:
        """Wait for the others.

        Raises:
            LlamaChatError: if they do not come.
        """
        listener = Listener(local=self.world.is_one_machine)
        self.store.set(_KEY, listener.key)
        try:
            listener.accept(self._found, self.world.size)
        except OSError as error:
            why = f"only {len(self._found)} of {self.world.size - 1} others came"
            raise LlamaChatError("ranks", why, "start all of them again") from error
        for rank, connection in self._found.items():
            connection.listen(*self._handlers(rank))

    @property
    def _connections(self) -> list[Connection]:
        return [self._found[rank] for rank in sorted(self._found)]

    def _handlers(self, rank: int) -> tuple[Callable[[Message], bool], Callable[[], object]]:
        def take(message: Message) -> bool:
            if message[0] == _PROGRESS:
                self._progress[rank] = message[1]
            elif message[0] == _FAILED:
                self._lose(rank, message[1])
            return message[0] in (_PROGRESS, _FAILED)

        return take, lambda: self._lose(rank)

    def _lose(self, rank: int, *why: str) -> None:
        """Record that a rank has gone, and end all others."""
        with self._losing:
            if self.loss is not None or self._leaving:
                return
            self.loss = LostRankError(f"rank {rank} of {self.world.size}", *why)
        self._tell_to_leave()  # which ends the collectives that rank 0 waits in
        self._noticed.set()
        abort()
        self._on_loss()

    def find_loss(self, seconds: float) -> LostRankError | None:
        """Return the error about a rank that has gone, waiting at most ``seconds`` for one."""
        self._noticed.wait(seconds)
        return self.loss

    def fail(self, error: BaseException) -> LostRankError:
        """Give up after a pass failed on rank 0, and return the error to raise.

        That is the loss of a rank if there is one, else the error itself. No pass can follow, since
        the others still wait within this one.
        """
        if not self._noticed.wait(0 if isinstance(error, MemoryError) else _LOSS_S):
            self._lose(0, f"a pass failed: {' '.join(str(error).split())[:200]}")
        return self.loss or LostRankError(f"rank 0 of {self.world.size}")

    def give(self, *order: Any) -> None:
        """Give an order to all.

        Raises:
            LostRankError: if one of them has gone.
        """
        if self.loss is not None:
            raise self.loss
        data = encode(order)
        for connection in self._connections:
            connection.send(data)

    def answers(self) -> list[Message]:
        """Wait for the answer of each to the last order.

        Raises:
            LostRankError: if one of them has gone.
        """
        try:
            return [connection.receive() for connection in self._connections]
        except Gone as gone:
            raise self.fail(gone) from None

    def has_answers(self, seconds: float) -> bool:
        """Wait at most ``seconds`` for the answers of all; True also if one of them has gone."""
        end = time.monotonic() + seconds
        return all(each.has_message(end - time.monotonic()) for each in self._connections)

    def begin_load(self, *order: Any) -> None:
        """Order the others to load, after which they report their progress."""
        self._progress = dict.fromkeys(range(1, self.world.size), 0.0)
        self.give(*order)

    @property
    def progress(self) -> float:
        """Fraction of the load that the slowest rank has done."""
        return min(self._progress.values())

    def stop(self) -> None:
        """Order the others to stop the running load."""
        self.give(_STOP)

    def leave(self) -> None:
        """Let the others end; from now on nothing that they do is an error."""
        self._leaving = True
        with suppress(RuntimeError):  # torchrun has gone
            self.store.set(_KEY, "")  # for those that have not come yet
        self._tell_to_leave()

    def _tell_to_leave(self) -> None:
        data = encode([_LEAVE])
        for connection in self._connections:
            connection.send(data)


def dismiss(world: World) -> None:
    """Let the other ranks end, if they were never needed."""
    with suppress(RuntimeError):  # torchrun has gone
        join_store(world).set(_KEY, "")


class Orders:
    """Orders of rank 0, as another rank receives them."""

    def __init__(
        self, world: World, store: Store, key: str, on_end: Callable[[bool], None]
    ) -> None:
        """Connect to rank 0.

        Args:
            world: of this rank.
            store: the store of all ranks.
            key: what the store says of rank 0.
            on_end: called, in any thread, when this process is to end; with True if that is no
                failure.

        Raises:
            OSError: if that fails.
        """
        self.world, self.store = world, store
        self.stopped = threading.Event()
        """Set while a load is to stop."""
        self._on_end = on_end
        address = "127.0.0.1" if world.is_one_machine else world.address
        self._connection = connect(address, key, world.rank)
        self._connection.listen(self._take, lambda: on_end(False))

    def _take(self, order: Message) -> bool:
        if order[0] == _LEAVE:
            self._on_end(True)
        elif order[0] == _STOP:
            self.stopped.set()
        else:
            self.stopped.clear()
        return order[0] in (_LEAVE, _STOP)

    def receive(self) -> Message:
        """Wait for the next order."""
        return self._connection.receive()

    def answer(self, *message: Any) -> None:
        """Answer an order."""
        self._connection.send(encode(message))

    def tell_progress(self, share: float) -> None:
        """Report how much of the load is done."""
        self.answer(_PROGRESS, share)

    def tell_failure(self, why: str) -> None:
        """Report why this rank ends."""
        self.answer(_FAILED, why)


def await_orders(world: World, on_end: Callable[[bool], None]) -> Orders | None:
    """Wait until rank 0 needs this one; None if it does not."""
    store = join_store(world)
    store.wait([_KEY], _FOREVER)
    key = store.get(_KEY).decode()
    return Orders(world, store, key, on_end) if key else None


def end_process() -> None:
    """End this process with a signal, as a user would."""
    os.kill(os.getpid(), signal.SIGTERM)
