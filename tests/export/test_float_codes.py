"""FP8 and NVFP4 in the portable graph: the same codes as in numpy, the same output as the reference, stored in 8 and 4 bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from tiny_export import FLOATS, SHAPES, calibration, export, feeds

from vditc.calibration import Calibration
from vditc.errors import InputError, PrecisionError
from vditc.export.adapters.wan import Wan
from vditc.export.check import check_codes
from vditc.export.qdq_float import VALUES, nvfp4_activation
from vditc.export.refit import refit_map
from vditc.float_codes import E4M3, from_nvfp4, nvfp4, to_codes
from vditc.graph_passes.facts import graph_facts
from vditc.graph_passes.spec import Spec
from vditc.graph_passes.stage import lower
from vditc.model_dir import ModelDir
from vditc.numerics import QType
from vditc.progress import SILENT
from vditc.recipe import Recipe
from vditc.runtimes.onnxruntime import OnnxRuntimeModel, session_options
from vditc.runtimes.reference import ReferenceModel
from vditc.target import Target, builtin_targets

F32 = np.float32
STEP = 1
# Relative (L2). float32 sums in another order: measured 3e-7.
SUM_TOLERANCE = 1e-4
# Where a sum's order moves an activation over a tie, its code is the next one: of E4M3 an eighth of the value at most. One in a hundred
# thousand values does, on processors that differ, and costs 1e-3.
FLIP_TOLERANCE = 3e-3
SCALES = {"fp8-static": 0.005, "fp8-tensor": 0.005, "nvfp4": 0.001}  # that clip a few inputs


@pytest.fixture(scope="module", params=list(FLOATS))
def exported(request: pytest.FixtureRequest, tiny: ModelDir, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Calibration, Path]:
    """One graph of each scheme."""
    name = request.param
    known = Wan().layer_roles(tiny)
    made = calibration(tiny, FLOATS[name], scales=dict.fromkeys(known, SCALES.get(name, 1.0)))
    folder = tmp_path_factory.mktemp(name)
    made.save(folder / "calibration.safetensors")
    made = Calibration.load(folder / "calibration.safetensors")
    return name, made, export(tiny, made, folder / "model.onnx")


def relative(got: npt.NDArray[Any], want: npt.NDArray[Any]) -> float:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


@pytest.mark.parametrize("shape", SHAPES)
def test_graph_and_lowered_graph_compute_what_the_reference_does(
    tiny: ModelDir, exported: tuple[str, Calibration, Path], shape: tuple[int, ...], tmp_path: Path
) -> None:
    """At every input but for flipped codes, and at one of them without any: a systematic error is in all of them."""
    _, made, path = exported
    lower(model=path, target=Target.load("cpu"), out=tmp_path / "lowered.onnx", progress=SILENT, keep_time_path=True)
    reference, unquantized = ReferenceModel(Wan(), tiny, made), ReferenceModel(Wan(), tiny, None)
    graph, lowered = OnnxRuntimeModel(path), OnnxRuntimeModel(tmp_path / "lowered.onnx")
    differences = []
    for seed in range(1, 4):
        inputs = feeds(seed, *shape)
        wanted, found = reference(inputs, STEP), graph(inputs, STEP)
        assert relative(wanted, unquantized(inputs, STEP)) > 2 * FLIP_TOLERANCE  # or else the next lines could not fail
        differences.append((relative(found, wanted), relative(lowered(inputs, STEP), found)))
    assert np.max(differences) <= FLIP_TOLERANCE
    assert (np.min(differences, 0) <= SUM_TOLERANCE).all(), differences


def test_graph_is_portable_and_of_the_dialect(exported: tuple[str, Calibration, Path]) -> None:
    _, made, path = exported
    onnx.checker.check_model(str(path), full_check=True)
    Spec.canonical().verify(ir.load(path), where=str(path))
    check_codes(path, made)


def test_inspect_knows_the_operands(exported: tuple[str, Calibration, Path]) -> None:
    name, made, path = exported
    kind = "nvfp4" if name.startswith("nvfp4") else "float8e4m3fn"
    first = "float" if name in ("fp8-weights", "fp8-blocks", "nvfp4-weights") else kind
    assert graph_facts(path)["matrix_products"][f"{first} x {kind}"] == len(made.layers) == 20


def test_weights_are_stored_in_their_bits(exported: tuple[str, Calibration, Path]) -> None:
    name, made, path = exported
    tensors = {t.name: t for t in onnx.load(path, load_external_data=False).graph.initializer}
    fp4 = name.startswith("nvfp4")
    for layer, quantized in made.layers.items():
        codes, scale, (n, k) = tensors[f"{layer}.weight"], tensors[f"{layer}.weight_scale"], quantized.weight.shape
        assert codes.data_type == (onnx.TensorProto.UINT4 if fp4 else onnx.TensorProto.FLOAT8E4M3FN) and list(codes.dims) == [k, n]
        assert int({e.key: e.value for e in codes.external_data}["length"]) == n * k // (2 if fp4 else 1)
        if fp4:
            assert scale.data_type == onnx.TensorProto.FLOAT8E4M3FN and list(scale.dims) == [k // 16, n]
            assert tensors[f"{layer}.weight_tensor_scale"].data_type == onnx.TensorProto.FLOAT
    floats = [t.name for t in tensors.values() if t.data_type == onnx.TensorProto.FLOAT and np.prod(t.dims) > 2 * 32 * 64]
    assert floats == []


def test_refit_map_knows_all_parts_of_a_weight(tiny: ModelDir, exported: tuple[str, Calibration, Path]) -> None:
    name, made, path = exported
    entries = refit_map(ir.load(path).graph, tiny, made, made.layers)["initialisers"]
    parts = {"": "codes uint4 [K,N] of W", "_scale": "scale float8_e4m3fn of W", "_tensor_scale": "tensor_scale float32 of W"}
    if not name.startswith("nvfp4"):
        dtype = "float32" if made.layers["blocks.0.ffn.net.2"].scheme.activation else "float16"
        parts = {"": "codes float8_e4m3fn [K,N] of W", "_scale": f"scale {dtype} of W"}
    for part, transform in parts.items():
        entry = entries[f"blocks.0.ffn.net.2.weight{part}"]
        assert (entry["transform"], entry["sources"]) == (transform, ["blocks.0.ffn.net.2.weight"])


def test_a_graph_with_another_code_is_found_out(exported: tuple[str, Calibration, Path], tmp_path: Path) -> None:
    name, made, path = exported
    for part in ("weight", "weight_scale", *(["weight_tensor_scale"] if name.startswith("nvfp4") else [])):
        model = onnx.load(path)
        tensor = next(t for t in model.graph.initializer if t.name == f"blocks.1.attn1.to_q.{part}")
        tensor.raw_data = bytes([tensor.raw_data[0] ^ 1, *tensor.raw_data[1:]])
        onnx.save(model, tmp_path / f"{part}.onnx")
        with pytest.raises(PrecisionError, match=r"other codes or scales in 1 layers, first blocks\.1\.attn1\.to_q"):
            check_codes(tmp_path / f"{part}.onnx", made)


def with_outputs(path: Path, values: dict[str, int], inputs: dict[str, Any]) -> dict[str, Any]:
    """What ONNX Runtime computes for inner values (name -> element type)."""
    model = onnx.load(path)
    model.graph.output.extend(onnx.helper.make_tensor_value_info(v, kind, None) for v, kind in values.items())
    session = ort.InferenceSession(model.SerializeToString(), session_options(), providers=["CPUExecutionProvider"])
    return dict(zip(values, session.run(list(values), inputs), strict=True))


def test_codes_of_activations_are_those_of_numpy(exported: tuple[str, Calibration, Path]) -> None:
    """Dequantized inputs of the first block's queries, in the graph and by vditc.float_codes, bit for bit."""
    name, made, path = exported
    layer = made.layers["blocks.0.attn1.to_q"]
    if layer.scheme.activation is None:
        return
    last = {"nvfp4": "Reshape_nvfp4"}.get(name, "DequantizeLinear")
    model = ir.load(path)
    first = next(
        n
        for n in model.graph
        if n.name
        == "blocks.0.attn1.to_q/" + {"nvfp4": "Reshape_nvfp4_blocks"}.get(name, "QuantizeLinear" if name == "fp8-tensor" else "Div")
    )
    x_name, out_name = str(first.inputs[0].name), f"blocks.0.attn1.to_q/{last}"  # type: ignore[union-attr] # no optional input
    step = {"step": np.array([STEP])} if name == "fp8-static" else {}
    found = with_outputs(path, dict.fromkeys((x_name, out_name), onnx.TensorProto.FLOAT), {**feeds(3, *SHAPES[0]), **step})
    x, static = found[x_name], layer.activation_scale
    if name == "nvfp4":
        assert static is not None
        wanted = from_nvfp4(*nvfp4(x, static), static)
        assert (np.abs(x) > 6 * 448 * static).any()  # some saturate
    elif static is None:
        scale = np.maximum(np.abs(x).max(-1, keepdims=True) / F32(448), F32(1e-8))
        wanted = to_codes(x / scale, QType.FP8_E4M3).astype(F32)
    else:
        scale = static.reshape(-1)[STEP if static.ndim else 0]
        wanted = to_codes(x / scale, QType.FP8_E4M3).astype(F32) * (1 if static.ndim else scale)
        assert (np.abs(x) > 448 * scale).any()
    np.testing.assert_array_equal(found[out_name], wanted)


