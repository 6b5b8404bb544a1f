"""What the targets' files say of products, built by TensorRT-RTX: what they allow lands, and what quirks refuse does not."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import tiny_export
from tiny_export import FP8, INT8

from vditc.errors import PrecisionError, VditcError
from vditc.graph_passes.stage import lower
from vditc.model_dir import ModelDir
from vditc.numerics import Granularity, QType
from vditc.profile import Profile, Range
from vditc.progress import SILENT
from vditc.quirk import Products
from vditc.runtimes.backend import EngineFacts
from vditc.runtimes.graph_inputs import input_specs
from vditc.runtimes.plan_text import program, read_plan
from vditc.runtimes.registry import backend
from vditc.scheme import QuantSpec, Scheme
from vditc.target import Target

pytest.importorskip("tensorrt_rtx")
pytestmark = pytest.mark.demo  # seconds each

PROFILE = Profile(
    {"batch": Range(1, 2, 2), "frames": Range(1, 2, 3), "height": Range(8, 8, 8), "width": Range(8, 12, 12), "text_tokens": Range(5, 5, 5)}
)


def spec(
    qtype: QType, granularity: Granularity = Granularity.PER_CHANNEL, group: int | None = None, *, symmetric: bool = True
) -> QuantSpec:
    dynamic = granularity is Granularity.PER_TOKEN
    return QuantSpec(qtype=qtype, granularity=granularity, group_size=group, symmetric=symmetric, dynamic=dynamic)


def token(qtype: QType) -> QuantSpec:
    return spec(qtype, Granularity.PER_TOKEN)


def built(tiny: ModelDir, scheme: Scheme | None, target: Target, folder: Path) -> EngineFacts:
    """The tiny model's engine, all linears of its blocks as `scheme` says."""
    model = tiny_export.export(tiny, tiny_export.calibration(tiny, scheme), folder / "model.onnx")
    lowered = lower(model=model, target=target, out=folder / "lowered" / "graph.onnx", progress=SILENT).files[0]
    return backend(target.backend).build(
        lowered=lowered,
        target=target,
        profile=PROFILE,
        inputs=input_specs(lowered),
        out=folder / "engine",
        work=folder / "work",
        progress=SILENT,
    )


@pytest.mark.parametrize(
    ("target", "scheme", "gemm"),
    [
        ("rtx-ada", Scheme(weight=INT8, activation=token(QType.INT8)), "int8 x int8 -> float"),
        ("rtx-ada", Scheme(weight=spec(QType.INT6), activation=token(QType.INT3)), "int8 x int8 -> float"),
        ("rtx-ada", Scheme(weight=spec(QType.INT8, Granularity.PER_TENSOR), activation=token(QType.INT4)), "int8 x int8 -> float"),
        (
            "rtx-ada",
            Scheme(weight=spec(QType.INT3, symmetric=False), activation=token(QType.INT3)),
            "int8 x int8 from int4 by a kernel of its own -> float",
        ),
        (
            "rtx-ada",
            Scheme(weight=spec(QType.INT4), activation=spec(QType.INT8, Granularity.PER_TENSOR)),
            "int8 x int8 from int4 by a kernel of its own -> float",
        ),
        ("rtx-ada", Scheme(weight=spec(QType.INT6)), "half x half from int8 -> half"),
        ("rtx-ada", Scheme(weight=spec(QType.INT3)), "half x half from int4 -> half"),
        ("rtx-ada", Scheme(weight=spec(QType.INT4, Granularity.PER_TENSOR)), "half x half from int4 -> half"),
        ("rtx-ada", Scheme(weight=spec(QType.INT4, Granularity.PER_GROUP, 16)), "half x half from int4 -> half"),
        ("rtx-ada-bf16", Scheme(weight=spec(QType.INT4, Granularity.PER_GROUP, 64)), "bf16 x bf16 from int4 -> bf16"),
        ("rtx-ada-bf16", Scheme(weight=INT8, activation=token(QType.INT8)), "int8 x int8 -> float"),
        ("rtx-blackwell", Scheme(weight=FP8, activation=token(QType.FP8_E4M3)), "fp8_e4m3 x fp8_e4m3 -> float"),
        ("rtx-blackwell", Scheme(weight=FP8), "half x half from fp8_e4m3 -> half"),
    ],
    ids=str,
)
def test_what_a_target_runs_lands(tiny: ModelDir, tmp_path: Path, target: str, scheme: Scheme, gemm: str) -> None:
    chosen = Target.load(target)
    assert chosen.refusal(scheme) is None
    assert gemm in built(tiny, scheme, chosen, tmp_path).gemms


