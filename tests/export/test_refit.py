"""The refit map: every initialiser is in it, and following it from the checkpoint gives the stored bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from tiny_export import SCHEMES, calibration, traced

from vditc.calibration import Calibration
from vditc.export.refit import refit_map, to_text
from vditc.export.stage import insert_weights
from vditc.export.write import write_model
from vditc.lora import Lora, fuse
from vditc.model_dir import ModelDir
from vditc.safetensors_file import write_tensors
from vditc.scheme import quantize_weight

FUSED = ("blocks.0.attn1.to_q.weight", "proj_out.weight", "scale_shift_table")


@pytest.fixture
def fused(tiny: ModelDir, tmp_path: Path, rng: np.random.Generator) -> ModelDir:
    """The tiny model with something added to a quantized layer, a kept one and a table."""
    keys = ("blocks.0.attn1.to_q.diff", "proj_out.diff", "diffusion_model.head.diff_m")
    differences = {k: rng.standard_normal(tiny.weights[n].shape, np.float32) for k, n in zip(keys, FUSED, strict=True)}
    write_tensors(tmp_path / "lora.safetensors", differences)
    return fuse(tiny, [Lora.open(tmp_path / "lora.safetensors")])


def replay(entry: dict[str, Any], source: ModelDir, calibrated: Calibration) -> npt.NDArray[Any]:
    """What a tool that follows the map stores: int4 codes one a byte."""
    (name,) = entry["sources"]
    weight, transform = source.weights[name].read(), entry["transform"]
    if transform == "copy":
        return weight
    if transform == "transpose":
        return weight.T
    scheme = calibrated.layers[name.removesuffix(".weight")].scheme
    assert entry["spec"] == str(scheme.weight)
    kind, dtype = transform.split()[:2]
    quantized = quantize_weight(weight, scheme.weight, scale_dtype=np.float32 if scheme.activation else np.float16)
    assert transform in (f"codes {dtype} [K,N] of W", f"scale {dtype} of W")
    return quantized.codes.T if kind == "codes" else quantized.scale.astype(dtype).T


@pytest.mark.parametrize("name", ["fp16", "w4a16", "w8a8-static"])
def test_following_the_map_gives_the_stored_bytes(fused: ModelDir, tiny: ModelDir, tmp_path: Path, name: str) -> None:
    calibrated = calibration(fused, SCHEMES[name])
    model = traced(tiny)
    refit = insert_weights(model, fused, calibrated)
    write_model(model, tmp_path / "model.onnx", lambda: None)
    stored = ir.load(tmp_path / "model.onnx").graph.initializers
    entries = json.loads(to_text(refit))["initialisers"]
    assert entries == refit["initialisers"] and entries.keys() == stored.keys()
    computed = {n for n, e in entries.items() if e["transform"] == "computed"}
    assert {s for n, e in entries.items() for s in e["sources"]} == fused.weights.keys()
    assert all(not entries[n]["sources"] and n not in fused.weights for n in computed)
    assert "condition_embedder.timesteps_proj.frequencies" in computed
    assert {s for e in entries.values() if e["lora"] for s in e["sources"]} == set(FUSED)
    assert all(entries[f"{layer}.weight_scale"]["transform"].startswith("scale") for layer in calibrated.layers)
    for n in entries.keys() - computed:
        tensor, want = stored[n].const_value, replay(entries[n], fused, calibrated)
        assert tensor is not None
        found = tensor.numpy()
        assert found.shape == want.shape, n
        if entries[n]["transform"] in ("copy", "transpose"):
            assert tensor.tobytes() == np.ascontiguousarray(want).tobytes(), n
        elif entries[n]["transform"].startswith("scale"):
            assert found.dtype == want.dtype and np.array_equal(found, want), n
        else:
            assert tensor.dtype.numpy().name in entries[n]["transform"]
            np.testing.assert_array_equal(found.astype(np.int8), want, err_msg=n)


def test_square_weights_are_told_apart(tiny: ModelDir) -> None:
    """A square weight has one shape in both layouts; the map says which it is."""
    model = traced(tiny)
    entries = insert_weights(model, tiny, calibration(tiny, None))["initialisers"]
    shape = tiny.weights["blocks.0.attn1.to_q.weight"].shape
    assert shape[0] == shape[1] and entries["blocks.0.attn1.to_q.weight"]["transform"] == "transpose"
    assert entries["patch_embedding.weight"]["transform"] == "copy"
    untouched = refit_map(model.graph, tiny, calibration(tiny, None), ())["initialisers"]
    assert untouched["blocks.0.attn1.to_q.weight"]["transform"] == "copy"
