"""Give every value the one type that it is computed in.

    %xf = Cast<to=1>(%w16)                                       %h = Cast<to=10>(%x)
    %y  = MatMul(%x, %xf)            with x float32      ->      %y = MatMul(%h, %w16)
    ... => (float y)                                             %o = Cast<to=1>(%y)    ... => (float o)

What stays in float32, and why:
1. the arithmetic of quantization, the MatMul of codes, its scale and bias: int8 products exceed float16 (research: half of
   the accumulators at K = 8960), and codes must be those of the reference;
2. 1 / sqrt(mean(x^2) + eps) of an RMSNorm: x^2 exceeds float16 from |x| = 256;
3. what depends on time, shapes and constants only (timestep embedding, modulation, rotary tables), until it meets data:
   small, and a rounded timestep is another timestep;
4. the argument of a sine or cosine, whatever it is of: float16 has steps of 4 at 6000, where HunyuanVideo embeds its guidance;
5. a node with a constant that the compute type cannot hold (a refusal).

Attention is never split: QK^T, softmax and PV are all of the compute type, or TensorRT has no fused kernel for it.
Graph inputs and outputs stay float32.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import ml_dtypes
import numpy as np
import onnx_ir as ir

from vditc.errors import InputError
from vditc.graph_passes.core import Pass, Refusal, Result
from vditc.graph_passes.edits import cast_behind
from vditc.graph_passes.element_types import element_types
from vditc.graph_passes.patterns import (
    angles,
    gathered_row,
    independent_of_data,
    producer,
    quantization_arithmetic,
    rms_norms,
    small_constant,
    weight_like,
)
from vditc.graph_passes.spec import COMPUTE_TYPES, Spec

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
NUMPY = {ir.DataType.FLOAT16: np.dtype(np.float16), ir.DataType.BFLOAT16: np.dtype(ml_dtypes.bfloat16)}
# Their output's type does not follow their input's.
_OWN_TYPE = ("Cast", "Shape", "Size", "Constant", "ConstantOfShape")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertComputeType(Pass):
    """Canonical float32 graph -> strongly typed graph that computes in `to` (fp16, bf16; fp32 leaves it as it is)."""

    name: ClassVar[str] = "convert-compute-type"
    needs: ClassVar[frozenset[str]] = frozenset({"canonical", "constants-folded"})
    gives: ClassVar[frozenset[str]] = frozenset({"lowered"})
    ends: ClassVar[frozenset[str]] = frozenset({"canonical"})

    to: str = "fp16"

    def __post_init__(self) -> None:
        if self.to not in COMPUTE_TYPES:
            raise InputError(
                found=f"to={self.to}", wanted=f"one of {', '.join(COMPUTE_TYPES)}", where=f"pass {self.name}", fix="correct the option"
            )

    def spec_after(self, spec: Spec) -> Spec:
        """The lowered dialect of the new type."""
        return dataclasses.replace(Spec.lowered(self.to), opsets=spec.opsets)

    def numerics(self) -> str:
        """float32 is what the graph computes in already."""
        return "exact" if self.to == "fp32" else self.to

    def call(self, model: ir.Model) -> Result:
        """See the module's docstring."""
        if COMPUTE_TYPES[self.to] is ir.DataType.FLOAT:
            return Result(model, modified=False)
        work = _Conversion(model.graph, COMPUTE_TYPES[self.to])
        work.run()
        return Result(model, modified=True, refusals=tuple(work.refusals))


