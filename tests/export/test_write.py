"""How tensors lie in the data file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from vditc.export.weights import add_initializer
from vditc.export.write import write_model


def test_tensors_are_aligned_and_small_ones_stay_inline(tmp_path: Path) -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="g")
    arrays = {f"t{size}": np.full(size, size % 251, np.uint8) for size in (1023, 1025, 1024)}
    for name, array in arrays.items():
        add_initializer(graph, ir.tensor(array, name=name))
    calls: list[None] = []
    sizes = write_model(ir.Model(graph, ir_version=10), tmp_path / "m.onnx", lambda: calls.append(None))
    assert len(calls) == 2
    assert sizes[1] == 1088 + 1024  # 1025 rounded up to 64, then 1024
    read = ir.load(tmp_path / "m.onnx")
    assert not isinstance(read.graph.initializers["t1023"].const_value, ir.ExternalTensor)
    for name, array in arrays.items():
        tensor = read.graph.initializers[name].const_value
        assert tensor is not None
        np.testing.assert_array_equal(tensor.numpy(), array)
