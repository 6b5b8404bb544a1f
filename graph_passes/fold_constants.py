"""Compute once what depends on constants only; a Constant node becomes an initialiser.

    %n = Add(%two, %two)               with %two = 2         ->      %n' = 4 is an initialiser
    %y = Reshape(%x, %n)                                             %y = Reshape(%x, %n')

Never folded: Cast, DequantizeLinear, QuantizeLinear and Transpose (they are how weights are stored small and read as they
are), and anything that reads or makes more than `size_limit` elements, so that no weight is loaded and no file grows.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript.optimizer import fold_constants

from vditc.graph_passes.core import Pass, Result

_STORED_SMALL = ("Cast", "DequantizeLinear", "QuantizeLinear", "Transpose")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoldConstants(Pass):
    """Folds small constant expressions, such as the shapes that a tracer left behind."""

    name: ClassVar[str] = "fold-constants"
    gives: ClassVar[frozenset[str]] = frozenset({"constants-folded"})

    size_limit: int = 1024  # elements

    def numerics(self) -> str:
        """The reference evaluator computes shapes and small tables, whose sines and roots a runtime may round otherwise (Helios: 5e-7)."""
        return "rounding"

    def call(self, model: ir.Model) -> Result:
        """See the module's docstring."""
        lifted = common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        done = fold_constants(model, input_size_limit=self.size_limit, output_size_limit=self.size_limit, should_fold=_should_fold)
        return Result(model, modified=lifted.modified or done.modified)


def _should_fold(node: ir.Node) -> bool | None:
    """None leaves the decision to the sizes."""
    return False if node.op_type in _STORED_SMALL else None
