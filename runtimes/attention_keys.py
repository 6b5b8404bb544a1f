"""How many keys the float16 attentions of a lowered graph have at given sizes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx

from vditc.runtimes.graph_inputs import graph_sizes


def float16_keys(lowered: Path, sizes: Mapping[str, int]) -> int:
    """Most keys of an attention that is computed in float16, 0 without one. `sizes`: of every named axis, in steps.

    Shapes are inferred at these sizes; where they cannot be, the tokens of clip and text together stand for them.
    """
    model = onnx.load(lowered, load_external_data=False)
    del model.graph.value_info[:]  # sizes by name, which would stand in the way of numbers
    for value in model.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in sizes:
                dim.dim_value = sizes[dim.dim_param]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    known = {v.name: v.type.tensor_type for v in onnx.shape_inference.infer_shapes(model, data_prop=True).graph.value_info}
    most, together = 0, graph_sizes(lowered).tokens(sizes) + sizes.get("text_tokens", 0)
    for node in model.graph.node:
        if node.op_type == "Softmax":
            found = known.get(node.output[0])
            if found is None or found.elem_type == onnx.TensorProto.FLOAT16:
                dims = found.shape.dim if found is not None else ()
                most = max(most, (dims[-1].dim_value if dims else 0) or together)
    return most
