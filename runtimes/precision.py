"""Which precision a lowered graph gives its layers (read by `vditc.runtimes.graph_precision`), and whether an engine computes with it.

A device builds engines with the standard library alone, so nothing here reads ONNX.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from vditc.errors import PrecisionError
from vditc.plugins.domain import DOMAIN, VERSION
from vditc.runtimes.engine_program import EngineProgram, Gemm
from vditc.runtimes.fusion import QuantizedInput, fusion

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

    @property
    def products(self) -> int:
        """Linear layers and plugins, which an estimate of the builder's memory counts."""
        return len(self.quantized) + len(self.floating) + len(self.plugins)

    def to_json(self) -> dict[str, Any]:
        """Plain data, the inverse of `from_json`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Expectation:
        """Read what `to_json` wrote; TypeError, KeyError or ValueError for anything else."""
        return cls(
            quantized=tuple(QuantizedLayer(**layer) for layer in data["quantized"]),
            floating=dict(data["floating"]),
            attentions=tuple(data["attentions"]),
            inputs=tuple(QuantizedInput(one["node"], one["behind"], tuple(one["nodes"])) for one in data["inputs"]),
            plugins=dict(data["plugins"]),
            plugin_layers={node: (str(layer), str(kind)) for node, (layer, kind) in data["plugin_layers"].items()},
        )


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


def refused_layers(expectation: Expectation, nodes: Iterable[str], types: Iterable[str]) -> dict[str, str]:
    """Layer -> why, of what a runtime does not take: nodes of the graph, named `LAYER/Kind`, and types of codes. {}: it is no layer's."""
    layers = {q.layer for q in expectation.quantized}
    found = {layer: f"the runtime does not take node {node}" for node in nodes if (layer := _layer_of(node, layers))}
    if not all(_layer_of(node, layers) for node in nodes):
        return {}
    for kind in types:
        found |= {q.layer: f"the runtime has no {kind} here" for q in expectation.quantized if kind in (q.weight, q.activation)}
    return found


def _layer_of(node: str, layers: set[str]) -> str:
    """ "blocks.0.ffn.net.2.weight/DequantizeLinear" -> "blocks.0.ffn.net.2"."""
    scope = node.rpartition("/")[0].removesuffix(".weight")
    return scope if scope in layers else ""


def assert_landed(expectation: Expectation, engine: EngineProgram) -> Landed:
    """PrecisionError that names every layer and attention that the engine computes otherwise than the graph asks."""
    nodes = {q.node for q in expectation.quantized} | set(expectation.floating)
    by_node: dict[str, list[Gemm]] = {}
    for gemm in engine.gemms:
        for node in nodes.intersection(gemm.nodes):
            by_node.setdefault(node, []).append(gemm)
    wrong = {q.layer: fault for q in expectation.quantized if (fault := _fault(q, by_node.get(q.node, [])))}
    others = [*_strangers(expectation, engine.gemms), *_attention_faults(expectation.attentions, engine)]
    for node, fault in _plugin_faults(expectation.plugins, engine).items():
        if node in expectation.plugin_layers:
            wrong[expectation.plugin_layers[node][0]] = fault
        else:
            others.append(f"{node}: {fault}")
    if faults := [*(f"{layer}: {fault}" for layer, fault in wrong.items()), *others]:
        asked = len(expectation.quantized) + len(expectation.attentions) + len(expectation.plugins)
        raise PrecisionError(
            found=f"{len(faults)} of {asked} quantized layers, attentions and plugins wrong: {'; '.join(faults)}",
            wanted="layers in the precision of the lowered graph, attentions in one fused kernel, plugin operators in their plugins",
            where=engine.source,
            fix="keep these layers in floating point in the recipe (or let `vditc compile --fallback` do so), "
            "or use a target whose runtime fuses them",
            layers={} if others else wrong,
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


def _plugin_faults(nodes: Mapping[str, str], engine: EngineProgram) -> dict[str, str]:
    """Operators that the engine computes otherwise than by their plugin. TensorRT may have plugins of its own beside them."""
    found = Counter(node for kernel in engine.plugins for node in {kernel.name, *kernel.nodes})
    return {node: f"in {found[node]} plugins of the engine" for node in nodes if found[node] != 1}
