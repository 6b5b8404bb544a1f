"""In how many kernels an engine makes the codes that its products read, from what was computed last before them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping

import onnx_ir as ir

from vditc.runtimes.engine_program import EngineProgram, Kernel

_ELEMENTWISE = (
    *("Abs", "Add", "Cast", "Clip", "Div", "Max", "Min", "Mul", "Neg", "Pow", "Reciprocal", "Sqrt", "Sub", "ReduceMax", "ReduceMean"),
    *("Concat", "Reshape", "Squeeze", "Transpose", "Unsqueeze"),
)
# What codes are made of. A norm may be one node or the mean of squares and what is around it.
_SOURCES = {"LayerNormalization": "norm", "RMSNormalization": "norm", "ReduceMean": "norm", "Gelu": "gelu", "Sigmoid": "silu"}
_NAMED = ("Softmax", "LayerNormalization", "RMSNormalization", "ReduceMean", "Gelu", "Sigmoid", "Concat", "ReduceMax", "QuantizeLinear")


@dataclasses.dataclass(frozen=True)
class QuantizedInput:
    """A QuantizeLinear of a graph. `behind`: "norm", "gelu", "silu" or "rest", which is attention, a residual stream, a text.

    `nodes`: the names of all nodes from there to the codes; of a modulation those that touch the tokens.
    """

    node: str
    behind: str
    nodes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Fusion:
    """`fused`: how many inputs are quantized by the kernel that computes what is before them; `cut`: QuantizeLinear -> several kernels."""

    fused: Mapping[str, int]
    cut: Mapping[str, int]


def quantized_inputs(graph: ir.Graph) -> tuple[QuantizedInput, ...]:
    """Every activation that a lowered graph quantizes."""
    return tuple(_input(node) for node in graph if node.op_type == "QuantizeLinear")


def _input(quantize: ir.Node) -> QuantizedInput:
    before, sources, todo = {quantize}, dict[ir.Node, str](), [quantize]
    ends: set[ir.Value] = set()  # what an RMSNorm squares
    while todo:
        reader = todo.pop()
        for value in reader.inputs:
            node = value.producer() if value is not None else None
            if node is None or value in ends or node in before or node.op_type not in (*_ELEMENTWISE, *_SOURCES):
                continue
            if node.op_type == "Max" and reader.op_type == "Mul":  # the scale of another layer's codes, behind its product
                continue
            kind = _SOURCES.get(node.op_type)
            before.add(node)
            if kind is not None:
                sources[node] = kind
            if node.op_type == "ReduceMean":
                square = node.inputs[0].producer() if node.inputs[0] is not None else None
                if square is not None and square.inputs[0] is not None:
                    before.add(square)
                    sources[square] = "norm"
                    ends.add(square.inputs[0])
            elif kind is None:
                todo.append(node)
    behind = min(sources.values(), default="rest", key=("norm", "gelu", "silu").index)
    chain, order = set(sources), list(sources)
    while order:
        for node in {u.node for v in order.pop().outputs for u in v.uses()} & before - chain:
            chain.add(node)
            order.append(node)
    return QuantizedInput(str(quantize.name), behind, tuple(sorted(str(n.name) for n in chain | {quantize})))


def fusion(inputs: Iterable[QuantizedInput], engine: EngineProgram) -> Fusion:
    """Where the engine quantizes `inputs`; an input that none of its kernels names counts as neither."""
    kernels = [set(kernel.nodes) for kernel in (*engine.kernels, *engine.attentions)]
    fused: Counter[str] = Counter()
    cut: dict[str, int] = {}
    for one in inputs:
        count = sum(not names.isdisjoint(one.nodes) for names in kernels)
        if count == 1:
            fused[one.behind] += 1
        elif count:
            cut[one.node] = count
    return Fusion(dict(sorted(fused.items())), dict(sorted(cut.items())))


def summary(engine: EngineProgram) -> dict[str, object]:
    """An engine in a few lines, from the engine alone: nodes have the name of their operator at the end."""
    return {
        "products": dict(sorted(Counter(str(g) for g in engine.gemms).items())),
        "attentions": len(engine.attentions),
        "plugins": dict(sorted(Counter(_operators_of(k) for k in engine.plugins).items())),
        "kernels": len(engine.kernels),
        "kernels_that_write_codes": dict(sorted(Counter(_operators(k) for k in (*engine.kernels, *engine.attentions) if k.codes).items())),
        "repeated_sizes": list(engine.repeated_sizes),
    }


def _operators_of(plugin: Kernel) -> str:
    """ "QLinear": what a node's name ends with."""
    return (plugin.nodes[0] if plugin.nodes else plugin.name).rpartition("/")[2]


def _operators(kernel: Kernel) -> str:
    """ "LayerNormalization + ReduceMax + QuantizeLinear" """
    there = {name.rpartition("/")[2].partition("_")[0] for name in kernel.nodes}
    return " + ".join(kind for kind in _NAMED if kind in there)
