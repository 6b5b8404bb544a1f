"""The same graph as a file of a later opset, for the operators that it brings.

<ir_version: 10, opset_import: ["" : 21]>      ->      <ir_version: 11, opset_import: ["" : 23]>
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from vditc.errors import InputError
from vditc.graph_passes.core import Pass, Result
from vditc.graph_passes.spec import IR_VERSIONS, Spec


@dataclasses.dataclass(frozen=True, kw_only=True)
class RaiseOpset(Pass):
    """Opset 21 -> `to`. Refusal: an operator that means something else there; the graph is left as it is."""

    name: ClassVar[str] = "raise-opset"
    needs: ClassVar[frozenset[str]] = frozenset({"lowered"})
    gives: ClassVar[frozenset[str]] = frozenset({"opset-23"})

    to: int = 23

    def __post_init__(self) -> None:
        if self.to not in IR_VERSIONS:
            raise InputError(
                found=f"to={self.to}",
                wanted=f"one of {', '.join(map(str, IR_VERSIONS))}",
                where=f"pass {self.name}",
                fix="correct the option",
            )

    def spec_after(self, spec: Spec) -> Spec:
        """The same dialect in the later opset."""
        return dataclasses.replace(spec, opsets=(self.to,))

    def numerics(self) -> str:
        """The operators stay."""
        return "exact"

    def call(self, model: ir.Model) -> Result:
        """See the module's docstring."""
        now = model.graph.opset_imports[""]
        if now == self.to:
            return Result(model, modified=False)
        model.graph.opset_imports[""] = self.to
        model.ir_version = IR_VERSIONS[self.to]
        return Result(model, modified=True)
