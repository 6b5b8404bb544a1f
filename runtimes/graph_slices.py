"""Run a graph in ONNX Runtime a slice of nodes at a time, so that memory holds a few weights and not the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from vditc.progress import SILENT, Progress
from vditc.runtimes.onnxruntime import session_options

Array = npt.NDArray[Any]
SLICE_BYTES = 2 << 30  # of weights as float32: one block of a 14B model takes 1.4 GB


def run_in_slices(
    model: Path,
    feeds: Sequence[Mapping[str, Array]],
    budget: int = SLICE_BYTES,
    progress: Progress = SILENT,
) -> list[list[Array]]:
    """`run_slices` of a file."""
    return run_slices(onnx.load(model, load_external_data=False), model.parent, feeds, budget, progress)


def run_slices(
    model: onnx.ModelProto,
    folder: Path,
    feeds: Sequence[Mapping[str, Array]],
    budget: int = SLICE_BYTES,
    progress: Progress = SILENT,
) -> list[list[Array]]:
    """The graph's outputs for each of `feeds`, every slice loaded once; weights that it only refers to lie in `folder`.

    Slices are neighbouring nodes in the graph's order whose weights, as float32, take at most `budget` bytes (or one node). Between
    two slices only the activations that are still needed are kept. Numerics are those of the whole graph at ORT_ENABLE_BASIC, up to
    the order of sums.
    """
    slices = list(_slices(model.graph, budget))
    last_use = {name: i for i, nodes in enumerate(slices) for node in nodes for name in node.input}
    outputs = [output.name for output in model.graph.output]
    last_use |= dict.fromkeys(outputs, len(slices))
    live: list[dict[str, Array]] = [dict(f) for f in feeds]
    with progress.task("run the graph", len(slices)) as advance:
        for i, nodes in enumerate(slices):
            made = {name for node in nodes for name in node.output}
            wanted = sorted(name for name in made if last_use.get(name, -1) > i)
            session = _session(model, nodes, live[0], wanted, folder)
            inputs = [value.name for value in session.get_inputs()]
            for values in live:
                found = session.run(wanted, {name: values[name] for name in inputs})
                values.update(zip(wanted, found, strict=True))
                for name in [name for name in values if last_use.get(name, -1) <= i]:
                    del values[name]
            del session
            advance()
    return [[values[output] for output in outputs] for values in live]


def _slices(graph: onnx.GraphProto, budget: int) -> Iterator[list[onnx.NodeProto]]:
    sizes = {t.name: 4 * int(np.prod(t.dims)) for t in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    weight = 0
    for node in graph.node:
        own = sum(sizes.get(name, 0) for name in node.input)
        if nodes and weight + own > budget and not _makes_float8(nodes[-1]):
            yield nodes
            nodes, weight = [], 0
        nodes.append(node)
        weight += own
    yield nodes


def _makes_float8(node: onnx.NodeProto) -> bool:
    """Whether a node gives FP8 codes, which numpy has no type for: ONNX Runtime would hand them over as whole numbers.

    The DequantizeLinear that reads them is the next node.
    """
    return node.op_type == "QuantizeLinear" and any(
        a.name == "output_dtype" and a.i == onnx.TensorProto.FLOAT8E4M3FN for a in node.attribute
    )


def _session(
    model: onnx.ModelProto, nodes: list[onnx.NodeProto], live: Mapping[str, Array], outputs: list[str], folder: Path
) -> ort.InferenceSession:
    used = {name for node in nodes for name in node.input}
    initializers = [t for t in model.graph.initializer if t.name in used]
    known = {t.name for t in initializers} | {name for node in nodes for name in node.output}
    inputs = [
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(live[name].dtype), [None] * live[name].ndim)
        for name in sorted(used & set(live) - known)
    ]
    graph = onnx.helper.make_graph(nodes, "slice", inputs, [onnx.ValueInfoProto(name=name) for name in outputs], initializers)
    piece = onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version, functions=model.functions)
    options = session_options()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    return ort.InferenceSession(piece.SerializeToString(), options, providers=["CPUExecutionProvider"])
