"""The shapes of graph that several passes and the dialect look for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from vditc.plugins.packing import code_range
from vditc.scheme import PLUGIN_GROUP

TIME_INPUTS = ("timestep", "r_timestep", "sigma", "step", "frame_rate", "first_frames", "fps")  # graph inputs that say when, not what
HEAVY = ("MatMul", "Gemm", "Conv", "Softmax", "LayerNormalization", "Attention", "Gelu")  # what is always computed in the target's type
SMALL = 1024  # elements: constants that may be read, compared and copied without thinking of memory


def producer(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """The node that computes `value`, if it is one of `op_types`."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type in op_types else None


def consumers(value: ir.Value, *op_types: str) -> list[ir.Node]:
    """Nodes of `op_types` that read `value`, each once, in graph order of first use."""
    return list(dict.fromkeys(use.node for use in value.uses() if use.node.op_type in op_types))


def only_reader(value: ir.Value) -> ir.Node | None:
    """The node that reads a value, if it is the only one, reads it once, and the value is no output of the graph."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def small_constant(value: ir.Value | None) -> npt.NDArray[np.generic] | None:
    """The elements of a small initialiser."""
    if value is None or value.const_value is None or value.const_value.size > SMALL:
        return None
    array: npt.NDArray[np.generic] = value.const_value.numpy()
    return array


def weight_like(value: ir.Value | None) -> bool:
    """An initialiser, or a Cast or DequantizeLinear of one: known before the first run."""
    if value is None:
        return False
    node = producer(value, "Cast", "DequantizeLinear")
    return weight_like(node.inputs[0]) if node is not None else value.is_initializer()


def by_step(value: ir.Value | None) -> bool:
    """A number that `step` selects from a table [steps]."""
    gather = producer(value, "Gather")
    if gather is None or gather.inputs[0] is None or gather.inputs[1] is None or gather.inputs[0].const_value is None:
        return False
    return gather.inputs[1].name == "step" and len(gather.inputs[0].const_value.shape) == 1


def gathered_row(node: ir.Node) -> ir.Value | None:
    """The output of a Gather from a constant table by the input `step`; None for any other node."""
    by_step = node.op_type == "Gather" and node.inputs[1] is not None and node.inputs[1].name == "step"
    return node.outputs[0] if by_step and weight_like(node.inputs[0]) else None


def blocked(dequantize: ir.Node) -> bool:
    """Whether a DequantizeLinear has one scale for every block of an axis."""
    return "block_size" in dequantize.attributes and dequantize.attributes["block_size"].as_int() != 0


def for_plugins(weight: ir.Node) -> bool:
    """Whether the plugin library computes products of codes with a DequantizeLinear: INT4, and whatever has groups of its size."""
    codes = weight.inputs[0]
    if blocked(weight):
        by_input = weight.attributes.get_int("axis", 1) == 0 and weight.attributes["block_size"].as_int() == PLUGIN_GROUP
        return by_input and codes is not None and codes.dtype in (ir.DataType.INT4, ir.DataType.INT8)
    return codes is not None and codes.dtype is ir.DataType.INT4


def quantizer(codes: ir.Value | None) -> ir.Node | None:
    """The node that makes codes: QuantizeLinear, or QuantizeToken of the plugin library, maybe with a Reshape of tokens behind it."""
    reshape = producer(codes, "Reshape")
    return producer(codes, "QuantizeLinear", "QuantizeToken") if reshape is None else producer(reshape.inputs[0], "QuantizeToken")


def of_quantizer(value: ir.Value | None) -> bool:
    """Whether a value is a number that QuantizeToken gives for every token: its scale or a sum of its codes."""
    reshape = producer(value, "Reshape")
    value = value if reshape is None else reshape.inputs[0]
    node = producer(value, "QuantizeToken")
    if node is None or value is None or value.index() == 0:
        return False
    return not node.attributes["gated"].as_int() or value is not node.outputs[-1]  # the last one is a tensor of the model's own


def activation_bits(quantize: ir.Node) -> int:
    """Bits of the codes that an integer QuantizeLinear or a QuantizeToken makes, in a container of 8.

    Fewer than 8 where a Clip in front of a scale of 1 leaves the codes of so many bits; any other Clip is the model's own.
    """
    if quantize.op_type == "QuantizeToken":
        return quantize.attributes["bits"].as_int()
    clip, unit = producer(quantize.inputs[0], "Clip"), small_constant(quantize.inputs[1])
    if clip is None or len(clip.inputs) != 3 or unit is None or unit.size != 1 or float(unit) != 1:
        return 8
    bounds = [small_constant(value) for value in clip.inputs[1:]]
    if any(bound is None or bound.size != 1 for bound in bounds):
        return 8
    low, high = (float(bound) for bound in bounds if bound is not None)
    return next((bits for bits in (6, 4, 3) if (low, high) == code_range(bits)), 8)


@dataclasses.dataclass(frozen=True)
class QuantizedMatMul:
    """A MatMul of two dequantized operands, with what belongs to it.

    x -> [Div by s] -> [Clip] -> QuantizeLinear -> DequantizeLinear -> MatMul <- DequantizeLinear <- constant codes
    x -> QuantizeToken -> ...
    """

    matmul: ir.Node
    activation: ir.Node  # DequantizeLinear
    weight: ir.Node  # DequantizeLinear

    @property
    def quantize(self) -> ir.Node | None:
        """The QuantizeLinear or QuantizeToken of the activation."""
        return quantizer(self.activation.inputs[0])

    @property
    def divide(self) -> ir.Node | None:
        """The Div by a scale that is computed at run time; None for a constant scale."""
        if (quantize := self.quantize) is None or quantize.op_type == "QuantizeToken":
            return None
        clip = producer(quantize.inputs[0], "Clip")
        return producer(clip.inputs[0] if clip is not None else quantize.inputs[0], "Div")

    @property
    def rescale(self) -> ir.Node | None:
        """The Mul that brings the scale of `divide` back after the MatMul, or the scale of a step by which something in front divided."""
        for mul in consumers(self.matmul.outputs[0], "Mul"):
            for value in mul.inputs:
                scale = self._undivided(value)
                if scale is not None and self._scales(scale):
                    return mul
        return None

    @property
    def run_time_scale(self) -> ir.Value | None:
        """The scale of the token or of the step that the input was divided by in front of its codes; None for a constant one."""
        if (divide := self.divide) is not None:
            return divide.inputs[1]
        if (quantize := self.quantize) is None or quantize.op_type != "QuantizeToken":
            return None
        given = self._given
        return quantize.outputs[1] if given is None else given if by_step(given) else None

    @property
    def _given(self) -> ir.Value | None:
        """The scale that a QuantizeToken reads."""
        quantize = self.quantize
        if quantize is None or quantize.op_type != "QuantizeToken" or quantize.attributes["scaled"].as_string() != "given":
            return None
        return quantize.inputs[-2 if quantize.attributes["shares"].as_int() else -1]

    def _scales(self, value: ir.Value) -> bool:
        """Whether a value is the scale of the activation, or of the step by which something in front divided."""
        if (scale := self.run_time_scale) is None:
            return by_step(value) or value is self._given
        reshape = producer(value, "Reshape")
        return value is scale or (reshape is not None and reshape.inputs[0] is scale)

    @staticmethod
    def _undivided(value: ir.Value | None) -> ir.Value | None:
        """A scale, without the scale of the layer behind it that it was divided by."""
        divided = producer(value, "Div")
        return value if divided is None or not by_step(divided.inputs[1]) else divided.inputs[0]

    @property
    def bias(self) -> ir.Node | None:
        """The Add of a constant at the end."""
        last = self.rescale or self.matmul
        return next((a for a in consumers(last.outputs[0], "Add") if any(weight_like(v) for v in a.inputs)), None)


def quantized_matmuls(graph: ir.Graph) -> Iterator[QuantizedMatMul]:
    """Every MatMul of a quantized activation and a dequantized weight."""
    for node in graph:
        if node.op_type == "MatMul":
            left, right = (producer(v, "DequantizeLinear") for v in node.inputs)
            if left is not None and right is not None and not weight_like(left.outputs[0]):
                yield QuantizedMatMul(node, left, right)


def quantization_arithmetic(graph: ir.Graph) -> set[ir.Node]:
    """Everything that decides a code or multiplies codes: it stays in float32, as the reference computes it."""
    found: set[ir.Node] = set()
    for node in graph:
        if node.op_type in ("QuantizeLinear", "QuantizeToken"):
            found |= {node, *consumers(node.outputs[0], "DequantizeLinear")}
        if node.op_type == "QuantizeLinear":
            found |= _upstream(node.inputs[0], ("Clip", "Div"))
    for q in quantized_matmuls(graph):
        found |= {q.matmul, q.activation, q.weight, *(n for n in (q.rescale, q.bias) if n is not None)}
        found |= set(_constants_added((q.bias or q.rescale or q.matmul).outputs[0]))
        if q.divide is not None:
            found |= _upstream(q.divide.inputs[1], ("Max", "Div", "Mul", "ReduceMax", "Abs", "Gather"))
        found |= _sums(q.activation.outputs[0])
    return found


def _constants_added(value: ir.Value) -> Iterator[ir.Node]:
    """A correction of the bias, behind the bias."""
    for add in consumers(value, "Add"):
        if any(weight_like(v) for v in add.inputs):
            yield add


def _sums(codes: ir.Value) -> set[ir.Node]:
    """What is summed over a token's codes and added to the product: zero points and the rank-1 term of a layer's correction."""
    found: set[ir.Node] = set()
    open_ends = [*consumers(codes, "ReduceSum", "Mul")]
    while open_ends:
        node = open_ends.pop()
        if node not in found:
            found.add(node)
            if node.op_type != "Add":
                open_ends += consumers(node.outputs[0], "ReduceSum", "Mul", "Reshape", "Add")
    return found


def _upstream(value: ir.Value | None, op_types: tuple[str, ...]) -> set[ir.Node]:
    """The chain of first operands that computes `value`, as long as it consists of `op_types`, up to the magnitudes of the data."""
    found: set[ir.Node] = set()
    while (node := producer(value, *op_types)) is not None and node not in found:
        found.add(node)
        value = None if node.op_type == "Abs" else node.inputs[0]
    return found


def angles(graph: ir.Graph) -> set[ir.Node]:
    """Every sine and cosine, and what computes its argument, up to a product, a norm, GELU or an input of the graph."""
    found = {node for node in graph if node.op_type in ("Sin", "Cos")}
    if not found:
        return found
    norms = {node for nodes in rms_norms(graph) for node in nodes}
    todo = list(found)
    while todo:
        before = {node for v in todo.pop().inputs if v is not None and (node := v.producer()) is not None} - found
        new = {node for node in before - norms if node.op_type not in HEAVY}
        found |= new
        todo += new
    return found


def rms_norms(graph: ir.Graph) -> Iterator[tuple[ir.Node, ...]]:
    """x * 1 / sqrt(mean(x^2) + eps): its nodes from the square to the product, without the learnt weight."""
    for mean in graph:
        if mean.op_type != "ReduceMean" or (square := producer(mean.inputs[0], "Pow", "Mul")) is None:
            continue
        x = square.inputs[0]
        if square.op_type == "Pow":
            exponent = small_constant(square.inputs[1])
            if exponent is None or float(exponent) != 2.0:
                continue
        elif square.inputs[1] is not x:
            continue
        for add in consumers(mean.outputs[0], "Add"):
            for root in consumers(add.outputs[0], "Sqrt"):
                for inverse in consumers(root.outputs[0], "Reciprocal"):
                    yield from ((square, mean, add, root, inverse, m) for m in consumers(inverse.outputs[0], "Mul") if x in m.inputs)
                yield from ((square, mean, add, root, d) for d in consumers(root.outputs[0], "Div") if d.inputs[0] is x)


def independent_of_data(graph: ir.Graph) -> set[ir.Node]:
    """Nodes that read, through any path, only constants, shapes and the time inputs: modulation, positions, step scales."""
    data = {v for v in graph.inputs if v.name not in TIME_INPUTS}
    found: set[ir.Node] = set()
    for node in graph:
        if node.op_type in ("Shape", "Size") or not any(v in data for v in node.inputs):
            found.add(node)
        else:
            data |= set(node.outputs)
    return found
