"""Constants and structs that Python and the C library must agree on; ``native.py`` checks them."""

import ctypes

import torch
from torch import Tensor

ABI = 9
"""Version of the interface, raised by changes that alter no struct size; ``library.c``."""

PANEL = 16
"""Rows of a matrix that are interleaved in memory; ``packed.h``."""

MAX_EXACT_BATCH = 8
"""Tokens of one pass up to which results equal those of one at a time; ``attention.h``."""

PARTS = ("projections", "attention", "feed_forward", "output")
"""Timed parts of a forward pass; ``projections`` are the matrix products of attention."""


class PackedLayout(ctypes.Structure):
    """``packed_layout`` of ``packed.h``."""

    _fields_ = (
        ("bits", ctypes.c_int32),
        ("group", ctypes.c_int32),
        ("has_mins", ctypes.c_int32),
        ("groups_per_super_block", ctypes.c_int32),
        ("is_iq4", ctypes.c_int32),
    )


PACKED = 0
"""``type`` of a packed matrix; ``matrix.h``."""

WEIGHT_TYPES = {torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}
"""``type`` of a matrix of floats; ``matrix.h``."""


class Matrix(ctypes.Structure):
    """``matrix`` of ``matrix.h``."""

    _fields_ = (
        ("type", ctypes.c_int32),
        ("layout", PackedLayout),
        ("n_rows", ctypes.c_int64),
        ("n_columns", ctypes.c_int64),
        ("data", ctypes.c_void_p),
    )


class TensorView(ctypes.Structure):
    """``tensor_view`` of ``panels.h``."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("row_stride", ctypes.c_int64),
        ("group_stride", ctypes.c_int64),
    )

    @classmethod
    def of(cls, tensor: Tensor | None) -> "TensorView":
        """View a tensor ``(rows, groups, …)``; None gives an empty view."""
        if tensor is None:
            return cls()
        strides = (tensor.stride(axis) * tensor.element_size() for axis in (0, 1))
        return cls(tensor.data_ptr(), *strides)


class UnpackedMatrix(ctypes.Structure):
    """``unpacked_matrix`` of ``panels.h``."""

    _fields_ = tuple(
        (name, TensorView) for name in ("quants", "scales", "mins", "super_scales", "super_mins")
    )


class LayerWeights(ctypes.Structure):
    """``layer_weights`` of ``forward.h``."""

    _fields_ = (
        ("attention_norm", ctypes.c_void_p),
        ("ffn_norm", ctypes.c_void_p),
        *((name, Matrix) for name in ("wq", "wk", "wv", "wo", "w1", "w2", "w3")),
    )


class ModelWeights(ctypes.Structure):
    """``model_weights`` of ``forward.h``."""

    _fields_ = (
        ("dim", ctypes.c_int64),
        ("n_layers", ctypes.c_int64),
        ("hidden_dim", ctypes.c_int64),
        ("norm_eps", ctypes.c_float),
        ("layers", ctypes.POINTER(LayerWeights)),
        ("norm", ctypes.c_void_p),
        ("output", Matrix),
    )


class CacheSegment(ctypes.Structure):
    """``cache_segment`` of ``attention.h``."""

    _fields_ = (
        *(
            (name, ctypes.POINTER(ctypes.c_void_p))
            for name in ("keys", "values", "key_scales", "value_scales")
        ),
        ("capacity", ctypes.c_int64),
        ("start", ctypes.c_int64),
    )


class KVCacheView(ctypes.Structure):
    """``kv_cache`` of ``attention.h``."""

    _fields_ = (
        ("kind", ctypes.c_int32),
        ("n_new", ctypes.c_int32),
        ("n_heads", ctypes.c_int64),
        ("n_kv_heads", ctypes.c_int64),
        ("head_dim", ctypes.c_int64),
        ("segments", ctypes.POINTER(CacheSegment)),
        ("n_segments", ctypes.c_int64),
        ("length", ctypes.c_int64),
        ("cos", ctypes.c_void_p),
        ("sin", ctypes.c_void_p),
    )


class PassRecord(ctypes.Structure):
    """``pass_record`` of ``forward.h``."""

    _fields_ = (*((name, ctypes.c_double) for name in PARTS), ("n_threads", ctypes.c_int32))


STRUCTS = {
    "packed_layout": PackedLayout,
    "matrix": Matrix,
    "tensor_view": TensorView,
    "unpacked_matrix": UnpackedMatrix,
    "layer_weights": LayerWeights,
    "model_weights": ModelWeights,
    "cache_segment": CacheSegment,
    "kv_cache": KVCacheView,
    "pass_record": PassRecord,
}
"""Structs by their names in C."""
