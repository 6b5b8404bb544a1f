"""The graph dialect, executable: what a canonical and a lowered graph may hold, one small function a rule.

A rule yields a `Violation` for every node that breaks it; its docstring is the reason. `Spec.verify` raises for the first.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Iterator

import onnx
import onnx_ir as ir

from vditc.errors import DialectError
from vditc.graph_passes.attentions import DecomposedAttention, decomposed_attentions
from vditc.graph_passes.element_types import ElementTypes, element_types
from vditc.graph_passes.epilogue import Epilogue
from vditc.graph_passes.patterns import (
    HEAVY,
    QuantizedMatMul,
    blocked,
    gathered_row,
    independent_of_data,
    quantized_matmuls,
    quantizer,
    small_constant,
    weight_like,
)
from vditc.plugins.catalogue import operator_of, plugin_nodes
from vditc.plugins.plugin_op import DOMAIN

OPSET = 21  # the newest that TensorRT 10.3 reads, the first with INT4 and blocked scales; canonical graphs have it
IR_VERSIONS = {OPSET: 10, 23: 11}  # opset -> version of the format that came with it; lowered graphs may have the later one
AXES = ("batch", "frames", "height", "width", "text_tokens")  # of every family; a graph's metadata names the axes that it adds
COMPUTE_TYPES = {"fp32": ir.DataType.FLOAT, "fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
_CODES = (ir.DataType.INT8, ir.DataType.INT4, ir.DataType.FLOAT8E4M3FN)


@dataclasses.dataclass(frozen=True)
class Violation:
    """A place where a graph breaks a rule."""

    node: str
    found: str
    wanted: str


@dataclasses.dataclass(frozen=True)
class Checked:
    """A model with what several rules need to know."""

    model: ir.Model
    types: ElementTypes
    compute: ir.DataType
    opsets: tuple[int, ...] = (OPSET,)  # that the dialect has
    attention: ir.DataType | None = None  # that attention may be computed in, if not in `compute`

    @property
    def graph(self) -> ir.Graph:
        """The main graph."""
        return self.model.graph

    @functools.cached_property
    def by_operator(self) -> dict[str, list[ir.Node]]:
        """The nodes of each operator, in graph order: most rules speak of few of them."""
        found: dict[str, list[ir.Node]] = {}
        for node in self.graph:
            found.setdefault(node.op_type, []).append(node)
        return found

    @functools.cached_property
    def quantized(self) -> list[QuantizedMatMul]:
        """Products of quantized activations."""
        return list(quantized_matmuls(self.graph))

    def dtype(self, value: ir.Value | None) -> ir.DataType | None:
        """Element type, None where it is not known."""
        return None if value is None else self.types.of.get(value)

    def type_of(self, value: ir.Value | None) -> str:
        """Readable element type."""
        found = self.dtype(value)
        return "an unknown type" if found is None else found.name.lower()


Rule = Callable[[Checked], Iterator[Violation]]


def standard_opset(c: Checked) -> Iterator[Violation]:
    """The newest opset that every supported TensorRT reads, or a later one where each of a target's versions reads that."""
    opset = c.graph.opset_imports.get("")
    if opset not in c.opsets or c.model.ir_version != IR_VERSIONS[opset]:
        wanted = " or ".join(f"opset {known}, IR version {IR_VERSIONS[known]}" for known in c.opsets)
        yield Violation("model", f"opset {opset}, IR version {c.model.ir_version}", wanted)


def standard_domain(c: Checked) -> Iterator[Violation]:
    """Any runtime must read the file; custom operators have nobody to run them."""
    if c.model.functions:
        yield Violation("model", f"{len(c.model.functions)} local functions", "none")
    yield from _unknown(c, "")


def plugin_operators(c: Checked) -> Iterator[Violation]:
    """Operators are standard or the plugin library's, which a runtime creates from a node's attributes and input types."""
    nodes = plugin_nodes(c.model)
    wanted = {node.op_identifier() for node in nodes}
    # All or none: a TensorRT that would take the bodies before the plugins is given none.
    for odd in sorted(wanted ^ c.model.functions.keys()) if c.model.functions else ():
        found = f"{'no ' if odd in wanted else ''}function {'.'.join(odd)}"
        yield Violation("model", found, "the bodies of the plugin operators, all or none")
    for node in nodes:
        try:
            operator_of(node).types([c.dtype(v) for v in node.inputs])
        except ValueError as error:
            yield Violation(_name(node), str(error), "what the plugin library has (vditc.plugins)")
    yield from _unknown(c, "", DOMAIN)


def _unknown(c: Checked, *domains: str) -> Iterator[Violation]:
    opset = c.graph.opset_imports.get("", OPSET)
    wanted = f"operators of {' or '.join(d or 'the standard domain' for d in domains)}"
    for node in c.graph:
        if node.domain not in domains:
            yield Violation(_name(node), f"operator {node.domain}.{node.op_type}", wanted)
        elif not node.domain and not _standard(node.op_type, opset):
            yield Violation(_name(node), f"operator {node.op_type}", f"operators of opset {opset}")


