"""Which precision a lowered graph gives its layers, and whether an engine computes with it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import onnx_ir as ir

from vditc.errors import InputError, PrecisionError
from vditc.plugins.catalogue import operator_of
from vditc.plugins.plugin_op import DOMAIN, VERSION
from vditc.plugins.qlinear.op import QLinear
from vditc.runtimes.engine_program import EngineProgram, Gemm
from vditc.runtimes.fusion import QuantizedInput, fusion, quantized_inputs

_ENGINE_TYPES = {ir.DataType.INT8: "int8", ir.DataType.INT4: "int4", ir.DataType.FLOAT8E4M3FN: "fp8_e4m3"}
_PASS_THROUGH = ("Cast", "Identity", "Reshape", "Transpose")
_NARROW = ("half", "bf16", "b16")


@dataclasses.dataclass(frozen=True)
class QuantizedLayer:
    """A linear layer with a quantized weight, in the engine's names of types. `activation` None: weight-only."""

    layer: str
    node: str
    weight: str
    activation: str | None


@dataclasses.dataclass(frozen=True)
class Expectation:
    """What a lowered graph asks for. `floating`: MatMul nodes of layers that are not quantized, with their layer's name.

    `attentions`: name of the node that stands for each attention, its Softmax or Attention node. `inputs`: what is quantized at run time.
    `plugins`: nodes of the plugin library -> operator; `plugin_layers`: those that are a layer's product -> the layer and what it computes.
    """

    quantized: tuple[QuantizedLayer, ...]
    floating: Mapping[str, str]
    attentions: tuple[str, ...]
    inputs: tuple[QuantizedInput, ...] = ()
    plugins: Mapping[str, str] = dataclasses.field(default_factory=dict)
    plugin_layers: Mapping[str, tuple[str, str]] = dataclasses.field(default_factory=dict)

    @property
    def plugin_names(self) -> dict[str, tuple[str, str, str]]:
        """Nodes of the plugin library -> operator, version and namespace, as TensorRT's registry names plugins."""
        return {node: (op, VERSION, DOMAIN) for node, op in self.plugins.items()}


@dataclasses.dataclass(frozen=True)
class Landed:
    """What an engine does: products by kind, the kind of every layer, layers whose products were merged, fused attentions, plugins.

    `fused`, `cut`: where inputs are quantized, see `vditc.runtimes.fusion.Fusion`.
    """

    gemms: Mapping[str, int]
    layers: Mapping[str, str]
    merged: tuple[tuple[str, ...], ...]
    attentions: int
    plugins: int
    plugin_operators: Mapping[str, int]
    constant_bytes: Mapping[str, int]
    fused: Mapping[str, int]
    cut: Mapping[str, int]


def expected_precision(lowered: Path, *, plugins: bool = False) -> Expectation:
    """Read the quantized layers and attentions of an ONNX file; weights stay on disk.

    PrecisionError for a product whose activation is quantized and whose weight is not: no engine computes it in low precision.
    `plugins`: whether there is a plugin library; InputError for its operators without it, and for operators of others.
    """
    quantized: list[QuantizedLayer] = []
    floating: dict[str, str] = {}
    attentions: list[str] = []
    handed_over: dict[str, str] = {}
    layers: dict[str, tuple[str, str]] = {}
    graph = ir.load(lowered).graph
    for node in graph:
        name = node.name or ""
        if node.domain:
            handed_over[name] = _plugin(node, lowered, plugins=plugins)
            if isinstance(op := operator_of(node), QLinear):
                layers[name] = (name.removesuffix("/QLinear"), f"plugin QLinear w{op.bits}a{op.activation_bits} -> {op.output}")
            continue
        if node.op_type in ("Softmax", "Attention"):
            attentions.append(name)
        if node.op_type not in ("MatMul", "Gemm"):
            continue
        activation, weight = (_dequantized(value) for value in node.inputs[:2])
        layer = name.removesuffix("/MatMul")
        if weight is not None and weight.const_value is not None:
            kind = _engine_type(weight, name)
            quantized.append(QuantizedLayer(layer, name, kind, _engine_type(activation, name) if activation is not None else None))
        elif activation is not None:
            raise PrecisionError(
                found="a quantized activation with a weight that is not quantized",
                wanted="both, or the weight alone",
                where=f"node {name} of {lowered}",
                fix="give the layer's rule a weight type",
            )
        elif _source(node.inputs[1]).const_value is not None:
            floating[name] = layer
    return Expectation(tuple(quantized), floating, tuple(attentions), quantized_inputs(graph), handed_over, layers)


def _plugin(node: ir.Node, lowered: Path, *, plugins: bool) -> str:
    """The operator of a node that is not ONNX's own; InputError where no engine can have it."""
    known = node.domain == DOMAIN
    if known and plugins:
        try:
            operator_of(node)
        except ValueError as error:
            fix = "lower the model again with this version of vditc"
            raise InputError(
                found=str(error), wanted="an operator of this plugin library", where=f"{lowered}, node {node.name}", fix=fix
            ) from error
        return node.op_type
    raise InputError(
        found=f"operator {node.domain}.{node.op_type} at node {node.name}" + (" and no plugin library" if known else ""),
        wanted="the plugin library for this target" if known else f"operators of ONNX and of {DOMAIN}",
        where=str(lowered),
        fix="build it (vditc plugins build) or name it (--plugins LIB), or lower the model again without --plugins"
        if known
        else "lower the model again",
    )


