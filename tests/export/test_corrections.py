"""Asymmetric weights, shifts, clips and corrections: the graph says what the reference computes, and the reference what is meant."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from corrected_layers import ALL, of
from tiny_export import SHAPES, calibration, export, feeds
from tolerances import relative_l2

from vditc.calibration import Calibration, LayerCalibration
from vditc.correction import Correction, FrameOrder
from vditc.export.adapters.wan import Wan
from vditc.export.check import check_codes
from vditc.graph_passes.spec import Spec
from vditc.graph_passes.stage import lower
from vditc.model_dir import ModelDir
from vditc.numerics import Granularity, QType
from vditc.pipeline.check_export import check_export
from vditc.progress import SILENT
from vditc.runtimes.onnxruntime import OnnxRuntimeModel, session_options
from vditc.runtimes.reference import QuantizedLinear, ReferenceModel
from vditc.scheme import QTensor, QuantSpec, Scheme
from vditc.target import Target
from vditc.transform import IDENTITY, Transform

F32 = np.float32
FLIPS = {None: 1e-5, 8: 1.5e-3, 4: 3e-2}  # of codes at a tie; see tests/export/test_stage.py

KINDS = ("zero point", "shift", "correction", "clip", "all")
CASES = [(s, k) for s in ("w8a8", "w4a8", "w4a16", "w8a4", "w8a8-static", "w8a8-tensor") for k in KINDS]
NOTHING = {("w4a16", "zero point"), ("w4a16", "clip"), ("w8a8-static", "clip"), ("w8a8-tensor", "clip")}


@pytest.mark.parametrize(("scheme", "kind"), [case for case in CASES if case not in NOTHING])
def test_the_graph_is_the_reference(tiny: ModelDir, tmp_path: Path, scheme: str, kind: str) -> None:
    known = of(tiny, scheme, kind)
    known.save(tmp_path / "c")
    path = export(tiny, Calibration.load(tmp_path / "c"), tmp_path / "model.onnx")
    onnx.checker.check_model(path, full_check=True)
    Spec.canonical().verify(ir.load(path), where="here")
    check_codes(path, known)
    activation = next(iter(known.layers.values())).scheme.activation
    inputs = feeds(0, *SHAPES[0])
    want = ReferenceModel(Wan(), tiny, known)(inputs, 1)
    # A static step is larger than that of most tokens' own scales, and so is what a flip at a tie does.
    limit = FLIPS[activation.qtype.bits if activation else None] * (3 if activation and not activation.dynamic else 1)
    assert relative_l2(OnnxRuntimeModel(path, threads=1)(inputs, 1), want) <= limit
    plain = ReferenceModel(Wan(), tiny, calibration(tiny, ALL[scheme]))(inputs, 1)
    assert relative_l2(plain, want) > 1e-3  # what were left out would be seen
    if kind in ("clip", "all") and activation is not None and activation.dynamic:
        assert relative_l2(ReferenceModel(Wan(), tiny, known)(inputs, 2), want) > 1e-3


def test_check_codes_sees_another_zero_point(tiny: ModelDir, tmp_path: Path) -> None:
    known = of(tiny, "w8a8", "zero point")
    path = export(tiny, known, tmp_path / "model.onnx")
    name, layer = next(iter(known.layers.items()))
    weight = layer.weight.read()
    assert weight.zero_point is not None
    other = dataclasses.replace(layer, weight=dataclasses.replace(weight, zero_point=weight.zero_point + 1))
    with pytest.raises(Exception, match=f"1 layers, first {name}"):
        check_codes(path, dataclasses.replace(known, layers={**known.layers, name: other}))


def test_layers_that_share_an_input_share_its_sum(tiny: ModelDir, tmp_path: Path) -> None:
    path = export(tiny, of(tiny, "w8a8", "zero point"), tmp_path / "model.onnx")
    kinds = Counter(str(node.name).rsplit("/", 1)[1] for node in ir.load(path).graph if "/" in str(node.name))
    # In each of 2 blocks: self-attention's q, k and v together, its output, cross-attention's q, k and v together, output, two of the ffn.
    assert kinds["ReduceSum_total"] == kinds["QuantizeLinear"] and kinds["Add_zero_point"] == 20


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8"])
def test_the_lowered_graph_computes_the_same(tiny: ModelDir, tmp_path: Path, scheme: str) -> None:
    """Sums over channels and what they are multiplied with stay in float32."""
    path = export(tiny, of(tiny, scheme, "all"), tmp_path / "model.onnx")
    lower(model=path, target=Target.load("rtx-ada"), out=tmp_path / "lowered.onnx", progress=SILENT, keep_time_path=True)
    inputs = feeds(0, *SHAPES[0]) | {"step": np.array([1], np.int64)}
    found = [
        ort.InferenceSession(str(p), session_options(), providers=["CPUExecutionProvider"]).run(None, inputs)[0]
        for p in (path, tmp_path / "lowered.onnx")
    ]
    assert relative_l2(found[1], found[0]) < 0.02  # float16
    lowered = ir.load(tmp_path / "lowered.onnx")
    kinds = {str(v.name): v.dtype for node in lowered.graph for v in node.outputs}
    sums = [name for name in kinds if "/ReduceSum" in name or "/Add_zero_point" in name]
    assert len(sums) > 40 and all(kinds[name] in (None, ir.DataType.FLOAT) for name in sums)
    casts = {use.node.op_type for node in lowered.graph if str(node.name).endswith("/DequantizeLinear") for use in node.outputs[0].uses()}
    assert "Cast" not in casts


def layer(correction: Correction, shift: list[float] | None = None) -> QuantizedLinear:
    weight = QTensor(
        np.array([[1, 2], [3, -4]], np.int8),
        np.array([0.5, 1], F32),
        QuantSpec(qtype=QType.INT4, granularity=Granularity.PER_CHANNEL, symmetric=False),
        np.array([0.5, -1], F32),
    )
    scheme = Scheme(weight=weight.spec, activation=QuantSpec(qtype=QType.INT8, granularity=Granularity.PER_TOKEN, dynamic=True))
    transform = IDENTITY if shift is None else Transform(shift=np.array(shift, F32))
    return QuantizedLinear(LayerCalibration(role="head", scheme=scheme, weight=weight, transform=transform, correction=correction), None)


def test_a_linear_by_hand() -> None:
    """x = (127, 2): codes are themselves. Rows of W are .5 (1 - .5, 2 - .5) = (.25, .75) and (3 + 1, -4 + 1) = (4, -3)."""
    x = torch.tensor([[127.0, 2.0]])
    np.testing.assert_array_equal(layer(Correction())(x).numpy(), [[0.25 * 127 + 0.75 * 2, 4 * 127 - 3 * 2]])
    bias = Correction(bias=np.array([1, 2], F32))
    np.testing.assert_array_equal(layer(bias, [1, 1])(x + 1).numpy(), [[0.25 * 127 + 0.75 * 2 + 1, 4 * 127 - 3 * 2 + 2]])
    rank1 = Correction(alpha=np.array([0, 1], F32), beta=np.array([10, 100], F32))
    np.testing.assert_array_equal(layer(rank1)(x).numpy(), [[33.25 + 20, 502 + 200]])


@pytest.mark.parametrize(("order", "factors"), [(FrameOrder.FRAMES_FIRST, [1, 1, 3, 3] * 2), (FrameOrder.TOKENS_FIRST, [1, 3, 1, 3] * 2)])
def test_every_frame_has_its_factor(order: FrameOrder, factors: list[int]) -> None:
    """Two clips of two frames of two tokens, in any number of axes."""
    x = torch.tensor([[127.0, 2.0]] * 8)
    correction = Correction(alpha=np.array([0, 1], F32), beta=np.array([10, 0], F32), frames=np.array([1, 3], F32), order=order)
    for shape in ((2, 4, 2), (4, 2, 2), (2, 2, 2, 2)):
        module = layer(correction)
        module.clips = 2
        found = module(x.reshape(shape)).reshape(8, 2).numpy()
        np.testing.assert_array_equal(found[:, 0], 33.25 + 20 * np.array(factors))


def test_clips_go_with_the_step() -> None:
    module = layer(Correction())
    known = dataclasses.replace(module.layer, activation_clip=np.array([1, 0.5], F32))
    module = QuantizedLinear(known, None)
    module.step = 1
    # Half of 254 is the range: 254 is cut to 127, 3 to 3.
    np.testing.assert_array_equal(module(torch.tensor([[254.0, 3.0]])).numpy(), [[0.25 * 127 + 0.75 * 3, 4 * 127 - 3 * 3]])
    with pytest.raises(ValueError, match="activation_clip"):
        dataclasses.replace(known, activation_clip=np.array([1, 1.5], F32))


def test_what_a_correction_cannot_be() -> None:
    one = np.ones(2, F32)
    with pytest.raises(ValueError, match="alpha without beta"):
        Correction(alpha=one)
    with pytest.raises(ValueError, match="frames without alpha"):
        Correction(frames=one, order=FrameOrder.FRAMES_FIRST)
    with pytest.raises(ValueError, match="not finite"):
        Correction(bias=one * np.nan)


def test_a_graph_of_one_clip_length_is_checked_at_that_length(tiny: ModelDir, tmp_path: Path) -> None:
    known = dataclasses.replace(of(tiny, "w8a8", "all"), latent_frames=2)
    path = export(tiny, known, tmp_path / "model.onnx")
    found = check_export(path, source=tiny, adapter=Wan(), calibration=known, progress=SILENT)
    assert [p.sizes["frames"] for p in found] == [2, 2, 2] and [p.sizes["batch"] for p in found] == [2, 3, 1]
    assert [d for v in ir.load(path).graph.inputs if v.name == "hidden_states" for d in v.shape or ()][2] == 2