@functools.cache
def _standard(op_type: str, opset: int) -> bool:
    """Whether the opset has this operator."""
    try:
        onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return False
    return True


def no_scatter(c: Checked) -> Iterator[Violation]:
    """Rotary embeddings written as in-place slices cost four ScatterND a block; Concat or Reshape say the same."""
    for node in c.graph:
        if node.op_type in ("ScatterND", "ScatterElements"):
            yield Violation(_name(node), node.op_type, "Concat, Slice or Reshape")


def no_double(c: Checked) -> Iterator[Violation]:
    """TensorRT refuses float64."""
    for value, found in c.types.of.items():
        if found is ir.DataType.DOUBLE:
            yield Violation(_name(value.producer()) if value.producer() else str(value.name), f"{value.name} is double", "float")


def one_type_per_node(c: Checked) -> Iterator[Violation]:
    """Strong typing: no runtime inserts a cast."""
    for mix in c.types.mixed:
        left, right = (t.name.lower() for t in mix.types)
        yield Violation(_name(mix.node), f"{mix.node.op_type} of {left} and {right}", "one type, by an explicit Cast")


def symmetric_codes(c: Checked) -> Iterator[Violation]:
    """TensorRT reads no zero point other than 0."""
    for node in _of(c, "QuantizeLinear", "DequantizeLinear"):
        zero = node.inputs[2] if len(node.inputs) > 2 else None
        if zero is not None and ((array := small_constant(zero)) is None or array.any()):
            yield Violation(_name(node), f"zero point {zero.name}", "no zero point, or a constant 0")


def float32_scales(c: Checked) -> Iterator[Violation]:
    """With float16 scales the product of codes is written as float16: half of the sums overflow at K = 8960."""
    for node in _of(c, "QuantizeLinear"):
        for value in node.inputs[:2]:
            if c.dtype(value) is not ir.DataType.FLOAT:
                yield Violation(_name(node), f"QuantizeLinear reads {c.type_of(value)}", "float")
    for q in c.quantized:
        for dequantize in (q.activation, q.weight):
            if c.dtype(dequantize.outputs[0]) is not ir.DataType.FLOAT:
                scale = dequantize.inputs[1]
                yield Violation(_name(dequantize), f"scale of {c.type_of(scale)} under the MatMul {_name(q.matmul)}", "a float scale")


def constant_weights(c: Checked) -> Iterator[Violation]:
    """Codes are stored or come straight from QuantizeLinear, or the plugin library: TensorRT fuses nothing else."""
    for node in _of(c, "DequantizeLinear"):
        codes = node.inputs[0]
        if quantizer(codes) is None and (codes is None or codes.const_value is None):
            yield Violation(_name(node), "codes computed by the graph", "an initialiser or the output of QuantizeLinear or QuantizeToken")
        elif c.dtype(codes) not in _CODES:
            yield Violation(_name(node), f"codes of {c.type_of(codes)}", "int8, int4 or float8e4m3fn")
        if node.inputs[1] is None or node.inputs[1].const_value is None:
            yield Violation(_name(node), "a scale computed by the graph", "a constant scale; divide before and multiply after instead")


def no_blocks_under_quantized_activations(c: Checked) -> Iterator[Violation]:
    """TensorRT applies only the first block's scales to a product of quantized activations and blocked weights: wrong values."""
    for q in c.quantized:
        if blocked(q.weight):
            size = q.weight.attributes["block_size"].as_int()
            yield Violation(_name(q.matmul), f"quantized activation times weight with block_size {size}", "a scale per output channel")


def quantize_by_division(c: Checked) -> Iterator[Violation]:
    """A run-time scale must divide before QuantizeLinear(., 1) and multiply after the MatMul, with the very same value."""
    for node in _of(c, "QuantizeLinear"):
        scale = node.inputs[1]
        if scale is None or scale.const_value is None or scale.const_value.size != 1 or "axis" in node.attributes:
            yield Violation(_name(node), "QuantizeLinear with a scale that is no constant scalar", "Div(x, s), then QuantizeLinear(., 1)")
    for q in c.quantized:
        if q.run_time_scale is not None and q.rescale is None:
            yield Violation(_name(q.matmul), f"no Mul by {_value(q.run_time_scale)} after the MatMul", "the scale that divided before")


def step_gathers_tables(c: Checked) -> Iterator[Violation]:
    """Per-step quantities are data: one int64 input selects rows, and nothing else depends on it."""
    for step in (v for v in c.graph.inputs if v.name == "step"):
        if step.dtype is not ir.DataType.INT64 or step.shape is None or step.shape.dims != (1,):
            yield Violation("input step", f"{step.dtype} {step.shape}", "int64[1]")
        for use in step.uses():
            table = use.node.inputs[0]
            if use.node.op_type != "Gather" or use.idx != 1 or table is None or not weight_like(table):
                yield Violation(_name(use.node), f"{use.node.op_type} of step", "Gather of a constant table by step")


