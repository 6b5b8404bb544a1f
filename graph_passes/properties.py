"""What a pass may rely on: properties of a graph that hold until a pass ends them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import onnx_ir as ir

from vditc.graph_passes.spec import Spec


@dataclasses.dataclass(frozen=True)
class Property:
    """What a property means, and whether a graph has it before any pass has run."""

    means: str
    holds: Callable[[ir.Model, Spec], bool]


PROPERTIES: dict[str, Property] = {
    "canonical": Property("the graph computes in float32, as the export wrote it", lambda _, spec: spec == Spec.canonical()),
    "lowered": Property("every value has the type that it is computed in", lambda _, spec: spec != Spec.canonical()),
    "opset-23": Property("the file has the operators of opset 23", lambda _, spec: 23 in spec.opsets),
    "constants-folded": Property(
        "what is constant is an initialiser, which passes compare and convert",
        lambda model, _: not any(node.op_type == "Constant" for node in model.graph),
    ),
}


def held(model: ir.Model, spec: Spec) -> set[str]:
    """Properties of a graph of the dialect `spec`."""
    return {name for name, one in PROPERTIES.items() if one.holds(model, spec)}
