"""The same graph as a file of a later opset, for the operators that it brings.

<ir_version: 10, opset_import: ["" : 21]>      ->      <ir_version: 11, opset_import: ["" : 23]>
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from vditc.graph_passes.core import Pass, Result
from vditc.graph_passes.spec import IR_VERSIONS, Spec

LATER = 23


@dataclasses.dataclass(frozen=True, kw_only=True)
class RaiseOpset(Pass):
    """Opset 21 -> 23, in which every operator of 21 means the same."""

    name: ClassVar[str] = "raise-opset"
    needs: ClassVar[frozenset[str]] = frozenset({"lowered"})
    gives: ClassVar[frozenset[str]] = frozenset({"opset-23"})

    def spec_after(self, spec: Spec) -> Spec:
        """The same dialect in the later opset."""
        return dataclasses.replace(spec, opsets=(LATER,))

    def numerics(self) -> str:
        """The operators stay."""
        return "exact"

    def call(self, model: ir.Model) -> Result:
        """See the module's docstring."""
        now = model.graph.opset_imports[""]
        if now == LATER:
            return Result(model, modified=False)
        model.graph.opset_imports[""] = LATER
        for function in model.functions.values():
            function.opset_imports[""] = LATER
        model.ir_version = IR_VERSIONS[LATER]
        return Result(model, modified=True)
