"""Which precision a lowered graph gives its layers, and whether an engine computes with it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import onnx_ir as ir

from vditc.errors import InputError, PrecisionError
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
    """

    quantized: tuple[QuantizedLayer, ...]
    floating: Mapping[str, str]
    attentions: tuple[str, ...]
    inputs: tuple[QuantizedInput, ...] = ()


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
    constant_bytes: Mapping[str, int]
    fused: Mapping[str, int]
    cut: Mapping[str, int]


def expected_precision(lowered: Path) -> Expectation:
    """Read the quantized layers and attentions of an ONNX file; weights stay on disk.

    PrecisionError for a product whose activation is quantized and whose weight is not: no engine computes it in low precision.
    InputError for operators of the plugin library, since engines are built without it.
    """
    quantized: list[QuantizedLayer] = []
    floating: dict[str, str] = {}
    attentions: list[str] = []
    graph = ir.load(lowered).graph
    for node in graph:
        name = node.name or ""
        if node.domain:
            raise InputError(
                found=f"operator {node.domain}.{node.op_type} at node {name}",
                wanted="operators that TensorRT has itself: engines are built without the plugin library",
                where=str(lowered),
                fix="lower the model again, without --plugins",
            )
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
    return Expectation(tuple(quantized), floating, tuple(attentions), quantized_inputs(graph))


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
    if faults:
        raise PrecisionError(
            found=f"{len(faults)} of {len(expectation.quantized) + len(expectation.attentions)} quantized layers and attentions wrong: "
            + "; ".join(faults),
            wanted="every layer in the precision of the lowered graph, every attention in one fused kernel",
            where=engine.source,
            fix="keep these layers in floating point in the recipe, or use a target whose runtime fuses them",
        )
    layer_of = {q.node: q.layer for q in expectation.quantized} | dict(expectation.floating)
    kernels = fusion(expectation.inputs, engine)
    merged = [tuple(sorted(layer_of[n] for n in nodes.intersection(gemm.nodes))) for gemm in engine.gemms]
    return Landed(
        gemms=dict(sorted(Counter(str(g) for g in engine.gemms).items())),
        layers={layer: str(by_node[node][0]) for node, layer in sorted(layer_of.items()) if node in by_node},
        merged=tuple(sorted(group for group in merged if len(group) > 1)),
        attentions=len(engine.attentions),
        plugins=len(engine.plugins),
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