def named_axes(c: Checked) -> Iterator[Violation]:
    """Profiles name axes; an axis without a known name has no range."""
    known = {**dict.fromkeys(AXES), **json.loads(c.model.metadata_props.get("vditc", "{}")).get("axes", {})}
    for value in (*c.graph.inputs, *c.graph.outputs):
        for dim in value.shape.dims if value.shape is not None else ("without shape",):
            if isinstance(dim, int):
                continue
            names = re.findall(r"[A-Za-z_]\w*", str(dim.value if isinstance(dim, ir.SymbolicDim) else dim))
            if not names or any(n not in known for n in names):
                yield Violation(str(value.name), f"axis {dim}", f"axes named {', '.join(known)}")


def float32_border(c: Checked) -> Iterator[Violation]:
    """Whoever feeds the graph need not know what it computes in."""
    for value in (*c.graph.inputs, *c.graph.outputs):
        if c.dtype(value) in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
            yield Violation(str(value.name), c.type_of(value), "float")


def stored_weights_are_cast(c: Checked) -> Iterator[Violation]:
    """Weights keep the checkpoint's type in the file; the graph computes in float32. Of a table, the row is cast."""
    for value in c.graph.initializers.values():
        if c.types.of[value] in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
            for use in value.uses():
                row = gathered_row(use.node)
                cast = row is not None and all(u.node.op_type == "Cast" for u in row.uses())
                if use.node.op_type not in ("Cast", "DequantizeLinear") and not cast:
                    yield Violation(_name(use.node), f"{use.node.op_type} reads {value.name}, {c.type_of(value)}", "Cast to float first")


def computes_in_one_type(c: Checked) -> Iterator[Violation]:
    """Data is computed in the target's type; an island in attention would cost the fused kernel. Attention as a whole may have another."""
    aside = independent_of_data(c.graph) | _whole_attentions(c)
    codes = set[ir.Node | None]()
    for q in c.quantized:  # with the sums of outer products behind them, which are of their float sums
        codes |= {q.matmul, *(term.value.producer() for term in Epilogue.of(q).terms if term.product is not None)}
    for node in _of(c, *HEAVY):
        if node not in aside | codes and c.dtype(node.outputs[0]) is not c.compute:
            yield Violation(_name(node), f"{node.op_type} computes in {c.type_of(node.outputs[0])}", c.compute.name.lower())


def _whole_attentions(c: Checked) -> set[ir.Node]:
    """Nodes of the attentions that are computed in `c.attention` from the first product to the last."""
    if c.attention is None:
        return set()
    groups = [[*a.inner, a.product] for a in decomposed_attentions(c.graph) if isinstance(a, DecomposedAttention)]
    groups += [[node] for node in _of(c, "Attention")]
    return {node for group in groups if all(c.dtype(n.outputs[0]) is c.attention for n in group) for node in group}


# The rule with the most to say comes first: a float16 scale also mixes types further down.
COMMON: tuple[Rule, ...] = (
    standard_opset,
    no_scatter,
    no_double,
    named_axes,
    float32_border,
    step_gathers_tables,
    symmetric_codes,
    float32_scales,
    constant_weights,
    quantize_by_division,
    one_type_per_node,
    computes_in_one_type,
)
# Of targets whose quirks name them, when the last pass is done: until then a pass may still hand such a product to the plugin library.
OF_QUIRKS: tuple[Rule, ...] = (no_blocks_under_quantized_activations,)


@dataclasses.dataclass(frozen=True)
class Spec:
    """One level of the dialect."""

    name: str
    compute: str
    rules: tuple[Rule, ...]
    opsets: tuple[int, ...] = (OPSET,)
    attention: str | None = None  # of attention alone, if not `compute`

    @classmethod
    def canonical(cls) -> Spec:
        """What `model.onnx` may hold."""
        return cls("canonical", "fp32", (standard_domain, stored_weights_are_cast, *COMMON))

    @classmethod
    def lowered(cls, compute: str) -> Spec:
        """What `lowered/<target>.onnx` may hold when the target computes in fp32, fp16 or bf16."""
        return cls(f"lowered to {compute}", compute, (plugin_operators, *COMMON))

    def violations(self, model: ir.Model) -> Iterator[tuple[Rule, Violation]]:
        """Every broken rule with its place."""
        attention = None if self.attention is None else COMPUTE_TYPES[self.attention]
        checked = Checked(model, element_types(model.graph), COMPUTE_TYPES[self.compute], self.opsets, attention)
        for rule in self.rules:
            for violation in rule(checked):
                yield rule, violation

    def verify(self, model: ir.Model, *, where: str) -> None:
        """DialectError for the first violation."""
        for rule, v in self.violations(model):
            raise DialectError(
                found=v.found,
                wanted=v.wanted,
                where=f"{where}: rule {rule.__name__.replace('_', '-')} of the {self.name} dialect, node {v.node}",
                fix=(rule.__doc__ or "").strip(),
            )


def _of(c: Checked, *op_types: str) -> Iterator[ir.Node]:
    return (n for op_type in op_types for n in c.by_operator.get(op_type, ()))


def _name(node: ir.Node | None) -> str:
    return (node.name or node.op_type) if node is not None else "?"


def _value(value: ir.Value | None) -> str:
    return str(value.name) if value is not None else "?"
