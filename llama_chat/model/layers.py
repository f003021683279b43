"""Layers whose weights always come from a checkpoint, as floats or packed."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llama_chat.kernels.matrix import NativeMatrix
from llama_chat.model.quantization import Packed, packed_linear, unpack_rows


class _Matrix(nn.Module):
    """A matrix ``(rows, columns)``, left uninitialised until the checkpoint gives it.

    Random initialisation would be thrown away. On the meta device it would also import half of
    torch's compiler, for most of a second.
    """

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, columns))
        self.packed: Packed | None = None
        """The weights, if they are packed; ``weight`` is empty then."""

    def pack(self, packed: Packed) -> None:
        """Use packed weights from now on."""
        if packed.shape != tuple(self.weight.shape):
            raise ValueError(f"packed weights {packed.shape} for {tuple(self.weight.shape)}")
        self.packed = packed
        device = torch.device("cpu") if isinstance(packed, NativeMatrix) else packed.device
        self.weight = nn.Parameter(torch.empty(0, device=device), requires_grad=False)

    def project(self, x: Tensor) -> Tensor:
        """``x @ weight.T``: ``(…, columns)`` to ``(…, rows)``."""
        if self.packed is None:
            return F.linear(x, self.weight)
        return packed_linear(x, self.packed)

    @property
    def native(self) -> NativeMatrix | None:
        """The weights, if they are laid out for C."""
        return self.packed if isinstance(self.packed, NativeMatrix) else None

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.weight.device

    @property
    def n_bytes(self) -> int:
        """Bytes that the weights take."""
        return self.weight.nbytes if self.packed is None else self.packed.n_bytes


class Linear(_Matrix):
    """A projection without bias: ``(…, in)`` to ``(…, out)``."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(out_features, in_features)

    def forward(self, x: Tensor) -> Tensor:
        """Project ``x``."""
        return self.project(x)


class Embedding(_Matrix):
    """A table of vectors: ids ``(…)`` to ``(…, dim)``."""

    def forward(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """Look up the vectors of ``ids``, in the type ``dtype``."""
        if self.packed is None:
            return F.embedding(ids, self.weight).to(dtype)
        return unpack_rows(self.packed, ids.flatten(), dtype).view(*ids.shape, -1)
