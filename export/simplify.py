"""From the exporter's raw graph to a small readable one: constants folded and shared, reshapes constant, nodes named by module."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript.optimizer import fold_constants

from vditc.adapter import Loop
from vditc.export.scopes import MODEL, module_path
from vditc.export.stamp import stamp

_FOLD_LIMIT = 1024  # elements; what is larger is a weight or a table and stays as it is


def simplify(model: ir.Model, loops: Sequence[Loop] = ()) -> None:
    """Rewrite in place, and stamp out the iterations of `loops` that were not traced.

    Values are named like the nodes that make them, `module.path/OpType`, constants `const.0`, ...; initialisers come in the order
    of their first use.
    """
    common.InlinePass()(model)
    fold_constants(
        model,
        input_size_limit=_FOLD_LIMIT,
        output_size_limit=_FOLD_LIMIT,
        should_fold=lambda node: False if node.op_type == "Transpose" else None,  # it would read and keep every weight
    )
    _make_reshapes_constant(model.graph)
    common.RemoveUnusedNodesPass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    stamp(model.graph, loops)
    _share_constants(model.graph)
    ir.passes.Sequential(
        common.CommonSubexpressionEliminationPass(),
        common.IdentityEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.TopologicalSortPass(),
    )(model)
    _rename(model.graph)
    common.ClearMetadataAndDocStringPass()(model)


def _make_reshapes_constant(graph: ir.Graph) -> None:
    """Reshape(x, Concat(batch, tokens, 3, 64)) -> Reshape(x, [0, 0, 3, 64]): 0 copies x's size, one -1 takes what is left."""
    for node in graph:
        if node.op_type != "Reshape":
            continue
        x, target = node.inputs
        assert x is not None and target is not None
        before, after = x.shape, node.outputs[0].shape
        if before is None or after is None or ir.convenience.get_const_tensor(target) is not None:
            continue
        sizes = [size if isinstance(size, int) else 0 if i < len(before) and before[i] == size else -1 for i, size in enumerate(after)]
        if sizes.count(-1) > 1:
            continue
        constant = ir.node("Constant", [], {"value": ir.tensor(np.array(sizes, np.int64))})
        constant.outputs[0].type, constant.outputs[0].shape = ir.TensorType(ir.DataType.INT64), ir.Shape([len(sizes)])
        graph.insert_before(node, constant)
        node.replace_input_with(1, constant.outputs[0])
        node.attributes["allowzero"] = ir.AttrInt64("allowzero", 0)


def _share_constants(graph: ir.Graph) -> None:
    """Keep one of equal constants and tables; parameters, which have no value yet, are left alone."""
    first: dict[tuple[ir.DataType, tuple[int, ...], bytes], ir.Value] = {}
    for value in list(graph.initializers.values()):
        tensor = value.const_value
        if tensor is None:
            continue
        same = first.setdefault((tensor.dtype, tuple(tensor.numpy().shape), tensor.tobytes()), value)
        if same is not value:
            value.replace_all_uses_with(same)
            del graph.initializers[str(value.name)]


def _rename(graph: ir.Graph) -> None:
    kept = {id(v) for v in (*graph.inputs, *graph.outputs)}
    seen: Counter[str] = Counter()
    for node in graph:
        path = module_path(node)
        name = f"{path}/{node.op_type}" if path else node.op_type
        seen[name] += 1
        node.name = name if seen[name] == 1 else f"{name}_{seen[name]}"
        for i, value in enumerate(node.outputs):
            if id(value) not in kept:
                value.name = node.name if i == 0 else f"{node.name}:{i}"
    order = {id(node): i for i, node in enumerate(graph)}
    values = sorted(graph.initializers.values(), key=lambda v: min((order[id(u.node)], u.idx) for u in v.uses()))
    graph.initializers.clear()
    for value in values:  # in the order of their first use
        graph.initializers.add(value)
    constants = 0
    for name, value in list(graph.initializers.items()):
        if name.startswith(f"{MODEL}."):  # a table that the adapter computed
            value.name = name.removeprefix(f"{MODEL}.")
        elif value.const_value is not None:
            value.name = f"const.{constants}"
            constants += 1
