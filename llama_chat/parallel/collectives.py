"""Collectives of the ranks of a model within a forward pass.

The plan of tensor parallelism is applied by ``parallelize_module``, with styles of our own in place
of ``ColwiseParallel`` and ``RowwiseParallel``. Those make a ``DTensor`` of each weight, which holds
floats alone, in parts that torch chooses: packed matrices are none, and parts in whole heads and
groups are of other sizes. Each product would also pass through the dispatcher of ``DTensor``. Here
a weight is a plain matrix, the slice of a rank, and only its products are exchanged: two sums a
layer, as there.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import Store
from torch.distributed.tensor.parallel import ParallelStyle, parallelize_module

from llama_chat.model.config import LlamaConfig
from llama_chat.model.transformer import Transformer
from llama_chat.parallel.slices import divide

_TIMEOUT = timedelta(minutes=30)
"""Longest wait for another rank within a pass; one that has gone is noticed otherwise, at once."""


def join(store: Store, rank: int, size: int, device: torch.device) -> DeviceMesh:
    """Begin collectives of all ranks: by NCCL between GPUs, by gloo between CPUs."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_TIMEOUT)
    return init_device_mesh(device.type, (size,))


def parallelize(model: Transformer, mesh: DeviceMesh, whole: LlamaConfig) -> None:
    """Make the part of a model that this rank holds compute what the model of ``whole`` does."""
    rows = divide(whole.vocab_size, mesh.size())
    plan: dict[str, ParallelStyle] = {
        "tok_embeddings": _LookedUpByOne(rows[mesh.get_rank()]),
        "layers.*.attention.wo": _Summed(),
        "layers.*.feed_forward.w2": _Summed(),
        "": _GatheredLogits(rows),
    }
    parallelize_module(model, mesh, plan)


def _sum(x: Tensor, mesh: DeviceMesh) -> Tensor:
    """Add the ``x`` of all ranks; on a CPU in float32, whose sums gloo computes fastest."""
    if x.device.type == "cpu" and x.dtype != torch.float32:
        return _sum(x.float(), mesh).to(x.dtype)
    x = x.contiguous()
    dist.all_reduce(x, group=mesh.get_group())
    return x


class _Summed(ParallelStyle):
    """A matrix divided by columns: the products of the ranks are added."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        forward: Callable[[Tensor], Tensor] = module.forward
        module.forward = lambda x: _sum(forward(x), device_mesh)
        return module


class _LookedUpByOne(ParallelStyle):
    """An embedding divided by rows: each token is looked up by the rank that has its row."""

    def __init__(self, rows: range) -> None:
        self._rows = rows

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        look_up: Callable[[Tensor, torch.dtype], Tensor] = module.forward

        def forward(ids: Tensor, dtype: torch.dtype) -> Tensor:
            rows = ids - self._rows.start
            elsewhere = (rows < 0) | (rows >= len(self._rows))
            x = look_up(rows.masked_fill(elsewhere, 0), dtype)
            return _sum(x.masked_fill(elsewhere.unsqueeze(-1), 0), device_mesh)

        module.forward = forward
        return module


class _GatheredLogits(ParallelStyle):
    """An output matrix divided by rows: rank 0 gets the logits of all tokens."""

    def __init__(self, rows: list[range]) -> None:
        self._rows = rows

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        forward: Callable[..., Tensor] = module.forward
        is_first = device_mesh.get_rank() == 0
        group, longest = device_mesh.get_group(), max(map(len, self._rows))

        def gather(*args: Any, **options: Any) -> Tensor:
            logits = forward(*args, **options)  # (B, n_logits, rows of this rank)
            padded = nn.functional.pad(logits, (0, longest - logits.shape[-1]))
            parts = [torch.empty_like(padded) for _ in self._rows] if is_first else None
            dist.gather(padded, parts, dst=0, group=group)
            if parts is None:
                return logits
            whole = zip(parts, self._rows, strict=True)
            return torch.cat([part[..., : len(rows)] for part, rows in whole], -1)

        module.forward = gather
        return module


def abort() -> None:
    """End the collectives that wait for a rank that has gone.

    Those of gloo end by themselves when a connection does; a kernel of NCCL would wait.
    """
    if dist.is_initialized() and dist.get_backend() == "nccl":
        dist.distributed_c10d._abort_process_group()
