"""Linear and embedding layers whose weights are floats or packed."""

import math
import threading
from collections.abc import Iterable, Iterator
from functools import cache
from operator import itemgetter

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llama_chat.kernels import native
from llama_chat.kernels.abi import MAX_EXACT_BATCH
from llama_chat.kernels.matrix import FloatMatrix, NativeMatrix
from llama_chat.quantization.packed import PackedWeight, stack
from llama_chat.quantization.quantize import quantize
from llama_chat.quantization.trial import is_faster

Packed = PackedWeight | NativeMatrix
"""A packed matrix: in the layout of the C kernels, or in that of torch."""

UNPACKED_BYTES = 2**25
"""Bytes of weights unpacked at a time, which a product needs in addition to the weights."""


class _Matrix(nn.Module):
    """A matrix ``(rows, columns)``, uninitialised until weights are loaded.

    Random initialisation would be wasted. On the meta device it would also import half of torch's
    compiler, which takes most of a second.
    """

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, columns))
        self.packed: Packed | None = None
        """The packed weights; ``weight`` is then empty."""

    def pack(self, packed: Packed) -> None:
        """Replace the weights by packed ones.

        Raises:
            ValueError: if they have another shape.
        """
        if packed.shape != tuple(self.weight.shape):
            raise ValueError(f"packed weights {packed.shape} for {tuple(self.weight.shape)}")
        self.packed = packed
        device = torch.device("cpu") if isinstance(packed, NativeMatrix) else packed.device
        self.weight = nn.Parameter(torch.empty(0, device=device), requires_grad=False)

    def project(self, x: Tensor) -> Tensor:
        """Compute ``x @ weight.T``: ``(…, columns)`` to ``(…, rows)``."""
        if self.packed is not None:
            return packed_linear(x, self.packed)
        if self.weight.dtype != x.dtype:
            return float_linear(x, self.weight)
        return F.linear(x, self.weight)

    @property
    def native(self) -> NativeMatrix | FloatMatrix | None:
        """The weights for the kernels; None if these cannot multiply them."""
        if isinstance(self.packed, NativeMatrix):
            return self.packed
        usable = self.packed is None and native.multiplies_floats()
        return FloatMatrix.of(self.weight) if usable else None

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.weight.device

    @property
    def type_name(self) -> str:
        """Name of the packed layout, such as ``W4``, or of the float type."""
        floats = str(self.weight.dtype).removeprefix("torch.")
        return floats if self.packed is None else f"W{self.packed.bits}"

    @property
    def n_bytes(self) -> int:
        """Bytes of the weights."""
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


def has_kernels(device: torch.device) -> bool:
    """True if packed matrices on ``device`` are multiplied by the C kernels."""
    return native.is_available() and device.type == "cpu"


def place_parts(parts: Iterable[PackedWeight], n_rows: int, device: torch.device) -> Packed:
    """Copy a matrix of ``n_rows`` to ``device``, in the layout that is fastest there.

    It comes in parts, each some of its rows. All parts but the last must be of whole panels.
    """
    if not has_kernels(device):
        return stack([part.map(lambda tensor: tensor.to(device)) for part in parts])
    matrix, first = None, 0
    for part in parts:
        matrix = matrix or NativeMatrix(part.layout, (n_rows, part.shape[1]))
        matrix.write_rows(first, *part.tensors)
        first += part.shape[0]
    if matrix is None:
        raise ValueError("a matrix without rows")
    return matrix


def to_panels(weight: PackedWeight, level: str | None = None) -> NativeMatrix:
    """Copy a matrix to the layout of the kernels; see ``NativeMatrix`` for ``level``."""
    matrix = NativeMatrix(weight.layout, weight.shape, level)
    matrix.write_rows(0, *weight.tensors)
    return matrix


