"""The part of a checkpoint that one rank reads, as a checkpoint of its own."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from llama_chat.checkpoints.base import Checkpoint, TensorInfo
from llama_chat.parallel.slices import Grain, Shard, Slice
from llama_chat.quantization.linear import Packed
from llama_chat.tokenizers.vocabulary import Vocabulary


class ShardedCheckpoint(Checkpoint):
    """One rank's slices of the weights of another checkpoint, of whatever format and files."""

    def __init__(self, whole: Checkpoint, shard: Shard) -> None:
        """Show ``shard`` of the checkpoint ``whole``."""
        self.path, self.format, self.name = whole.path, whole.format, whole.name
        self.templates, self.generation = whole.templates, whole.generation
        self.warnings = whole.warnings
        self.config = shard.local(whole.config)
        self._whole = whole
        self._slices = {name: shard.slice_of(name) for name in whole.tensors}
        self.tensors = {
            name: _part(info, self._slices[name]) for name, info in whole.tensors.items()
        }

    def read_vocabulary(self) -> Vocabulary:
        """See the base class."""
        return self._whole.read_vocabulary()

    def read(self, name: str, dtype: torch.dtype, part: Slice | None = None) -> Tensor:
        """See the base class; there are no parts of parts."""
        return self._whole.read(name, dtype, self._slices[name])

    def read_packed(
        self, name: str, device: torch.device, part: Slice | None = None
    ) -> Packed | None:
        """See the base class; there are no parts of parts."""
        return self._whole.read_packed(name, device, self._slices[name])

    def stored(self, name: str) -> Sequence[Tensor]:
        """See the base class; of the whole weight."""
        return self._whole.stored(name)

    def packed_bytes(self, name: str) -> int | None:
        """See the base class."""
        n_bytes = self._whole.packed_bytes(name)
        n_whole = self._whole.tensors[name].n_weights
        return None if n_bytes is None else n_bytes * self.tensors[name].n_weights // n_whole

    def forget(self, name: str) -> None:
        """See the base class."""
        self._whole.forget(name)


def _part(info: TensorInfo, part: Slice | None) -> TensorInfo:
    """Describe a part of a weight."""
    if part is None:
        return info
    shape = part.shape(info.shape)
    n_bytes = info.n_bytes * math.prod(shape) // info.n_weights
    return replace(info, shape=shape, n_bytes=n_bytes)


def grain_of(checkpoint: Checkpoint, weight_format: str) -> Grain:
    """Return the columns of a checkpoint that stay together.

    Args:
        checkpoint: the model.
        weight_format: format of the matrices in memory, see ``loading.weights``.
    """
    group = 32 if weight_format in ("int8", "int4") else 1
    grains = {"wo": [1], "w2": [1]}
    for name, info in checkpoint.tensors.items():
        part = name.removesuffix(".weight").rpartition(".")[2]
        if part in grains:
            grains[part].append(checkpoint.column_grain(name))
            if info.shape[1] % group == 0:
                grains[part].append(group)
    return Grain(math.lcm(*grains["wo"]), math.lcm(*grains["w2"]))
