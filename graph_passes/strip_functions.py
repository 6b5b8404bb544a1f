"""Leave out the bodies of the plugin library's operators.

    %y = vditc.QLinear<...>(...)      with a function vditc.QLinear         ->      %y = vditc.QLinear<...>(...)

Up to TensorRT 10.6 the parser takes a function of the model before a plugin of the same name, so that the plugin would never run. ONNX
Runtime cannot run such a graph; `vditc lower --verify` puts the bodies back to run it.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from vditc.graph_passes.core import Pass, Result


@dataclasses.dataclass(frozen=True, kw_only=True)
class StripFunctions(Pass):
    """Functions of the model."""

    name: ClassVar[str] = "strip-functions"
    needs: ClassVar[frozenset[str]] = frozenset({"lowered"})

    def numerics(self) -> str:
        """The bodies say what the plugins compute."""
        return "exact"

    def call(self, model: ir.Model) -> Result:
        """See the module's docstring."""
        modified = bool(model.functions)
        model.functions.clear()
        return Result(model, modified)
