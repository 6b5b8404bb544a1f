"""NVFP4 (vditc.float_codes) in operators of opset 21, which has no FLOAT4E2M1: packed four-bit codes and a table of their 16 values.

K in, N out, blocks of 16 along K. Every node of a form has `_nvfp4` in its name, so that a pass can find it and put a target's own
FP4 operators in its place.

    weight      L.weight uint4[K, N], two a byte; L.weight_scale float8e4m3fn[K/16, N]; L.weight_tensor_scale float32[]
        v = Gather(values float32[16], Cast(L.weight))             bit 3 of a code is the sign, the others count 0 .5 1 1.5 2 3 4 6
        b = Unsqueeze(DequantizeLinear(L.weight_scale, L.weight_tensor_scale), 1)
        W = Reshape(Reshape(v, [-1, 16, N]) * b, [K, N])

    activation  t = L.activation_scale, of the whole tensor, static; the scales of blocks are computed
        y = Reshape(x, [-1, K/16, 16])
        q = QuantizeLinear(ReduceMax(|y|) / 6, t) as float8e4m3fn; b = Max(DequantizeLinear(q, t), t * 2^-9)
        r = Clip(y / b, -6, 6); g = Where(|r| < 2, 0.5, Where(|r| < 4, 1, 2))
        x' = Reshape(Round(r / g) * g * b, Shape(x));  MatMul(x', W)

g is the gap between codes at |r|, a power of two, so Round (ties to even) gives E2M1's nearest code exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from vditc.export.weights import StreamedTensor, add_initializer, stored_type
from vditc.float_codes import BLOCK, E2M1, LEAST_BLOCK_SCALE
from vditc.numerics import QType

MARK = "nvfp4"
VALUES = np.arange(16, dtype=np.uint8).view(E2M1).astype(np.float32)


class Emitter(Protocol):
    """What adds nodes and constants to a graph in front of the MatMul that is rewritten."""

    graph: ir.Graph

    def op(self, kind: str, *inputs: ir.Value, scope: str = "", suffix: str = "", **attributes: Any) -> ir.Value:
        """A node and its output."""

    def constant(self, name: str, array: Any) -> ir.Value:
        """An initialiser, shared by name."""


def nvfp4_weight(to: Emitter, name: str, shape: tuple[int, int], arrays: Callable[[], tuple[npt.NDArray[Any], ...]]) -> ir.Value:
    """float32 [K, N] of the weight `name` [N, K]. `arrays`: packed codes, block scales and tensor scale, of the transposed weight."""
    n, k = shape

    def initializer(suffix: str, dtype: ir.DataType, dims: tuple[int, ...], index: int) -> ir.Value:
        return add_initializer(to.graph, StreamedTensor(f"{name}{suffix}", dtype, dims, arrays, index))

    codes = initializer("", stored_type(QType.FP4_E2M1), (k, n), 0)
    level = initializer("_scale", ir.DataType.FLOAT8E4M3FN, (k // BLOCK, n), 1)
    whole = initializer("_tensor_scale", ir.DataType.FLOAT, (), 2)
    index = to.op("Cast", codes, scope=name, suffix=MARK, to=ir.DataType.INT32)
    values = to.op("Gather", to.constant(f"{MARK}.values", VALUES), index, scope=name, suffix=MARK)
    blocks = to.op("Reshape", values, to.constant(f"{MARK}.blocks.{n}", np.array([-1, BLOCK, n])), scope=name, suffix=f"{MARK}_blocks")
    scale = to.op("DequantizeLinear", level, whole, scope=name, suffix=MARK)
    scale = to.op("Unsqueeze", scale, to.constant("axis.1", np.array([1])), scope=name, suffix=MARK)
    scaled = to.op("Mul", blocks, scale, scope=name, suffix=MARK)
    return to.op("Reshape", scaled, to.constant(f"{MARK}.weight.{k}.{n}", np.array([k, n])), scope=name, suffix=MARK)


def nvfp4_activation(to: Emitter, x: ir.Value, width: int, whole: ir.Value) -> ir.Value:
    """x [..., K] through codes and back, float32; `whole`: the static scale of the tensor, float32 []."""

    def op(kind: str, *inputs: ir.Value, suffix: str = "", **attributes: Any) -> ir.Value:
        return to.op(kind, *inputs, suffix=f"{MARK}{suffix}", **attributes)

    def number(value: float) -> ir.Value:
        return to.constant(f"{MARK}.{value:g}", np.float32(value))

    high = QType.FP4_E2M1.high
    y = op("Reshape", x, to.constant(f"{MARK}.blocks_of.{width}", np.array([-1, width // BLOCK, BLOCK])), suffix="_blocks")
    top = op("ReduceMax", op("Abs", y), to.constant("axis.last", np.array([-1])), keepdims=1)
    level = op("QuantizeLinear", op("Div", top, number(high), suffix="_share"), whole, output_dtype=ir.DataType.FLOAT8E4M3FN)
    scale = op("Max", op("DequantizeLinear", level, whole), op("Mul", whole, number(float(LEAST_BLOCK_SCALE)), suffix="_least"))
    ratio = op("Clip", op("Div", y, scale), number(-high), number(high))
    size = op("Abs", ratio, suffix="_ratio")
    upper = op("Where", op("Less", size, number(4), suffix="_4"), number(1), number(2), suffix="_upper")
    gap = op("Where", op("Less", size, number(2), suffix="_2"), number(0.5), upper)
    code = op("Mul", op("Round", op("Div", ratio, gap, suffix="_steps")), gap, suffix="_code")
    return op("Reshape", op("Mul", code, scale), op("Shape", x))
