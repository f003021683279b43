"""Pickles of ``torch.save``, read as data: nothing that they name is imported or called.

A pickle is a program that may call any function. That of named weights needs few instructions and
fewer functions: those become the descriptions below, and any other is refused. A storage is a run
of numbers in a file of its own, which tensors may share.
"""

import io
import pickle
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch


class PickledStorage(NamedTuple):
    """A run of numbers in the file ``key``."""

    dtype: torch.dtype
    key: str
    n_numbers: int

    @property
    def n_bytes(self) -> int:
        """Size of the file."""
        return self.n_numbers * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class PickledTensor:
    """A view of a storage; see ``torch.as_strided``."""

    storage: PickledStorage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def __post_init__(self) -> None:
        sizes = (self.offset, *self.shape, *self.strides)
        if not isinstance(self.storage, PickledStorage) or not all(map(_is_size, sizes)):
            raise ValueError("the tensor is not described as torch does it")


class ForeignNameError(Exception):
    """A pickle names a function or class that weights do not need."""


def read_pickle(data: bytes) -> object:
    """Read a pickle: a table of ``PickledTensor`` by their names, unless it holds anything else.

    Raises:
        ForeignNameError: if it names a function or class that weights do not need.
        Exception: of any other type if it is damaged.
    """
    return _Reader(io.BytesIO(data)).load()


def _is_size(value: object) -> bool:
    return type(value) is int and value >= 0


class _Table(dict[str, Any]):
    """Table whose keys are texts: hashing a tuple that is nested deeply would crash Python."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__()  # without keys that were not checked

    def __setitem__(self, key: str, value: object) -> None:
        if not isinstance(key, str):
            raise TypeError("a key is no text")
        super().__setitem__(key, value)


def _tensor(*arguments: Any) -> PickledTensor:
    storage, offset, shape, strides, *others = arguments
    if any(others[2:]):  # after two that concern training: negation and the like
        raise ValueError("the tensor is a transformed one")
    return PickledTensor(storage, offset, shape, strides)


_NAMES: dict[str, Any] = {
    "collections.OrderedDict": _Table,
    "torch._utils._rebuild_parameter": lambda tensor, *training: tensor,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.DoubleStorage": torch.float64,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
    "torch.ComplexFloatStorage": torch.complex64,
    "torch.ComplexDoubleStorage": torch.complex128,
}
"""Stand-ins for the functions and classes that pickles of weights name."""


class _Reader(pickle._Unpickler):
    """Unpickler in Python, with the instructions that weights need.

    Some others allocate as many bytes as they say.
    """

    stack: list[Any]
    dispatch: ClassVar[dict[int, Any]] = {
        code: pickle._Unpickler.dispatch[code]
        for code in b"".join(
            (
                *(pickle.PROTO, pickle.STOP, pickle.MARK, pickle.GLOBAL, pickle.BINPERSID),
                *(pickle.BINPUT, pickle.LONG_BINPUT, pickle.BINGET, pickle.LONG_BINGET),
                *(pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.BINUNICODE),
                *(pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1, pickle.BINFLOAT),
                *(pickle.EMPTY_TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.TUPLE),
                *(pickle.EMPTY_LIST, pickle.APPEND, pickle.APPENDS),
                *(pickle.SETITEM, pickle.SETITEMS, pickle.REDUCE),
            )
        )
    }

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for a function or class."""
        found = _NAMES.get(f"{module}.{name}")
        if found is None:
            raise ForeignNameError(f"{module}.{name}")
        return found

    def persistent_load(self, saved_id: Any) -> PickledStorage:
        """Describe a storage."""
        kind, dtype, key, _, n_numbers = saved_id
        storage = PickledStorage(dtype, key, n_numbers)
        typed = isinstance(dtype, torch.dtype) and isinstance(key, str) and _is_size(n_numbers)
        if kind != "storage" or not typed:
            raise ValueError("a storage is not described as torch does it")
        return storage

    def _load_table(self) -> None:
        self.stack.append(_Table())

    def _drop_attributes(self) -> None:
        """Drop the attributes of an object, such as the versions of the layers of a model."""
        self.stack.pop()

    dispatch[pickle.EMPTY_DICT[0]] = _load_table
    dispatch[pickle.BUILD[0]] = _drop_attributes