@pytest.mark.parametrize(
    ("target", "scheme", "error", "message"),
    [
        ("rtx-ada", Scheme(weight=spec(QType.INT8, Granularity.PER_GROUP, 32)), PrecisionError, "dequantized by a kernel of its own"),
        (
            "rtx-blackwell",
            Scheme(weight=spec(QType.FP8_E4M3, Granularity.PER_GROUP, 64)),
            PrecisionError,
            "dequantized by a kernel of its own",
        ),
        (
            "rtx-ada",
            Scheme(weight=spec(QType.INT4, Granularity.PER_TENSOR), activation=token(QType.INT8)),
            VditcError,
            "have to be the same type",
        ),
        ("rtx-ada", Scheme(weight=FP8), VditcError, "Cannot compile for target.* sm80, sm86, because the model contains HW-specific"),
        ("rtx-blackwell", Scheme(weight=spec(QType.FP4_E2M1, Granularity.PER_GROUP, 16)), VditcError, "Failed to import initializer"),
    ],
    ids=str,
)
def test_what_quirks_refuse_does_not(
    tiny: ModelDir, tmp_path: Path, target: str, scheme: Scheme, error: type[VditcError], message: str
) -> None:
    chosen = Target.load(target)
    assert chosen.refusal(scheme) is not None
    anything = dataclasses.replace(chosen, products=(Products(),), quirks=())
    with pytest.raises(error, match=message):
        built(tiny, scheme, anything, tmp_path)


def test_another_version_of_the_runtime(tiny: ModelDir, tmp_path: Path) -> None:
    chosen = Target.load("rtx-ada")
    newer = dataclasses.replace(chosen, versions=dataclasses.replace(chosen.versions, least="1.8", greatest=None))
    with pytest.raises(VditcError, match=r"found tensorrt_rtx 1\.7\..*; wanted tensorrt_rtx 1\.8 or newer, the versions of the target"):
        built(tiny, Scheme(weight=INT8), newer, tmp_path)


@pytest.mark.parametrize(("scheme", "casts"), [("fp16", 2), ("w8a8", 0)])
def test_attention_in_another_type_or_form(tiny: ModelDir, tmp_path: Path, scheme: str, casts: int) -> None:
    """bfloat16 in a graph of float16, and the operators of opset 23: the same products and fused attentions.

    `casts`: kernels that bfloat16 adds, where no other one stands between a float16 product and attention.
    """
    plain, kernels, found = Target.load("rtx-ada"), {}, {}
    for name, target in (("plain", plain), ("range", plain.attending("bf16")), ("later", dataclasses.replace(plain, opset=23))):
        facts = built(tiny, tiny_export.SCHEMES[scheme], target, tmp_path / name)
        engine = program(read_plan(tmp_path / name / "engine" / "model.plan"))
        wanted = "bf16[" if name == "range" else "half["
        assert len(engine.attentions) == 4 and all(o.startswith(wanted) for k in engine.attentions for o in k.outputs), engine.attentions
        found[name] = (facts.gemms, facts.attentions, facts.activation_bytes)
        kernels[name] = len(engine.kernels)
    assert found["plain"] == found["range"] == found["later"]
    assert kernels["range"] == kernels["plain"] + casts
    assert kernels["later"] >= kernels["plain"]  # why no built-in target says opset = 23