def _native_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the type in which the kernels compute what is wanted in ``dtype``."""
    return dtype if dtype in (torch.float32, torch.bfloat16) else torch.float32


def unpack_rows(weight: Packed, ids: Tensor, dtype: torch.dtype) -> Tensor:
    """Unpack the rows ``ids`` ``(n,)`` to floats ``(n, in)``."""
    if isinstance(weight, PackedWeight):
        return weight.map(itemgetter(ids)).unpack(dtype)
    rows = torch.empty(len(ids), weight.shape[1], dtype=_native_dtype(dtype))
    return weight.unpack_rows(ids, rows).to(dtype)


def float_linear(x: Tensor, weight: Tensor) -> Tensor:
    """Compute ``x @ weight.T`` in float32, with weights of another type as they are stored.

    Args:
        x: ``(…, in)`` in float32.
        weight: ``(out, in)``; floats that the kernels can multiply.

    Returns:
        ``(…, out)`` in float32.

    Raises:
        ValueError: if they cannot.
    """
    matrix = FloatMatrix.of(weight) if native.is_available() else None
    if matrix is None or x.dtype != torch.float32:
        raise ValueError(f"no kernel multiplies {weight.dtype} with {x.dtype}")
    return matrix.multiply(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], len(weight))


def packed_linear(x: Tensor, weight: Packed) -> Tensor:
    """Compute ``x @ weight.T``.

    The kernels quantize ``x`` to 8 bits per group. Without them, and for many rows if
    ``prefers_unpacked``, torch multiplies the weights, unpacked in parts.

    Args:
        x: ``(…, in)``.
        weight: ``(out, in)``.

    Returns:
        ``(…, out)`` in the type of ``x``.
    """
    out, width = weight.shape
    rows = x.reshape(-1, width)
    is_small = len(rows) <= MAX_EXACT_BATCH
    if isinstance(weight, NativeMatrix) and (
        is_small or not prefers_unpacked(x.dtype, weight.bits, width)
    ):
        product = _multiply_packed(rows, weight)
    else:
        product = _multiply_unpacked(rows, weight)
    return product.view(*x.shape[:-1], out)


def _multiply_packed(rows: Tensor, weight: NativeMatrix) -> Tensor:
    return weight.multiply(rows.to(_native_dtype(rows.dtype))).to(rows.dtype)


def _multiply_unpacked(rows: Tensor, weight: Packed) -> Tensor:
    product = rows.new_empty(len(rows), weight.shape[0])
    start = 0
    for part in _unpack_in_parts(weight, rows.dtype):
        torch.mm(rows, part.T, out=product[:, start : start + len(part)])
        start += len(part)
    return product


def torch_has_matrix_units(dtype: torch.dtype) -> bool:
    """True if torch multiplies ``dtype`` by matrix units (AMX)."""
    return dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported()


@cache
def prefers_unpacked(dtype: torch.dtype, bits: int, width: int) -> bool:
    """True if products of many rows are faster with unpacked weights of ``dtype``, in torch.

    If ``torch_has_matrix_units``, or the portable level is in use, both ways are timed with a
    matrix of ``width`` columns; see ``trial``.
    """
    if not torch_has_matrix_units(dtype) and not native.is_portable():
        return False
    weight, rows = _sample(bits, 256, width), torch.ones(64, width, dtype=dtype)
    return is_faster(
        f"many rows, W{bits} of {width} columns, {dtype}",
        lambda: _multiply_unpacked(rows, weight),
        lambda: _multiply_packed(rows, weight),
    )


@cache
def prefers_floats(dtype: torch.dtype, bits: int, width: int) -> bool:
    """True if products of one row are faster with floats of ``dtype``, in torch, than packed.

    Both ways are timed if the portable level is in use; otherwise packed weights are faster.
    """
    if not native.is_portable():
        return False
    packed, row = _sample(bits, 1024, width), torch.ones(1, width, dtype=dtype)
    floats = torch.ones(packed.shape, dtype=dtype)
    return is_faster(
        f"one row, W{bits} of {width} columns, {dtype}",
        lambda: F.linear(row, floats),
        lambda: _multiply_packed(row, packed),
    )


def _sample(bits: int, n_rows: int, width: int) -> NativeMatrix:
    """Make a matrix for a trial; layouts of 5 and 6 bits are tried with 8 bits."""
    return to_panels(quantize(torch.ones(n_rows, width), 4 if bits == 4 else 8))


class _Scratch(threading.local):
    """Buffer per thread, reused for each part.

    Newly allocated memory would cost as much time as unpacking into it, since the system maps it
    page by page.
    """

    buffer = torch.empty(0, dtype=torch.uint8)

    def allocate(self, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """Allocate a matrix that is valid until the next call."""
        n_bytes = math.prod(shape) * dtype.itemsize
        if len(self.buffer) < n_bytes:
            self.buffer = torch.empty(n_bytes, dtype=torch.uint8)
        return self.buffer[:n_bytes].view(dtype).view(shape)


_scratch = _Scratch()


def _unpack_in_parts(weight: Packed, dtype: torch.dtype) -> Iterator[Tensor]:
    """Unpack the rows to floats, in parts; each is valid until the next one."""
    out, width = weight.shape
    step = max(1, UNPACKED_BYTES // (_native_dtype(dtype).itemsize * width))
    for start in range(0, out, step):
        end = min(start + step, out)
        if isinstance(weight, NativeMatrix):
            part = _scratch.allocate((end - start, width), _native_dtype(dtype))
            yield weight.unpack_rows(torch.arange(start, end), part).to(dtype)
        else:
            yield weight.map(itemgetter(slice(start, end))).unpack(dtype)
