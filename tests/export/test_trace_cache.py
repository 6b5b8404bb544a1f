"""A model that is compiled with several recipes is traced once, another model again."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import onnx_ir as ir
import pytest

from vditc.adapter import InputSpec
from vditc.export import stage


class Adapter:
    """Inputs as the directory says."""

    def inputs(self, source: Any) -> tuple[InputSpec, ...]:
        return (InputSpec("timestep", "float32", source.dims),)


def test_traced_again_when_only_the_inputs_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    traced: list[tuple[str, ...]] = []

    def trace(source: Any, adapter: Any, *, whole: bool) -> ir.Model:
        traced.append(source.dims)
        return ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 21}), ir_version=10)

    monkeypatch.setattr(stage, "trace", trace)
    monkeypatch.setattr(stage, "simplify", lambda model, loops: None)
    for dims in (("batch",), ("batch",), ("batch", "frames")):
        stage.traced_graph(SimpleNamespace(config={}, dims=dims), Adapter(), whole=True)  # type: ignore[arg-type]
    assert traced == [("batch",), ("batch", "frames")]
