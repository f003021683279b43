"""Loading of a model that is divided among ranks: on rank 0, and on the others."""

import dataclasses
import os
import time
import traceback
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh

from llama_chat.errors import LlamaChatError, ModelError, UsageError
from llama_chat.generation.backend import Backend
from llama_chat.generation.engine import choose_torch_backend
from llama_chat.generation.ranks import DTYPES, Follower, RankedBackend, dtype_name
from llama_chat.loading.load_plan import LoadPlan, Report
from llama_chat.loading.plan import plan
from llama_chat.loading.weights import FloatTypes
from llama_chat.model.transformer import Transformer
from llama_chat.parallel.channel import Message
from llama_chat.parallel.collectives import join, parallelize
from llama_chat.parallel.ranks import Orders, Ranks
from llama_chat.parallel.world import World

_POLL_S = 0.05

_LOSS_S = 2.0
"""Longest time until rank 0 knows that another rank has ended."""


class _StoppedLoad(Exception):
    """Raised by a load that rank 0 stops."""


@dataclass(frozen=True, slots=True)
class RankedPlan(LoadPlan):
    """Plan of a load by all ranks, on rank 0."""

    ranks: Ranks | None = None

    def load_backend(self, report: Report | None = None) -> Backend:
        """See the base class; all ranks load at the same time.

        Raises:
            ModelError: if one of them cannot; the message says which.
            LostRankError: if one of them has gone.
        """
        ranks = self.ranks
        if ranks is None:
            raise TypeError("a plan without ranks")
        _check_device(self.devices[0])
        with ranks.lock:
            ranks.begin_load("load", _decisions(self))
            try:
                model = self.load_model(_slowest(report, ranks))
                _await_others(ranks, report, self.part.n_bytes)
            except Exception:
                ranks.stop()
                ranks.answers()
                raise
            _check_answers(ranks)
            ranks.give("join")
            mesh = _mesh(ranks.world, ranks.store, self.devices[0])
            parallelize(model, mesh, self.config)
        inner = choose_torch_backend(model, self.cache_dtype, self.threads)
        return RankedBackend(inner, self.config, ranks)


def plan_for_all(ranks: Ranks, path: str | os.PathLike[str], **options: Any) -> LoadPlan:
    """Plan a load by all ranks, on rank 0; see ``plan``."""
    planned = plan(path, world=ranks.world, **options)
    fields = {field.name: getattr(planned, field.name) for field in dataclasses.fields(planned)}
    return RankedPlan(**{**fields, "threads": _threads(planned, ranks.world)}, ranks=ranks)


def _threads(planned: LoadPlan, world: World) -> int | None:
    """Return the CPU threads of a rank: its share of the cores, unless something else sets them.

    ``torchrun`` sets one for each rank, which wastes the other cores.
    """
    if planned.threads is not None or os.environ.get("OMP_NUM_THREADS", "1") != "1":
        return planned.threads
    return max(1, (os.cpu_count() or 1) // world.local_size)


def _decisions(planned: LoadPlan) -> dict[str, Any]:
    """Return what the other ranks need to make the same plan."""
    return {
        "path": str(planned.checkpoint.path.absolute()),
        "device": planned.devices[0].type,
        "quantize": planned.weight_format,
        "context": planned.config.context_length,
        "threads": planned.threads,
        "context_given": planned.context_given,
        "dtype": dtype_name(planned.types.dtype),
        "keeps_stored": planned.types.keeps_stored,
        "cache_dtype": dtype_name(planned.cache_dtype),
    }


def _same_plan(found: dict[str, Any], world: World) -> LoadPlan:
    """Make the plan of another rank from the decisions of rank 0."""
    names = ("path", "device", "quantize", "context", "threads")
    planned = plan(**{name: found[name] for name in names}, world=world)
    return dataclasses.replace(
        planned,
        context_given=found["context_given"],
        types=FloatTypes(DTYPES[found["dtype"]], found["keeps_stored"]),
        cache_dtype=DTYPES[found["cache_dtype"]],
    )


def _check_answers(ranks: Ranks) -> None:
    """Check that the others have loaded.

    Raises:
        ModelError: about the first that has not.
    """
    for rank, (word, *parts) in enumerate(ranks.answers(), 1):
        if word == "refused":
            what, why, advice = parts
            raise ModelError(f"rank {rank} of {ranks.world.size}: {what}", why, advice)


def _slowest(report: Report | None, ranks: Ranks) -> Report | None:
    """Return a callback for rank 0 that reports the progress of the slowest rank."""
    if report is None:
        return None
    return lambda done, total: report(min(done, int(ranks.progress * total)), total)


def _await_others(ranks: Ranks, report: Report | None, total: int) -> None:
    """Wait until the others have loaded, or one of them cannot, reporting their progress."""
    while not ranks.has_answers(_POLL_S):
        if report is not None:
            report(int(ranks.progress * total), total)


_joined: DeviceMesh | None = None
"""The mesh of all ranks, once they have one."""


def _mesh(world: World, store: Any, device: torch.device) -> DeviceMesh:
    """Return the mesh of all ranks, which the first load makes."""
    global _joined
    if _joined is None:
        _joined = join(store, world.rank, world.size, device)
    return _joined


def _check_device(device: torch.device) -> None:
    if _joined is not None and device.type != _joined.device_type:
        why = "the ranks have begun on others"
        raise UsageError(f"--device {device.type}", why, "start all of them again with it")


def follow(orders: Orders) -> None:
    """Load and compute what rank 0 orders, until an error after which this rank cannot go on."""
    other = _OtherRank(orders)
    try:
        while True:
            other.obey(orders.receive())
    except BaseException as error:
        if os.environ.get("LLAMA_CHAT_TRACEBACK"):
            traceback.print_exc()
        time.sleep(_LOSS_S)  # if it follows from the end of another rank, rank 0 ends this one
        orders.tell_failure(_short(error))


def _short(error: BaseException) -> str:
    """Return what an error says, as a part of a line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


class _OtherRank:
    """A rank that has its part of one model at a time, or none."""

    def __init__(self, orders: Orders) -> None:
        self._orders = orders
        self._loaded: tuple[LoadPlan, Transformer] | None = None
        self._follower: Follower | None = None

    def obey(self, order: Message) -> None:
        name, *arguments = order
        if name == "load":
            self._load(*arguments)
        elif name == "join":
            self._join()
        elif self._follower is not None:
            self._follower.obey(name, *arguments)

    def _load(self, decisions: dict[str, Any]) -> None:
        """Load, and answer with a word, and the parts of the error if it is refused."""
        self._loaded = self._follower = None
        try:
            planned = _same_plan(decisions, self._orders.world)
            planned.check_fit()
            if planned.threads is not None:
                torch.set_num_threads(planned.threads)
            self._loaded = planned, planned.load_model(self._report)
        except _StoppedLoad:
            self._orders.answer("stopped")
        except LlamaChatError as error:
            self._orders.answer("refused", error.what, error.why, error.advice)
        else:
            self._orders.answer("loaded")

    def _report(self, done: int, total: int) -> None:
        if self._orders.stopped.is_set():
            raise _StoppedLoad
        self._orders.tell_progress(done / total)

    def _join(self) -> None:
        if self._loaded is None:
            raise RuntimeError("no model is loaded")
        planned, model = self._loaded
        mesh = _mesh(self._orders.world, self._orders.store, planned.devices[0])
        parallelize(model, mesh, planned.config)
        backend = choose_torch_backend(model, planned.cache_dtype, planned.threads)
        self._follower = Follower(backend, self._orders)
