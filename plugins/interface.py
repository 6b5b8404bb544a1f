"""The structs of `native/vditc_plugins.h` for ctypes, field by field; `tests/plugins/test_interface.py` holds them to a C compiler's.

Nothing but the standard library is imported: a device that runs kernels may have no more than numpy.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from ctypes import c_float, c_int32, c_int64, c_size_t, c_uint32, c_void_p
from typing import Any

from vditc.plugins.library import Library, Rows

FLOATS = {"fp32": 0, "fp16": 1, "bf16": 2}  # vditc_float_type
ACTIVATIONS = {"none": 0, "gelu": 1, "gelu_tanh": 2}  # vditc_activation
NORMS = {"none": 0, "layer": 1, "rms": 2}  # vditc_norm
ANY_TACTIC = 0
MAX_TACTIC = 64  # numbers are less


def _int32(*names: str) -> list[tuple[str, type]]:
    return [(name, c_int32) for name in names]


def _pointers(*names: str) -> list[tuple[str, type]]:
    return [(name, c_void_p) for name in names]


class QLinearProblem(ctypes.Structure):
    """`vditc_qlinear_problem`."""

    _fields_ = [
        ("struct_bytes", c_uint32),
        *_int32("n", "k"),
        ("m", c_int64),
        *_int32(
            "bits", "unsigned_weights", "activation_bits", "packed", "layout", "group", "rank", "low_rank", "bias", "activation", "gated"
        ),
        *_int32("output", "scale_per_row"),
        ("gate_rows", Rows),
        ("residual_rows", Rows),
    ]


class QLinearTensors(ctypes.Structure):
    """`vditc_qlinear_tensors`."""

    _fields_ = _pointers("x", "scale", "weight", "weight_scale", "left", "right", "down", "up", "bias", "gate", "residual", "y")


class QuantizeTokenProblem(ctypes.Structure):
    """`vditc_quantize_token_problem`."""

    _fields_ = [
        ("struct_bytes", c_uint32),
        ("k", c_int32),
        ("m", c_int64),
        *_int32("input", "bits", "packed", "given", "clip", "gated", "activation", "norm"),
        ("epsilon", c_float),
        *_int32("weight", "bias", "gain", "shift", "center", "balance", "rotation", "total", "shares"),
        *[(name, Rows) for name in ("gain_rows", "shift_rows", "gate_rows", "residual_rows")],
    ]


class QuantizeTokenTensors(ctypes.Structure):
    """`vditc_quantize_token_tensors`."""

    _fields_ = [
        *_pointers("x", "gate", "residual", "weight", "bias", "gain", "shift", "center", "balance", "clip", "given", "alpha"),
        *_pointers("codes", "scale", "total"),
        ("share", c_void_p * 4),
        ("sum", c_void_p),
    ]


class QAttentionProblem(ctypes.Structure):
    """`vditc_qattention_problem`."""

    _fields_ = [
        ("struct_bytes", c_uint32),
        *_int32("batch", "heads", "head_dim"),
        ("queries", c_int64),
        ("keys", c_int64),
        *_int32("type", "smooth_k", "mask"),
        ("scale", c_float),
        *[(f"{name}_strides", c_int64 * 3) for name in "qkvy"],
        ("mask_stride", c_int64),
    ]


class QAttentionTensors(ctypes.Structure):
    """`vditc_qattention_tensors`."""

    _fields_ = _pointers("q", "k", "v", "mask", "y")


class QAttentionKeys(ctypes.Structure):
    """`vditc_qattention_keys`."""

    _fields_ = [("codes", c_size_t), ("scale", c_size_t), ("width", c_int64), ("row", c_int64)]


def filled(structure: type[ctypes.Structure], values: Mapping[str, Any]) -> Any:
    """A struct of these values, the others 0; rows are pairs (inner, count), strides three numbers. ValueError for an unknown field."""
    made = structure()
    if hasattr(structure, "struct_bytes"):
        made.struct_bytes = ctypes.sizeof(structure)
    kinds: dict[str, Any] = {field[0]: field[1] for field in structure._fields_}
    for name, value in values.items():
        if name not in kinds:
            raise ValueError(f"{structure.__name__} has no field {name}")
        setattr(made, name, kinds[name](*value) if isinstance(value, list | tuple) else value)
    return made


def tactics(library: Library) -> dict[int, str]:
    """Number -> name of every way to compute QLinear that there is."""
    name = library.native.vditc_qlinear_tactic_name
    name.restype = ctypes.c_char_p
    found = {i: name(c_int32(i)) for i in range(1, MAX_TACTIC)}
    return {i: said.decode() for i, said in found.items() if said is not None}


def listed_tactics(library: Library, problem: Any, sm: int) -> list[int]:
    """Tactics for a QLinear problem on GPUs of this compute capability, the best guess first."""
    ids, count = (c_int32 * MAX_TACTIC)(), c_int32()
    library.call("vditc_qlinear_tactics", ctypes.byref(problem), c_int32(sm), ids, c_int32(MAX_TACTIC), ctypes.byref(count))
    return list(ids[: count.value])


def workspace(library: Library, problem: Any, tactic: int, sm: int) -> int:
    """Bytes that a tactic of QLinear needs."""
    found = c_size_t()
    library.call("vditc_qlinear_workspace", ctypes.byref(problem), c_int32(tactic), c_int32(sm), ctypes.byref(found))
    return found.value
