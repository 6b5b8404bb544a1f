"""The exported file: what it holds, and that it computes what PyTorch computes."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
import torch
from command import vditc
from tiny_export import FEW_BITS, SCHEMES, SHAPES, calibration, export, feeds, traced

from vditc.calibrate.stage import uncalibrated
from vditc.calibration import Calibration, LayerCalibration
from vditc.errors import InputError, PrecisionError
from vditc.export.adapters.wan import Wan
from vditc.export.check import check_codes
from vditc.export.linears import normalise_linears
from vditc.export.qdq import quantize_linears
from vditc.export.stage import check_calibration, export_model, insert_weights
from vditc.files import sha256
from vditc.model_dir import ModelDir
from vditc.numerics import EPS
from vditc.progress import SILENT
from vditc.recipe import Recipe
from vditc.schedule import Schedule

ALL = {**SCHEMES, **FEW_BITS}
FLOAT_TOLERANCE = 1e-4  # absolute, on outputs of size 10: float32 sums in another order
# Relative (L2). Both sides quantize in float32, but their MatMuls sum in another order, so an activation that lies within
# rounding of a tie gets a code that differs by one. One such code costs 1e-4 here, a dozen were seen (with two threads);
# quantization itself costs twice the limit.
FLIP_TOLERANCE = 1.5e-3
STEP = 1


class FakeQuantized(torch.nn.Module):
    """The canonical arithmetic of a quantized layer, written down once more."""

    def __init__(self, layer: LayerCalibration, bias: torch.Tensor) -> None:
        super().__init__()
        self.layer, self.bias = layer, bias
        self.weight = torch.from_numpy(layer.weight.read().dequantize().astype(layer.weight.value_dtype).astype(np.float32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        spec = self.layer.scheme.activation
        if spec is None:
            return x @ self.weight.T + self.bias
        if self.layer.activation_scale is None:
            scale = torch.clamp(x.abs().amax(-1, keepdim=True) / spec.qtype.high, min=EPS)
        else:
            scale = torch.tensor(self.layer.activation_scale.reshape(-1)[STEP if spec.per_step else 0])
        codes = torch.clamp(torch.round(x / scale), spec.qtype.low, spec.qtype.high)
        return codes @ self.weight.T * scale + self.bias


def run_torch(source: ModelDir, inputs: dict[str, Any], layers: dict[str, LayerCalibration]) -> npt.NDArray[np.float32]:
    model = Wan().load(source)
    for name, layer in layers.items():
        model.set_submodule(name, FakeQuantized(layer, model.get_submodule(name).bias))
    with torch.no_grad():
        velocity: npt.NDArray[np.float32] = Wan().forward(model, {n: torch.from_numpy(a) for n, a in inputs.items()}).numpy()
    return velocity


def run_basic(path: Path, inputs: dict[str, Any]) -> npt.NDArray[np.float32]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    extra = {"step": np.array([STEP])} if "step" in {i.name for i in session.get_inputs()} else {}
    velocity: npt.NDArray[np.float32] = session.run(None, {**inputs, **extra})[0]
    return velocity


def relative(got: npt.NDArray[Any], want: npt.NDArray[Any]) -> float:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def ops(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)


@pytest.mark.parametrize("shape", SHAPES)
def test_float_export_equals_torch_at_every_shape(tiny: ModelDir, tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = export(tiny, calibration(tiny, None), tmp_path / "model.onnx")
    inputs = feeds(0, *shape)
    np.testing.assert_allclose(run_basic(path, inputs), run_torch(tiny, inputs, {}), rtol=0, atol=FLOAT_TOLERANCE)


@pytest.mark.parametrize("name", [n for n, s in ALL.items() if s])
def test_quantized_export_equals_the_canonical_arithmetic(tiny: ModelDir, tmp_path: Path, name: str) -> None:
    calibrated = calibration(tiny, ALL[name])
    path = export(tiny, calibrated, tmp_path / "model.onnx")
    onnx.checker.check_model(path, full_check=True)
    inputs = feeds(1, *SHAPES[0])
    want, unquantized = run_torch(tiny, inputs, dict(calibrated.layers)), run_torch(tiny, inputs, {})
    activation = ALL[name].activation  # type: ignore[union-attr] # the floating-point one is left out above
    tolerance = FLIP_TOLERANCE * max(1.0, 31 / activation.qtype.high if activation else 0)  # the step that a flip makes
    assert relative(want, unquantized) > 1.5 * tolerance  # or else the next line could not fail
    assert relative(run_basic(path, inputs), want) <= tolerance


@pytest.mark.parametrize(("name", "dtype", "bits"), [("w8a8", "INT8", 8), ("w4a16", "INT4", 4), ("w3a8", "INT4", 4)])
def test_weights_are_stored_as_integers(tiny: ModelDir, tmp_path: Path, name: str, dtype: str, bits: int) -> None:
    calibrated = calibration(tiny, SCHEMES[name])
    path = export(tiny, calibrated, tmp_path / "model.onnx")
    tensors = {t.name: t for t in onnx.load(path, load_external_data=False).graph.initializer}
    for layer, quantized in calibrated.layers.items():
        tensor, (n, k) = tensors[f"{layer}.weight"], quantized.weight.shape
        assert tensor.data_type == getattr(onnx.TensorProto, dtype)
        assert list(tensor.dims) == [k, n]
        place = {e.key: e.value for e in tensor.external_data}
        assert place["location"] == "model.onnx.data"
        assert int(place["length"]) == n * k * bits // 8
        assert int(place["offset"]) % 64 == 0
    floats = [t.name for t in tensors.values() if t.data_type == onnx.TensorProto.FLOAT and np.prod(t.dims) > 2 * 32 * 64]
    assert floats == []  # nothing larger than a rotary table: no fake-quantized weight
    assert not any(t.data_type == onnx.TensorProto.DOUBLE for t in tensors.values())
    assert tensors["proj_out.weight"].data_type == onnx.TensorProto.FLOAT16  # what is kept has the checkpoint's type


def test_graph_is_portable_and_small(tiny: ModelDir, tmp_path: Path) -> None:
    path = export(tiny, calibration(tiny, SCHEMES["w8a8"]), tmp_path / "model.onnx")
    model = onnx.load(path, load_external_data=False)
    assert (model.ir_version, [(o.domain, o.version) for o in model.opset_import]) == (10, [("", 21)])
    assert not {"ScatterND", "SequenceAt", "SplitToSequence", "CastLike", "Identity", "Constant"} & set(ops(path))
    assert len(model.graph.value_info) == 0
    assert not any(n.metadata_props or n.doc_string for n in model.graph.node)
    names = [n.name for n in model.graph.node]
    assert len(set(names)) == len(names)
    assert {"blocks.1.ffn.net.2/MatMul", "blocks.1.ffn.net.2/Mul", "blocks.1.ffn.net.2/Add", "proj_out/MatMul"} <= set(names)
    dims = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*model.graph.input, *model.graph.output)}
    assert dims == {
        "hidden_states": ["batch", 4, "frames", "height", "width"],
        "timestep": ["batch"],
        "encoder_hidden_states": ["batch", "text_tokens", 16],
        "velocity": ["batch", 4, "frames", "height", "width"],
    }


def test_metadata_says_where_the_graph_came_from(tiny: ModelDir, tmp_path: Path) -> None:
    calibrated = calibration(tiny, SCHEMES["w4a16"])
    calibrated.save(tmp_path / "calibration.safetensors")
    path = export(tiny, Calibration.load(tmp_path / "calibration.safetensors"), tmp_path / "model.onnx")
    (entry,) = onnx.load(path, load_external_data=False).metadata_props
    about = json.loads(entry.value)
    assert entry.key == "vditc"
    assert about["model_digest"] == tiny.digest
    assert about["calibration_digest"] == sha256(tmp_path / "calibration.safetensors")
    assert about["timesteps"] == [1000.0, 800.0, 500.0]
    assert about["layers"] == {"W[int4 per_group(64)] A[float]": list(calibrated.layers)}


def test_a_graph_without_calibration_is_for_the_schedule_that_is_given(tiny: ModelDir) -> None:
    calibrated, walked = calibration(tiny, SCHEMES["w4a16"]), Schedule.flow(np.array([1.0, 0.5, 0.0]))
    found = []
    for known, given in ((None, None), (None, walked), (calibrated.schedule, walked)):
        model = traced(tiny)
        insert_weights(model, tiny, dataclasses.replace(calibrated, schedule=known), given)
        found.append(json.loads(model.metadata_props["vditc"])["timesteps"])
    assert found == [[], [1000.0, 500.0], [1000.0, 800.0, 500.0]]


@pytest.mark.parametrize(("arguments", "steps"), [((), 3), (("--steps", "7"), 7)])  # 3 in sampling.json
def test_the_schedule_on_the_command_line(tiny_dir: Path, tmp_path: Path, arguments: tuple[str, ...], steps: int) -> None:
    out = tmp_path / "model.onnx"
    run = vditc("export", str(tiny_dir), "--recipe", "fp16", *arguments, "-o", str(out))
    assert run.code == 0, run.stderr
    about = json.loads(onnx.load(out, load_external_data=False).metadata_props[0].value)
    assert len(about["timesteps"]) == steps and about["timesteps"][0] == 1000.0


def test_a_model_without_a_scheduler_has_no_schedule(tiny_dir: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "model", tmp_path / "model.onnx"
    shutil.copytree(tiny_dir, folder)
    shutil.rmtree(folder / "scheduler")
    run = vditc("export", str(folder), "--recipe", "fp16", "--steps", "7", "-o", str(out))
    assert run.code == 2 and "scheduler_config.json" in run.stderr
    run = vditc("export", str(folder), "--recipe", "fp16", "-o", str(out))
    assert run.code == 0 and "the graph is for no schedule in particular" in run.stderr, run.stderr
    assert json.loads(onnx.load(out, load_external_data=False).metadata_props[0].value)["timesteps"] == []


# Per block: norm1 (q, k, v), attn1 out, norm2 (q), attn2 out, two of the feed-forward: 6. The text (k, v of attn2): one for all blocks.
@pytest.mark.parametrize("name", ["w8a8", "w8a8-static", "w8a8-tensor"])
def test_readers_of_one_tensor_share_its_quantization(tiny: ModelDir, tmp_path: Path, name: str) -> None:
    path = export(tiny, calibration(tiny, SCHEMES[name]), tmp_path / "model.onnx")
    assert ops(path)["QuantizeLinear"] == 2 * 6 + 1


def test_unequal_static_scales_are_not_shared(tiny: ModelDir, tmp_path: Path) -> None:
    calibrated = calibration(tiny, SCHEMES["w8a8-static"], scales={"blocks.0.attn1.to_v": 0.05})
    assert ops(export(tiny, calibrated, tmp_path / "model.onnx"))["QuantizeLinear"] == 2 * 6 + 2


@pytest.mark.parametrize("name", ["w8a8", "w8a8-tensor", "w4a16"])
def test_step_is_an_input_only_where_a_table_needs_it(tiny: ModelDir, tmp_path: Path, name: str) -> None:
    inputs = onnx.load(export(tiny, calibration(tiny, SCHEMES[name]), tmp_path / "a.onnx"), load_external_data=False).graph.input
    assert [i.name for i in inputs] == ["hidden_states", "timestep", "encoder_hidden_states"]
    static = export(tiny, calibration(tiny, SCHEMES["w8a8-static"]), tmp_path / "b.onnx")
    assert [i.name for i in onnx.load(static, load_external_data=False).graph.input][3:] == ["step"]


def test_whole_stage_is_deterministic_and_reports_what_it_wrote(tiny: ModelDir, tmp_path: Path) -> None:
    calibrated = calibration(tiny, SCHEMES["w8a8-static"])
    first = export(tiny, calibrated, tmp_path / "first" / "model.onnx")
    out = tmp_path / "second" / "model.onnx"
    facts = export_model(source=tiny, adapter=Wan(), calibration=calibrated, out=out, progress=SILENT)  # traces anew
    assert out.read_bytes() == first.read_bytes()
    assert sorted(p.name for p in out.parent.iterdir()) == ["model.onnx", "model.onnx.data", "model.refit.json"]
    assert json.loads(out.with_name("model.refit.json").read_text())["model_digest"] == tiny.digest
    data = out.with_name("model.onnx.data")
    assert data.read_bytes() == first.with_name("model.onnx.data").read_bytes()
    assert (facts.graph_bytes, facts.data_bytes) == (out.stat().st_size, data.stat().st_size)
    assert facts.nodes == sum(ops(out).values())
    assert facts.layers == {"W[int8 per_channel] A[int8 per_tensor per_step]": 20}
    assert facts.inputs["step"] == (1,)


def test_tracer_never_sees_a_weight(tiny: ModelDir) -> None:
    values = traced(tiny).graph.initializers
    assert set(tiny.weights) <= set(values)
    assert all(values[name].const_value is None for name in tiny.weights)
    computed = sum(v.const_value.nbytes for v in values.values() if v.const_value is not None)
    assert computed < 20_000  # rotary tables, time frequencies and constants


def test_a_layer_that_the_graph_lacks_is_named(tiny: ModelDir) -> None:
    calibrated = calibration(tiny, SCHEMES["w8a8"])
    graph = traced(tiny).graph
    linears = normalise_linears(graph, tiny)
    del linears["blocks.0.ffn.net.2"]
    with pytest.raises(PrecisionError, match=r"1 calibrated layers without one MatMul of their own: blocks\.0\.ffn\.net\.2;"):
        quantize_linears(graph, linears, calibrated.layers)


def test_calibration_of_another_model_is_refused(tiny: ModelDir) -> None:
    calibrated = dataclasses.replace(calibration(tiny, None), model_digest="f" * 64)
    with pytest.raises(InputError, match=r"found model digest ffffffffffff; wanted"):
        check_calibration(tiny, Wan(), calibrated)


def test_calibration_that_forgets_a_layer_is_refused(tiny: ModelDir) -> None:
    calibrated = calibration(tiny, None)
    kept = {n: k for n, k in calibrated.kept.items() if n != "proj_out"}
    with pytest.raises(InputError, match="nothing about 1 layers of the model: proj_out;"):
        check_calibration(tiny, Wan(), dataclasses.replace(calibrated, kept=kept))
    more = {**calibrated.kept, "proj_in": calibrated.kept["proj_out"]}
    with pytest.raises(InputError, match="1 layers that the model has not: proj_in;"):
        check_calibration(tiny, Wan(), dataclasses.replace(calibrated, kept=more))


def test_table_of_another_schedule_is_refused(tiny: ModelDir) -> None:
    calibrated = dataclasses.replace(calibration(tiny, SCHEMES["w8a8-static"]), schedule=Schedule.flow(np.array([1.0, 0.5, 0.0])))
    with pytest.raises(InputError, match=r"found 3 activation scales or clips of layer .*; wanted one for each of 2 steps"):
        check_calibration(tiny, Wan(), calibrated)


def test_failure_while_writing_leaves_nothing(tiny: ModelDir, tmp_path: Path) -> None:
    calibrated = calibration(tiny, SCHEMES["w8a8"])
    entry = dataclasses.replace(tiny.weights["proj_out.weight"], path=tmp_path / "gone.safetensors")
    broken = dataclasses.replace(tiny, weights={**tiny.weights, "proj_out.weight": entry})
    with pytest.raises(FileNotFoundError):
        export_model(source=broken, adapter=Wan(), calibration=calibrated, out=tmp_path / "out" / "model.onnx", progress=SILENT)
    assert list((tmp_path / "out").iterdir()) == []


def test_without_a_calibration_file_the_same_graph_is_written(tiny: ModelDir, tmp_path: Path) -> None:
    recipe = Recipe.load("w4a8-rtn")
    ready = uncalibrated(source=tiny, adapter=Wan(), recipe=recipe)
    ready().save(tmp_path / "calibration.safetensors")
    for name, codes in (("a", ready), ("b", Calibration.load(tmp_path / "calibration.safetensors"))):
        export_model(source=tiny, adapter=Wan(), calibration=codes, out=tmp_path / name / "model.onnx", progress=SILENT)
    assert (tmp_path / "a" / "model.onnx.data").read_bytes() == (tmp_path / "b" / "model.onnx.data").read_bytes()
    check_codes(tmp_path / "a" / "model.onnx", ready())
    about = [json.loads(onnx.load(tmp_path / name / "model.onnx", load_external_data=False).metadata_props[0].value) for name in "ab"]
    assert about[0].pop("calibration_digest") is None and about[1].pop("calibration_digest") == sha256(tmp_path / "calibration.safetensors")
    assert about[0] == about[1]


def test_a_graph_with_another_code_is_found_out(tiny: ModelDir, tmp_path: Path) -> None:
    calibrated = calibration(tiny, SCHEMES["w4a16"])
    path = export(tiny, calibrated, tmp_path / "model.onnx")
    check_codes(path, calibrated)
    place = {
        e.key: e.value
        for t in onnx.load(path, load_external_data=False).graph.initializer
        if t.name == "blocks.0.attn1.to_q.weight"
        for e in t.external_data
    }
    with path.with_name("model.onnx.data").open("r+b") as f:
        f.seek(int(place["offset"]))
        byte = f.read(1)[0]
        f.seek(int(place["offset"]))
        f.write(bytes([byte ^ 1]))
    with pytest.raises(PrecisionError, match=r"other codes or scales in 1 layers, first blocks\.0\.attn1\.to_q"):
        check_codes(path, calibrated)
