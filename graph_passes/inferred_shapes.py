"""Shapes of everything that a graph computes, by ONNX's own inference, without its weights and without a second graph."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from vditc.graph_passes.patterns import SMALL
from vditc.plugins.schemas import register

Shape = tuple[int | None, ...]


def why_not_spread(own: Shape, whole: Shape) -> str:
    """Why the plugin library's operators do not repeat a tensor of the shape `own` for one of the shape `whole`; "" if they do.

    Wanted: no more axes, the last one whole, and axes along which it differs next to each other. A size that is not fixed counts as
    more than 1.
    """
    if not own or len(own) > len(whole) or (None not in (own[-1], whole[-1]) and own[-1] != whole[-1]):
        return "is no vector of its channels"
    own = (1,) * (len(whole) - len(own)) + own
    along = [i for i, size in enumerate(own[:-1]) if size != 1]
    if any((own[i] != whole[i] and None not in (own[i], whole[i])) or whole[i] == 1 for i in along):
        return "has more tokens"
    if along and any(own[i] == 1 != whole[i] for i in range(along[0], along[-1])):
        return "is repeated between axes along which it differs"
    return ""


def inferred_shapes(graph: ir.Graph) -> dict[str, Shape]:
    """Name -> sizes, None where they are not fixed; values whose shape is not known are not in it. The graph stays as it is.

    Constants of up to `SMALL` elements take part with their values, as shapes do; of larger ones the inference is told type and shape.
    """
    register()  # the operators of the plugin library
    inputs = [ir.serde.serialize_value(v) for v in graph.inputs]
    constants: list[onnx.TensorProto] = []
    for name, value in graph.initializers.items():
        tensor = value.const_value
        if tensor is None:
            continue
        if tensor.size <= SMALL:
            constants.append(onnx.TensorProto(name=name, dims=tensor.shape.numpy(), data_type=int(tensor.dtype), raw_data=tensor.tobytes()))
        else:
            inputs.append(onnx.helper.make_tensor_value_info(name, int(tensor.dtype), tensor.shape.numpy()))
    proto = onnx.GraphProto(
        name="shapes",
        node=[ir.serde.serialize_node(node) for node in graph],
        input=inputs,
        output=[ir.serde.serialize_value(v) for v in graph.outputs],
        initializer=constants,
    )
    opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in graph.opset_imports.items()]
    model = onnx.helper.make_model(proto, opset_imports=opsets, ir_version=10)
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    found: dict[str, Shape] = {c.name: tuple(c.dims) for c in constants}
    for info in (*inferred.input, *inferred.value_info, *inferred.output):
        if info.type.tensor_type.HasField("shape"):
            found[info.name] = tuple(d.dim_value if d.HasField("dim_value") else None for d in info.type.tensor_type.shape.dim)
    return found