def _source(value: ir.Value | None) -> ir.Value:
    assert value is not None  # MatMul and Gemm have no optional operand among the first two
    while (node := value.producer()) is not None and node.op_type in _PASS_THROUGH and node.inputs[0] is not None:
        value = node.inputs[0]
    return value


def _dequantized(value: ir.Value | None) -> ir.Value | None:
    """The codes that an operand is dequantized from, if it is."""
    node = _source(value).producer()
    return node.inputs[0] if node is not None and node.op_type == "DequantizeLinear" else None


def _engine_type(codes: ir.Value, where: str) -> str:
    """Type of quantized codes; those of an activation may have no recorded type, then QuantizeLinear tells."""
    dtype = codes.dtype
    node = codes.producer()
    if dtype is None and node is not None:
        dtype = ir.DataType(node.attributes.get_int("output_dtype", ir.DataType.INT8))
    if dtype not in _ENGINE_TYPES:
        raise PrecisionError(
            found=f"codes of type {dtype}",
            wanted=f"one of {', '.join(t.name for t in _ENGINE_TYPES)}",
            where=f"node {where}",
            fix="lower the graph for this target before building",
        )
    return _ENGINE_TYPES[dtype]


def assert_landed(expectation: Expectation, engine: EngineProgram) -> Landed:
    """PrecisionError that names every layer and attention that the engine computes otherwise than the graph asks."""
    nodes = {q.node for q in expectation.quantized} | set(expectation.floating)
    by_node: dict[str, list[Gemm]] = {}
    for gemm in engine.gemms:
        for node in nodes.intersection(gemm.nodes):
            by_node.setdefault(node, []).append(gemm)
    faults = [f"{q.layer}: {fault}" for q in expectation.quantized if (fault := _fault(q, by_node.get(q.node, [])))]
    faults += _strangers(expectation, engine.gemms)
    faults += _attention_faults(expectation.attentions, engine)
    faults += _plugin_faults(expectation.plugins, engine)
    if faults:
        asked = len(expectation.quantized) + len(expectation.attentions) + len(expectation.plugins)
        raise PrecisionError(
            found=f"{len(faults)} of {asked} quantized layers, attentions and plugins wrong: {'; '.join(faults)}",
            wanted="layers in the precision of the lowered graph, attentions in one fused kernel, plugin operators in their plugins",
            where=engine.source,
            fix="keep these layers in floating point in the recipe, or use a target whose runtime fuses them",
        )
    layer_of = {q.node: q.layer for q in expectation.quantized} | dict(expectation.floating)
    kernels = fusion(expectation.inputs, engine)
    merged = [tuple(sorted(layer_of[n] for n in nodes.intersection(gemm.nodes))) for gemm in engine.gemms]
    return Landed(
        gemms=dict(sorted(Counter(str(g) for g in engine.gemms).items())),
        layers=dict(
            sorted(
                [
                    *((layer, str(by_node[node][0])) for node, layer in layer_of.items() if node in by_node),
                    *expectation.plugin_layers.values(),
                ]
            )
        ),
        merged=tuple(sorted(group for group in merged if len(group) > 1)),
        attentions=len(engine.attentions),
        plugins=len(engine.plugins),
        plugin_operators=dict(sorted(Counter(f"{DOMAIN}.{op}" for op in expectation.plugins.values()).items())),
        constant_bytes=engine.constant_bytes,
        fused=kernels.fused,
        cut=kernels.cut,
    )


def _fault(layer: QuantizedLayer, gemms: list[Gemm]) -> str | None:
    if len(gemms) != 1:
        return f"in {len(gemms)} products of the engine"
    gemm = gemms[0]
    if gemm.stored is not None and gemm.stored != layer.weight:
        return f"weight stored as {gemm.stored}, wanted {layer.weight}"
    if layer.activation is None:
        if gemm.stored is not None and not gemm.dequant_fused:
            return f"the {layer.weight} weight is dequantized by a kernel of its own on every run"
    elif gemm.activation != layer.activation or gemm.weight != layer.activation:
        return f"computes {gemm}, wanted {layer.activation} x {layer.activation}"
    elif layer.activation == "int8" and gemm.output in _NARROW:
        return f"computes {gemm}: sums beyond 65504 overflow; dequantize with float32 scales"
    return None


def _strangers(expectation: Expectation, gemms: Iterable[Gemm]) -> list[str]:
    """Products in INT8 that no quantized layer asked for, for example of a quantized attention that lost its fusion."""
    known = {q.node for q in expectation.quantized if q.activation is not None}
    strange = (g for g in gemms if g.activation == "int8" and not known.intersection(g.nodes))
    return [f"{' + '.join(g.nodes) or 'a product'} computes {g}, not asked for" for g in strange]


def _attention_faults(attentions: tuple[str, ...], engine: EngineProgram) -> list[str]:
    faults = []
    for name in attentions:
        if (count := sum(name in kernel.nodes for kernel in engine.attentions)) == 1:
            continue
        apart = next((k for k in engine.kernels if name in k.nodes), None)
        scores = f"; scores written out as {', '.join(apart.outputs)} by {apart.name}" if apart and not count else ""
        faults.append(f"attention {name} in {count} fused kernels{scores}")
    return faults


def _plugin_faults(nodes: Mapping[str, str], engine: EngineProgram) -> list[str]:
    """Operators that the engine computes otherwise than by their plugin. TensorRT may have plugins of its own beside them."""
    found = Counter(node for kernel in engine.plugins for node in {kernel.name, *kernel.nodes})
    return [f"{node}: in {found[node]} plugins of the engine" for node in nodes if found[node] != 1]