class Emitted:
    """A graph of nothing but one quantized activation."""

    def __init__(self) -> None:
        self.x = ir.Input("x", ir.Shape(["a", "b", 32]), ir.TensorType(ir.DataType.FLOAT))
        self.graph = ir.Graph([self.x], [], nodes=[], opset_imports={"": 21}, name="g")

    def op(self, kind: str, *inputs: ir.Value, scope: str = "", suffix: str = "", **attributes: Any) -> ir.Value:
        node = ir.node(kind, inputs, attributes, name=f"{scope}/{kind}_{suffix}")
        node.outputs[0].name = node.name
        self.graph.append(node)
        return node.outputs[0]

    def constant(self, name: str, array: Any) -> ir.Value:
        if name not in self.graph.initializers:
            tensor = ir.tensor(np.asarray(array), name=name)
            self.graph.register_initializer(
                ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(np.shape(array)), const_value=tensor)
            )
        return self.graph.initializers[name]


def test_every_tie_subnormal_and_zero_of_nvfp4_in_the_graph() -> None:
    t = np.array(0.25, F32)
    emitted = Emitted()
    out = nvfp4_activation(emitted, emitted.x, 32, emitted.constant("t", t))
    out.type = ir.TensorType(ir.DataType.FLOAT)
    out.shape = ir.Shape(["a", "b", 32])
    emitted.graph.outputs.append(out)
    model = ir.to_proto(ir.Model(emitted.graph, ir_version=10))
    ties = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, 6, -0.25, -0.75, -1.25, -1.75, -2.5, -3.5, -5, 0], F32)
    sizes = F32(2.0) ** np.arange(-20, 14, 2).astype(F32)  # below the least block scale to beyond the greatest
    x = np.zeros((2, len(sizes), 32), F32)
    x[0, :, :16] = ties * sizes[:, None]
    x[1] = np.random.default_rng(0).standard_normal((len(sizes), 32)).astype(F32) * sizes[:, None]
    session = ort.InferenceSession(model.SerializeToString(), session_options(), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], from_nvfp4(*nvfp4(x, t), t))
    assert {str(n.name).rpartition("_nvfp4")[1] for n in emitted.graph} == {"_nvfp4"}  # a pass finds all of it


