"""Remove what nobody reads.

%a = Identity(%x)                      %y = Relu(%x)
%b = Sqrt(%x)               ->         ... => (y)
%y = Relu(%a)    ... => (y)
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir
from onnx_ir.passes import common

from vditc.graph_passes.core import Pass, Result


@dataclasses.dataclass(frozen=True, kw_only=True)
class EliminateDeadNodes(Pass):
    """Nodes, initialisers and opset imports without a reader, and Identity."""

    name: ClassVar[str] = "eliminate-dead-nodes"

    def numerics(self) -> str:
        """What is left is computed as before."""
        return "exact"

    def call(self, model: ir.Model) -> Result:
        """See the module's docstring."""
        steps = (common.IdentityEliminationPass(), common.RemoveUnusedNodesPass(), common.RemoveUnusedOpsetsPass())
        changed = [step(model).modified for step in steps]
        return Result(model, modified=any(changed))