class _Conversion:
    """One run over one graph."""

    def __init__(self, graph: ir.Graph, compute: ir.DataType) -> None:
        self.graph, self.compute = graph, compute
        self.types = element_types(graph).of
        self.copies: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self.refusals: list[Refusal] = []
        self.quantization = quantization_arithmetic(graph)
        self.wide = self.quantization | independent_of_data(graph) | angles(graph)
        for nodes in rms_norms(graph):
            self.wide |= set(nodes)

    def run(self) -> None:
        """Decide and convert node by node, inputs first, then the graph's outputs."""
        for node in list(self.graph):
            if node.op_type == "DequantizeLinear":
                if node not in self.quantization and weight_like(node.inputs[0]):
                    self.convert_scale(node)
            elif node.op_type not in _OWN_TYPE:
                self.convert(node)
        for i, value in enumerate(self.graph.outputs):
            if self.types.get(value) in NUMPY:
                self.graph.outputs[i] = self.widen_output(value)

    def convert(self, node: ir.Node) -> None:
        """Make `node` read and compute one type."""
        if gathered_row(node) is not None and node.inputs[0] is not None and self.types.get(node.inputs[0]) in NUMPY:
            return  # a table that is stored in few bits: its row is cast, not the whole of it
        floats = [(i, v) for i, v in enumerate(node.inputs) if v is not None and self.types.get(v) in FLOATS]
        if not floats:
            return
        wanted = ir.DataType.FLOAT if node in self.wide else self.compute
        lost = [v for _, v in floats if wanted is self.compute and not _holds(v, wanted)]
        if lost:
            self.refusals.append(Refusal(_name(node), f"constant {lost[0].name} does not fit {self.compute.name}: stays in float32"))
            wanted = ir.DataType.FLOAT
        for i, value in floats:
            node.replace_input_with(i, self.typed(value, wanted))
        for output in node.outputs:
            if self.types.get(output) in FLOATS:
                self.types[output] = wanted

    def convert_scale(self, node: ir.Node) -> None:
        """A weight that is only stored in few bits is dequantized straight into the compute type: no Cast before its MatMul."""
        scale = node.inputs[1]
        if scale is None or self.types[scale] is self.compute:
            return
        array = None if scale.const_value is None else scale.const_value.numpy()
        if array is None or not _fits(array, self.compute):
            self.refusals.append(Refusal(_name(node), f"scale {scale.name} does not fit {self.compute.name}: dequantized in its own type"))
            return
        node.replace_input_with(1, self.constant(scale, array, self.compute))
        self.types[node.outputs[0]] = self.compute

    def typed(self, value: ir.Value, wanted: ir.DataType) -> ir.Value:
        """`value` in another type, made once; a value that was widened before is taken as it was."""
        if self.types[value] is wanted:
            return value
        if (cast := producer(value, "Cast")) is not None and (source := cast.inputs[0]) is not None and self.types.get(source) is wanted:
            return source
        key = (value, wanted)
        if key not in self.copies:
            small = small_constant(value)
            self.copies[key] = self.cast(value, wanted) if small is None else self.constant(value, small, wanted)
        return self.copies[key]

    def constant(self, value: ir.Value, array: np.ndarray[tuple[int, ...], np.dtype[np.generic]], wanted: ir.DataType) -> ir.Value:
        """A new initialiser of type `wanted`."""
        converted = array.astype(NUMPY.get(wanted, np.dtype(np.float32)))
        name = f"{value.name}.{wanted.name.lower()}"
        made = ir.val(name, const_value=ir.tensor(converted, dtype=wanted, name=name))
        self.graph.initializers.add(made)
        self.types[made] = wanted
        return made

    def cast(self, value: ir.Value, wanted: ir.DataType) -> ir.Value:
        """A Cast right behind the node that computes `value`."""
        source = producer(value, "Cast")
        if source is not None and self.types.get(source.inputs[0] or value) in FLOATS and weight_like(value):
            value = source.inputs[0] or value  # from the stored type in one step
        made = cast_behind(self.graph, value, wanted)
        self.types[made] = wanted
        return made

    def widen_output(self, value: ir.Value) -> ir.Value:
        """float32 at the border, under the output's own name."""
        name, shape = value.name, value.shape
        value.name = f"{name}.{self.compute.name.lower()}"
        value.type = ir.TensorType(self.compute)
        node = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT)}, name=f"{name}/float")
        self.graph.append(node)
        made = node.outputs[0]
        made.name, made.shape, made.type = name, shape, ir.TensorType(ir.DataType.FLOAT)
        return made


def _holds(value: ir.Value, wanted: ir.DataType) -> bool:
    """Whether a small constant survives the conversion; anything else is taken to.

    A lone epsilon must not vanish. Among greater numbers (biases, gains) one may: the rounding of the greatest is as large.
    """
    array = small_constant(value)
    if array is None or value.dtype is not ir.DataType.FLOAT or not array.size:
        return True
    size = np.abs(array)
    return _fits(np.asarray([size.max(), size.max(where=np.isfinite(size), initial=0)]), wanted)


def _fits(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]], wanted: ir.DataType) -> bool:
    """No finite element overflows, none but 0 falls below the smallest normal number."""
    info = ml_dtypes.finfo(NUMPY[wanted])
    size = np.abs(array.astype(np.float64))
    return bool(((size <= float(info.max)) | np.isinf(size)).all() and ((size >= float(info.smallest_normal)) | (size == 0)).all())


def _name(node: ir.Node) -> str:
    return node.name or node.op_type
