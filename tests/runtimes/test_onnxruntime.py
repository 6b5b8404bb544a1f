"""The ONNX Runtime backend: numerics of the graph, and inputs it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from tiny_export import SCHEMES, SHAPES, calibration, export, feeds

from vditc.errors import InputError, VditcError
from vditc.model_dir import ModelDir
from vditc.runtimes.onnxruntime import OnnxRuntimeModel

# Relative (L2), against plain ORT_ENABLE_BASIC. Weights are dequantized while loading, so MatMuls see a constant factor, pack it
# and sum in another order: float32 rounding, and codes of activations that differ by one where rounding meets a tie.
ROUNDING = 1e-5
FLIPS = 1.5e-3


def velocity(model: OnnxRuntimeModel, inputs: dict[str, Any], step: int) -> Any:
    return model(inputs, step)


@pytest.fixture(scope="module")
def static(tiny: ModelDir, tmp_path_factory: pytest.TempPathFactory) -> OnnxRuntimeModel:
    path = tmp_path_factory.mktemp("static") / "model.onnx"
    return OnnxRuntimeModel(export(tiny, calibration(tiny, SCHEMES["w8a8-static"]), path), threads=1)


@pytest.mark.parametrize(("name", "tolerance"), [("fp16", 0.0), ("w4a16", ROUNDING), ("w8a8", FLIPS), ("w8a8-static", FLIPS)])
def test_velocity_is_that_of_the_basic_level(tiny: ModelDir, tmp_path: Path, name: str, tolerance: float) -> None:
    path = export(tiny, calibration(tiny, SCHEMES[name]), tmp_path / "model.onnx")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.intra_op_num_threads = 1
    basic = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    inputs = feeds(4, *SHAPES[0])
    step = {"step": np.array([2])} if name == "w8a8-static" else {}
    want = basic.run(None, {**inputs, **step})[0]
    got = velocity(OnnxRuntimeModel(path, threads=1), inputs, 2)
    assert np.linalg.norm(got - want) <= tolerance * np.linalg.norm(want)


def test_step_selects_the_scales(static: OnnxRuntimeModel) -> None:
    inputs = feeds(5, *SHAPES[0])
    first, again, last = (velocity(static, inputs, step) for step in (0, 0, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, last)


@pytest.mark.parametrize("step", [-1, 3])
def test_step_without_a_row_is_bad_input(static: OnnxRuntimeModel, step: int) -> None:
    with pytest.raises(InputError, match=f"found step {step}; wanted 0 to 2"):
        velocity(static, feeds(6, *SHAPES[0]), step)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("hidden_states", (2, 3, 2, 8, 12), r"found hidden_states of shape \[2, 3, 2, 8, 12\]; wanted \[batch, 4, frames, height, width\]"),
        ("timestep", (1,), r"found timestep of shape \[1\]; wanted \[batch\] \(batch = 2, frames = 2"),
        ("encoder_hidden_states", (2, 5), r"found encoder_hidden_states of shape \[2, 5\]; wanted \[batch, text_tokens, 16\]"),
        ("hidden_states", (2, 4, 2, 8, 11), "wanted frames, height and width that the model's patches divide"),
    ],
)
def test_shapes_that_do_not_fit_are_bad_input(static: OnnxRuntimeModel, name: str, shape: tuple[int, ...], message: str) -> None:
    inputs = feeds(7, *SHAPES[0])
    inputs[name] = np.zeros(shape, np.float32)
    with pytest.raises(InputError, match=message):
        velocity(static, inputs, 0)


def test_more_positions_than_the_model_has_is_an_error(static: OnnxRuntimeModel) -> None:
    with pytest.raises(VditcError, match=r"wanted a velocity for latents \[1, 4, 33, 2, 2\]"):
        velocity(static, feeds(8, 1, 33, 2, 2, 5), 0)


def test_damaged_files_are_bad_input(tiny: ModelDir, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"missing\.onnx: found Load model .*File doesn't exist"):
        OnnxRuntimeModel(tmp_path / "missing.onnx")
    path = export(tiny, calibration(tiny, SCHEMES["w8a8"]), tmp_path / "model.onnx")
    data = path.with_name("model.onnx.data")
    data.write_bytes(data.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"can not be read in full"):
        OnnxRuntimeModel(path)


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cuda:0"])
def test_device_that_is_not_there_is_bad_input(tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(InputError, match=f"found device '{device}'; wanted auto or cpu; the installed ONNX Runtime has no CUDA provider"):
        OnnxRuntimeModel(tmp_path / "model.onnx", device=device)