def test_onnxruntime_decodes_all_codes() -> None:
    """All 256 E4M3 codes by DequantizeLinear, and the table of the 16 E2M1 codes."""
    codes = np.arange(256, dtype=np.uint8)
    tensor = onnx.helper.make_tensor("c", onnx.TensorProto.FLOAT8E4M3FN, [256], codes.tobytes(), raw=True)
    scale = onnx.numpy_helper.from_array(np.array(1, F32), "s")
    node = onnx.helper.make_node("DequantizeLinear", ["c", "s"], ["y"])
    graph = onnx.helper.make_graph(
        [node], "g", [], [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [256])], [tensor, scale]
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), session_options(), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(None, {})[0], codes.view(E4M3).astype(F32))
    assert VALUES.tolist() == [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6] and np.signbit(VALUES[8])


def test_readers_of_one_tensor_share_its_quantization(exported: tuple[str, Calibration, Path]) -> None:
    name, made, path = exported
    count = sum(n.op_type == "QuantizeLinear" for n in onnx.load(path, load_external_data=False).graph.node)
    # Per block: norm1 (q, k, v), attn1 out, norm2 (q), attn2 out, two of the feed-forward; and the text, of all blocks, once.
    assert count == (0 if made.layers["blocks.0.attn1.to_q"].scheme.activation is None else 2 * 6 + 1), name


@pytest.mark.parametrize("target", [t for t in builtin_targets() if t != "cpu"])
def test_targets_without_a_lowering_refuse_nvfp4(target: str) -> None:
    with pytest.raises(InputError, match=rf"target {target} .*recipe nvfp4: W\[fp4_e2m1 .*(exist from Blackwell|NVFP4 needs TensorRT)"):
        Target.load(target).check(Recipe.load("nvfp4"))
