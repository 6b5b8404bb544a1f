"""The calibration file: what is written comes back, and damaged files are refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vditc.calibration import Calibration, Kept, LayerCalibration
from vditc.errors import InputError
from vditc.files import sha256
from vditc.numerics import Granularity, QType
from vditc.safetensors_file import read_header, write_tensors
from vditc.schedule import Schedule
from vditc.scheme import QuantSpec, Scheme, quantize_weight
from vditc.transform import IDENTITY, OutputTransform, Transform

INT8 = QuantSpec(qtype=QType.INT8, granularity=Granularity.PER_CHANNEL)
INT4 = QuantSpec(qtype=QType.INT4, granularity=Granularity.PER_GROUP, group_size=16)
FP8 = QuantSpec(qtype=QType.FP8_E4M3, granularity=Granularity.PER_CHANNEL)
NVFP4 = QuantSpec(qtype=QType.FP4_E2M1, granularity=Granularity.PER_GROUP, group_size=16)
FP8_ONCE = QuantSpec(qtype=QType.FP8_E4M3, granularity=Granularity.PER_TENSOR)
INT3 = QuantSpec(qtype=QType.INT3, granularity=Granularity.PER_GROUP, group_size=16)
STEPS = QuantSpec(qtype=QType.INT8, granularity=Granularity.PER_TENSOR, per_step=True)
ONCE = QuantSpec(qtype=QType.INT8, granularity=Granularity.PER_TENSOR)


@pytest.fixture
def calibration(rng: np.random.Generator) -> Calibration:
    """One layer of every kind of storage."""

    def layer(weight: QuantSpec, activation: QuantSpec | None = None, scale: Any = None) -> LayerCalibration:
        codes = quantize_weight(rng.standard_normal((6, 32)), weight, scale_dtype=np.float32 if activation else np.float16)
        return LayerCalibration(role="ffn.in", scheme=Scheme(weight=weight, activation=activation), weight=codes, activation_scale=scale)

    return Calibration(
        model_class="M",
        model_digest="d",
        recipe="r",
        recipe_digest="e",
        method="rtn",
        schedule=Schedule.flow(np.array([1.0, 0.5, 0.0])),
        guidance_scale=2.0,
        layers={
            "int4": layer(INT4),
            "int3": layer(INT3),
            "int8": layer(INT8),
            "steps": layer(INT8, STEPS, np.array([0.1, 0.2], np.float32)),
            "once": layer(INT8, ONCE, np.array(0.3, np.float32)),
            "fp8": layer(FP8),
            "fp8_once": layer(FP8, FP8_ONCE, np.array(0.3, np.float32)),
            "nvfp4": layer(NVFP4),
            "nvfp4_both": layer(NVFP4, dataclasses.replace(NVFP4, dynamic=True), np.array(0.001, np.float32)),
        },
        kept={"head": Kept(role="head", reason="small", shape=(4, 8))},
        statistics={"clips": 1},
    )


def test_everything_comes_back(calibration: Calibration, tmp_path: Path) -> None:
    calibration.save(tmp_path / "c")
    back = Calibration.load(tmp_path / "c")
    for field in dataclasses.fields(Calibration):
        if field.name not in ("layers", "file"):
            assert getattr(back, field.name) == getattr(calibration, field.name)
    assert back.layers.keys() == calibration.layers.keys()
    for name, layer in calibration.layers.items():
        other = back.layers[name]
        assert (other.role, other.scheme, other.weight.scale_dtype) == (layer.role, layer.scheme, layer.weight.scale_dtype)
        np.testing.assert_array_equal(other.weight.read().codes, layer.weight.read().codes)
        np.testing.assert_array_equal(other.weight.read().scale, layer.weight.read().scale)
        assert (other.activation_scale is None) == (layer.activation_scale is None)
        if layer.activation_scale is not None:
            np.testing.assert_array_equal(other.activation_scale, layer.activation_scale)


def test_codes_are_integers_and_small_ones_share_bytes(calibration: Calibration, tmp_path: Path) -> None:
    calibration.save(tmp_path / "c")
    entries, _ = read_header(tmp_path / "c")
    kinds = {n: (str(e.dtype), e.shape) for n, e in entries.items() if n.endswith(".codes")}
    assert kinds["int4.codes"] == kinds["int3.codes"] == ("uint8", (96,))
    assert kinds["fp8.codes"] == kinds["fp8_once.codes"] == ("float8_e4m3fn", (6, 32))
    assert kinds["nvfp4.codes"] == kinds["nvfp4_both.codes"] == ("uint8", (96,))
    assert (str(entries["nvfp4.scale"].dtype), entries["nvfp4.scale"].shape) == ("float8_e4m3fn", (6, 2))
    assert (str(entries["nvfp4.tensor_scale"].dtype), entries["nvfp4.tensor_scale"].shape) == ("float32", ())
    assert [name for name in entries if name.endswith("tensor_scale")] == ["nvfp4.tensor_scale", "nvfp4_both.tensor_scale"]
    assert kinds["int8.codes"] == kinds["once.codes"] == ("int8", (6, 32))
    assert entries["int4.scale"].shape == (6, 2) and entries["once.activation_scale"].shape == ()


def test_same_calibration_same_bytes(calibration: Calibration, tmp_path: Path) -> None:
    calibration.save(tmp_path / "one")
    Calibration.load(tmp_path / "one").save(tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert Calibration.load(tmp_path / "one").digest == sha256(tmp_path / "two") and calibration.digest is None


def test_codes_are_not_read_before_they_are_asked_for(calibration: Calibration, tmp_path: Path) -> None:
    calibration.save(tmp_path / "c")
    back = Calibration.load(tmp_path / "c")
    (tmp_path / "c").unlink()
    assert back.mean_bits == calibration.mean_bits
    with pytest.raises(FileNotFoundError):
        back.layers["int8"].weight.read()


def test_a_calibration_that_quantizes_nothing_comes_back(calibration: Calibration, tmp_path: Path) -> None:
    nothing = dataclasses.replace(calibration, layers={})
    nothing.save(tmp_path / "c")
    assert Calibration.load(tmp_path / "c") == nothing
    assert nothing.mean_bits == 16


def test_mean_bits_counts_scales_and_kept_layers(calibration: Calibration) -> None:
    only = dataclasses.replace(calibration, layers={"int4": calibration.layers["int4"]})
    assert only.mean_bits == (192 * 4 + 12 * 16 + 32 * 16) / (192 + 32)
    only = dataclasses.replace(calibration, layers={"nvfp4": calibration.layers["nvfp4"]}, kept={})
    assert only.mean_bits == 4 + 8 / 16 + 32 / 192


def test_a_file_cut_short_is_refused(calibration: Calibration, tmp_path: Path) -> None:
    calibration.save(tmp_path / "c")
    (tmp_path / "c").write_bytes((tmp_path / "c").read_bytes()[:-1])
    with pytest.raises(InputError, match=r"bytes where its header promises"):
        Calibration.load(tmp_path / "c")


def test_another_safetensors_file_is_refused(tiny_dir: Path) -> None:
    with pytest.raises(InputError, match=r"found no vditc metadata; wanted a calibration file"):
        Calibration.load(tiny_dir / "transformer" / "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize(
    ("activation", "scale", "message"),
    [
        (None, np.array(1, np.float32), "superfluous"),
        (ONCE, None, "missing"),
        (ONCE, np.ones(2, np.float32), r"has shape \[2\]"),
        (STEPS, np.array(1, np.float32), r"has shape \[\]"),
    ],
)
def test_activation_scales_must_fit_the_scheme(activation: QuantSpec | None, scale: Any, message: str) -> None:
    weight = quantize_weight(np.ones((2, 16)), INT8)
    with pytest.raises(ValueError, match=message):
        LayerCalibration(role="head", scheme=Scheme(weight=INT8, activation=activation), weight=weight, activation_scale=scale)


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ({"rotation": 2, "start": 3}, "outputs 3 to 7 of 6"),
        ({"rotation": 2, "start": -2}, "outputs from -2 on"),
        ({"rotation": 0, "start": 2}, "blocks of 0 of 4 channels"),
        ({"rotation": 2.0, "start": 2}, '"rotation": 2.0'),
        ({"rotation": 2}, "output_balance with"),
        (None, "output_balance with null"),
    ],
)
def test_a_transform_of_the_output_that_cannot_be_is_refused(calibration: Calibration, tmp_path: Path, about: Any, words: str) -> None:
    output = OutputTransform(balance=np.ones(4, np.float32), rotation=2, start=2)
    whole = dataclasses.replace(calibration, layers={"v": dataclasses.replace(calibration.layers["int8"], output=output)})
    whole.save(tmp_path / "c")
    good = Calibration.load(tmp_path / "c").layers["v"].output
    assert good is not None and (good.rotation, good.start) == (2, 2)
    tensors, metadata = read_header(tmp_path / "c")
    data = json.loads(metadata["vditc"])
    data["layers"]["v"] |= {"output": about}
    write_tensors(tmp_path / "bad", {n: np.array(t.read()) for n, t in tensors.items()}, {"vditc": json.dumps(data)})
    with pytest.raises(InputError, match=f"bad, layer v: found a transform of the output that cannot be: .*{words}"):
        Calibration.load(tmp_path / "bad")
    data["layers"]["v"] |= {"output": {"rotation": 2, "start": 2}}
    others = {n: np.array(t.read()) for n, t in tensors.items() if n != "v.output_balance"}
    write_tensors(tmp_path / "bad", others, {"vditc": json.dumps(data)})
    with pytest.raises(InputError, match="no output_balance with"):
        Calibration.load(tmp_path / "bad")


def test_outputs_are_transformed_where_v_is(calibration: Calibration) -> None:
    """v is the last 32 of 64 outputs."""
    codes = quantize_weight(np.random.default_rng(0).standard_normal((64, 32)), INT8)
    balance = np.linspace(1, 2, 32, dtype=np.float32)
    out = dataclasses.replace(calibration.layers["int8"], transform=Transform(balance=balance, rotation=8, made_by=("v",)))

    def check(start: int) -> None:
        v = dataclasses.replace(out, weight=codes, transform=IDENTITY, output=OutputTransform(balance=balance, rotation=8, start=start))
        dataclasses.replace(calibration, layers={"v": v, "out": out}).check_outputs()

    check(32)
    for start in (0, 16):
        with pytest.raises(InputError, match="found layer v, whose output is not transformed"):
            check(start)
    with pytest.raises(ValueError, match="outputs 40 to 72 of 64"):
        check(40)
