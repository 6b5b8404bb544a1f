"""Random graphs of one linear layer behind a modulated norm or an attention, its balance and shift explicit, as the families write them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime

WIDTH, HEADS, TOKENS, STEPS = 8, 2, 5, 3
HEAD = WIDTH // HEADS
Arrays = dict[str, npt.NDArray[Any]]


@dataclasses.dataclass
class Builder:
    """Appends nodes; named as the exporter names them."""

    rng: np.random.Generator
    graph: ir.Graph = dataclasses.field(
        default_factory=lambda: ir.Graph(inputs=[], outputs=[], nodes=[], opset_imports={"": 21}, name="modulated")
    )
    feeds: Arrays = dataclasses.field(default_factory=dict)

    def input(self, name: str, *dims: str | int, dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
        """A graph input with random values of a size for every named axis."""
        found = next((v for v in self.graph.inputs if v.name == name), None)
        if found is None:
            found = ir.val(name, dtype=dtype, shape=ir.Shape(dims))
            self.graph.inputs.append(found)
            sizes = [{"batch": 2, "frames": 3, "text_tokens": TOKENS}.get(str(d), d) for d in dims]
            whole = dtype is ir.DataType.INT64
            self.feeds[name] = np.array([1]) if whole else self.rng.standard_normal([int(n) for n in sizes]).astype(np.float32)
        return found

    def constant(self, array: Any, name: str = "", dtype: ir.DataType | None = None) -> ir.Value:
        """An initialiser."""
        name = name or f"constant.{len(self.graph.initializers)}"
        made = ir.val(name, const_value=ir.tensor(np.asarray(array), dtype=dtype, name=name))
        self.graph.initializers.add(made)
        return made

    def vector(self, *shape: int) -> ir.Value:
        """A random float32 initialiser."""
        return self.constant(self.rng.standard_normal(shape or (WIDTH,)).astype(np.float32))

    def ints(self, *values: int) -> ir.Value:
        """Axes or a shape."""
        return self.constant(np.array(values, np.int64))

    def op(self, kind: str, *inputs: ir.Value, name: str = "", **attributes: Any) -> ir.Value:
        """A node and its output."""
        return self._node(kind, inputs, name, 1, attributes)[0]

    def split(self, x: ir.Value, axis: int, parts: int) -> Sequence[ir.Value]:
        """Equal parts."""
        return self._node("Split", (x,), "", parts, {"axis": axis, "num_outputs": parts})

    def _node(self, kind: str, inputs: Sequence[ir.Value], name: str, outputs: int, attributes: dict[str, Any]) -> Sequence[ir.Value]:
        name = name or f"{kind}_{len(self.graph)}"
        node = ir.node(kind, inputs, attributes, name=name, num_outputs=outputs)
        for i, value in enumerate(node.outputs):
            value.name = f"{name}:{i}" if outputs > 1 else name
        self.graph.append(node)
        return node.outputs

    def quantized_weight(self, k: int = WIDTH, n: int = WIDTH, blocks: int | None = None) -> ir.Value:
        """INT8 codes [K, N] and their scales."""
        codes = self.constant(self.rng.integers(-127, 128, (k, n)).astype(np.int8))
        scale = (self.rng.random((k // blocks, n) if blocks else (n,)) * 0.01 + 0.001).astype(np.float32)
        attributes: dict[str, Any] = {"axis": 0, "block_size": blocks} if blocks else {"axis": 1}
        return self.op("DequantizeLinear", codes, self.constant(scale), **attributes)

    def model(self, output: ir.Value, *dims: str | int) -> ir.Model:
        """The whole, with one output."""
        output.dtype, output.shape = ir.DataType.FLOAT, ir.Shape(dims)
        self.graph.outputs.append(output)
        return ir.Model(self.graph, ir_version=10)


def layer_norm(b: Builder, x: ir.Value, affine: bool) -> ir.Value:
    """With a random weight and bias, or with a weight of 1."""
    if affine:
        return b.op("LayerNormalization", x, b.vector(), b.vector(), axis=-1)
    return b.op("LayerNormalization", x, b.constant(np.ones(WIDTH, np.float32)), axis=-1)


def rms_norm(b: Builder, x: ir.Value) -> ir.Value:
    """x / sqrt(mean(x^2) + eps)."""
    square = b.op("Pow", x, b.constant(np.float32(2)))
    mean = b.op("ReduceMean", square, b.ints(-1), keepdims=1)
    root = b.op("Sqrt", b.op("Add", mean, b.constant(np.float32(1e-6))))
    return b.op("Mul", x, b.op("Reciprocal", root))


def wan(b: Builder) -> tuple[ir.Value, ir.Value]:
    """(scale, shift) [batch, 1, C] of a table plus an embedding of the time that all blocks share."""
    embedding = b.input("timestep", "batch", 6, WIDTH)
    parts = b.split(b.op("Add", b.vector(1, 6, WIDTH), embedding), 1, 6)
    b.op("Mul", embedding, parts[2])  # another block
    return b.op("Add", parts[1], b.constant(np.float32(1))), parts[0]


def cogvideox(b: Builder) -> tuple[ir.Value, ir.Value]:
    """A linear layer of its own, cut, with slices that take everything."""
    embedding = b.input("sigma", "batch", 4)
    product = b.op("Add", b.op("MatMul", embedding, b.vector(4, 2 * WIDTH)), b.vector(2 * WIDTH))
    shift, scale = b.split(product, 1, 2)
    scale = b.op("Add", scale, b.constant(np.float32(1)))
    whole = (b.ints(0), b.ints(np.iinfo(np.int64).max), b.ints(0), b.ints(1))
    wide_scale, wide_shift = (b.op("Unsqueeze", b.op("Slice", v, *whole), b.ints(1)) for v in (scale, shift))
    return wide_scale, wide_shift


def table(b: Builder) -> tuple[ir.Value, ir.Value]:
    """Precomputed for every step."""
    step = b.input("step", 1, dtype=ir.DataType.INT64)
    row = b.op("Gather", b.vector(STEPS, 6, WIDTH), step, axis=0)
    parts = b.split(row, 1, 6)
    return parts[1], parts[0]


def schedule(b: Builder) -> tuple[ir.Value, ir.Value]:
    """A row for every step, repeated for the clips."""
    row = b.op("Gather", b.vector(STEPS, 2 * WIDTH), b.input("step", 1, dtype=ir.DataType.INT64), axis=0)
    clips = b.op("Shape", b.input("hidden_states", "batch", "text_tokens", WIDTH), start=0, end=1)
    rows = b.op("Expand", row, b.op("Concat", clips, b.ints(1), axis=0))
    shift, scale = (b.op("Unsqueeze", v, b.ints(1)) for v in b.split(rows, 1, 2))
    return b.op("Add", scale, b.constant(np.float32(1))), shift


def constants(b: Builder) -> tuple[ir.Value, ir.Value]:
    """The same at all times."""
    return b.vector(), b.vector()


def constant_table(b: Builder) -> tuple[ir.Value, ir.Value]:
    """Rows of one constant."""
    scale, shift = b.split(b.vector(1, 2, WIDTH), 1, 2)
    return scale, shift


MODULATIONS: dict[str, Callable[[Builder], tuple[ir.Value, ir.Value]]] = {
    f.__name__: f for f in (wan, cogvideox, table, schedule, constants, constant_table)
}


def modulated(b: Builder, x: ir.Value, norm: str, modulation: str) -> ir.Value:
    """norm(x) * scale + shift."""
    x = rms_norm(b, x) if norm == "rms" else layer_norm(b, x, norm == "affine")
    if modulation == "none":
        return x
    scale, shift = MODULATIONS[modulation](b)
    left, right = (x, scale) if b.rng.random() < 0.5 else (scale, x)
    return b.op("Add", b.op("Mul", left, right), shift)


def attention(b: Builder, x: ir.Value, *, low_rank: bool, zero_point: bool = True) -> ir.Value:
    """Softmax times v, heads taken apart and put together; v with all that an exporter adds to it."""
    total = b.op("ReduceSum", x, b.ints(-1), keepdims=1)
    v = b.op("MatMul", x, b.quantized_weight(blocks=4 if b.rng.random() < 0.5 else None))
    v = b.op("Mul", v, b.op("Gather", b.vector(STEPS), b.input("step", 1, dtype=ir.DataType.INT64), axis=0))
    v = b.op("Add", b.op("Add", v, b.vector()), b.vector())
    if zero_point:
        v = b.op("Add", v, b.op("Mul", total, b.vector()))
    if low_rank:
        down, up = (b.rng.standard_normal(s).astype(np.float16) for s in ((WIDTH, 2), (2, WIDTH)))
        small = b.op("MatMul", x, b.op("Cast", b.constant(down, "v.low_rank.down"), to=1))
        v = b.op("Add", v, b.op("MatMul", small, b.op("Cast", b.constant(up, "v.low_rank.up"), to=1)))
    split = b.op("Reshape", v, b.ints(0, 0, HEADS, HEAD))
    scores = b.input("scores", "batch", HEADS, "text_tokens", "text_tokens")
    if b.rng.random() < 0.5:
        scores = b.op("Softmax", scores, axis=-1)
        joined = b.op("Transpose", b.op("MatMul", scores, b.op("Transpose", split, perm=[0, 2, 1, 3])), perm=[0, 2, 1, 3])
    else:  # heads first, by permutations that are not their own inverses
        scores = b.op("Softmax", b.op("Transpose", scores, perm=[1, 0, 2, 3]), axis=-1)
        joined = b.op("Transpose", b.op("MatMul", scores, b.op("Transpose", split, perm=[2, 0, 1, 3])), perm=[1, 2, 0, 3])
    return b.op("Reshape", joined, b.ints(0, 0, WIDTH))


def explicit(b: Builder, x: ir.Value, shift: bool, readers: int = 1) -> ir.Value:
    """Linear layers with INT8 weights of (x - z) * m."""
    width = 2 * WIDTH if x.name == "both" else WIDTH
    z = b.constant(b.rng.standard_normal(width).astype(np.float32), "linear.shift")
    m = b.constant((np.exp(b.rng.standard_normal(width)) * b.rng.choice([-1, 1], width)).astype(np.float32), "linear.balance")
    out: ir.Value | None = None
    for i in range(readers):
        suffix = f"_{i + 1}" if i else ""
        own = b.op("Sub", x, z, name=f"linear/Sub_shift{suffix}") if shift else x
        own = b.op("MatMul", b.op("Mul", own, m, name=f"linear/Mul_balance{suffix}"), b.quantized_weight(width))
        out = own if out is None else b.op("Add", out, own)
    assert out is not None
    return out


def run(model: ir.Model, feeds: Arrays) -> npt.NDArray[Any]:
    """The output at ORT_ENABLE_BASIC."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: npt.NDArray[Any] = session.run(None, {i.name: feeds[i.name] for i in session.get_inputs()})[0]
    return found
