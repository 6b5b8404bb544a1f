"""QuantizeToken in exported graphs: what goes into it, and that the graph computes what it did."""

from __future__ import annotations

import dataclasses
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from tiny_export import STEPS, calibration, export, feeds_at
from tolerances import relative_l2

from vditc.correction import NONE, Correction, FrameOrder
from vditc.graph_passes.core import PassFacts, run_passes
from vditc.graph_passes.fold_rotation import Rotation
from vditc.graph_passes.pipelines import parse_pass
from vditc.graph_passes.prologue import no_sylvester
from vditc.graph_passes.spec import Spec
from vditc.graph_passes.stage import load, save
from vditc.graph_passes.tolerances import activation_codes, tolerance
from vditc.hadamard import factors
from vditc.model_dir import ModelDir
from vditc.numerics import Granularity, QType
from vditc.runtimes.onnxruntime import session_options
from vditc.scheme import QuantSpec, Scheme
from vditc.transform import IDENTITY, Transform

F32 = np.float32
FOLDS = ("fold-constants", "share-quantization", "fold-channel-balance", "fold-rotation", "fold-temporal-scales", "precompute-time-path")
SIZES = ((2, 2, 8, 12, 5), (1, 2, 10, 4, 8))  # two frames, as the corrections have


def transformed(name: str, role: str, shape: tuple[int, ...]) -> Transform:
    """A shift and a balance, one for layers that read one tensor; fc2's inputs, behind GELU, keep theirs."""
    shared = name.rsplit(".", 1)[0] if role.split(".")[1] in "qkv" and role != "cross_attn.q" else name
    rng = np.random.default_rng(zlib.crc32(shared.encode()))
    balance = np.exp(rng.normal(0, 0.3, shape[1])) * rng.choice([-1, 1], shape[1])
    return Transform(shift=rng.normal(0, 0.1, shape[1]).astype(F32), balance=balance.astype(F32))


def rotated(name: str, role: str, shape: tuple[int, ...]) -> Transform:
    """Over the whole width: 256 channels behind GELU, 128 elsewhere."""
    return Transform(rotation=shape[1])


def corrected(name: str, role: str, shape: tuple[int, ...]) -> Correction:
    """Q-VDiT's estimate, with factors of frames in self-attention, without for text."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    alpha, beta = rng.normal(0, shape[1] ** -0.5, shape[1]).astype(F32), rng.normal(0, 0.3, shape[0]).astype(F32)
    if not role.startswith("self_attn"):
        return Correction(alpha=alpha, beta=beta, bias=rng.normal(0, 0.1, shape[0]).astype(F32))
    return Correction(alpha=alpha, beta=beta, frames=np.array([0.5, 2], F32), order=FrameOrder.FRAMES_FIRST)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A calibration of the tiny model's two blocks, and what the pass says of its graph in float16."""

    weight: QType = QType.INT4
    activation: QType = QType.INT8
    static: str = ""  # or step, tensor
    clip: bool = False
    symmetric: bool = True
    transform: str = ""
    corrected: bool = False
    figures: tuple[int, ...]  # fused, with a norm, with a modulation, with GELU, with a rotation, sums of codes
    refused: tuple[str, ...] = ()

    def calibration(self, source: ModelDir) -> object:
        activation = QuantSpec(
            qtype=self.activation,
            granularity=Granularity.PER_TENSOR if self.static else Granularity.PER_TOKEN,
            dynamic=not self.static,
            per_step=self.static == "step",
        )
        weight = QuantSpec(qtype=self.weight, granularity=Granularity.PER_CHANNEL, symmetric=self.symmetric)
        return calibration(
            source,
            Scheme(weight=weight, activation=activation),
            transform={"": lambda *_: IDENTITY, "folds": transformed, "rotation": rotated}[self.transform],
            correction=corrected if self.corrected else lambda *_: NONE,
            clip=self.clip,
        )


# In each of the two blocks: norm and modulation in front of q, k, v and of fc1, an affine norm in front of cross-attention's q, GELU in
# front of fc2; attention's outputs have nothing in front, nor has the text, which both blocks read.
PLAIN = (13, 6, 4, 2, 0, 0)
CASES = {
    "w4a8": Case(figures=PLAIN),
    "w3a8": Case(weight=QType.INT3, figures=PLAIN),
    "w4a6": Case(activation=QType.INT6, figures=PLAIN),
    "w4a4-clip": Case(activation=QType.INT4, clip=True, figures=PLAIN),
    "w4a8-step": Case(static="step", figures=PLAIN),
    "w4a6-tensor": Case(activation=QType.INT6, static="tensor", figures=PLAIN),
    "w4a8-tensor": Case(static="tensor", figures=PLAIN),
    "w4a8-transformed": Case(transform="folds", figures=(14, 6, 4, 2, 0, 0)),
    "w3a8-rotated": Case(weight=QType.INT3, transform="rotation", figures=(13, 0, 0, 2, 2, 0), refused=("blocks of 128",) * 11),
    "w4a8-zero-points": Case(symmetric=False, figures=(*PLAIN[:5], 13)),
    # A total for each of the codes, an estimate for each layer.
    "w4a8-all": Case(symmetric=False, corrected=True, clip=True, transform="folds", figures=(14, 6, 4, 2, 0, 34)),
    "w4a8-step-all": Case(symmetric=False, corrected=True, static="step", transform="folds", figures=(14, 6, 4, 2, 0, 34)),
}


AT = tuple((step, sizes) for step, sizes in zip((0, STEPS - 1), SIZES, strict=True))


def run(model: ir.Model, path: Path) -> list[npt.NDArray[np.float32]]:
    """The output of a graph at each of `AT`."""
    save(model, path)
    onnx.checker.check_model(path, full_check=True)
    session = ort.InferenceSession(str(path), session_options(1), providers=["CPUExecutionProvider"])
    return [np.asarray(session.run(None, feeds_at(path, step, 0, *sizes))[0]) for step, sizes in AT]


def passed(model: ir.Model, spec: Spec, *names: str) -> tuple[Spec, tuple[PassFacts, ...]]:
    return run_passes(model, [parse_pass(name) for name in names], spec)


@pytest.mark.parametrize(("name", "compute"), [*((name, "fp16") for name in CASES), ("w4a8-all", "fp32"), ("w3a8-rotated", "fp32")])
def test_the_graph_computes_the_same(tiny: ModelDir, tmp_path: Path, name: str, compute: str) -> None:
    case = CASES[name]
    exported = export(tiny, case.calibration(tiny), tmp_path / "model.onnx")  # type: ignore[arg-type]
    model = load(exported)
    spec, _ = passed(model, Spec.canonical(), *FOLDS, f"convert-compute-type{{to={compute}}}", "fold-token-aware")
    codes = activation_codes(model.graph)
    wanted = run(model, tmp_path / "before.onnx")

    _, (facts,) = passed(model, spec, "fuse-quantize-token")
    assert tuple(facts.figures.values()) == (*case.figures, 0)  # gated residuals are those of layers of the plugin library
    assert [r.reason for r in facts.refusals if not any(part in r.reason for part in case.refused)] == []
    assert len(facts.refusals) == len(case.refused)
    assert activation_codes(model.graph) == codes
    limit = tolerance("rounding", compute, codes)
    assert limit is not None
    fused = run(model, tmp_path / "fused.onnx")
    assert max(map(relative_l2, fused, wanted)) <= limit, (max(map(relative_l2, fused, wanted)), limit)

    assert not any(f.modified for f in passed(model, spec, "fuse-quantize-token")[1])
    _, (facts,) = passed(model, spec, "lower-subbyte-linear")
    assert facts.figures["layers handed over"] == 20 and not facts.refusals
    kinds = Counter(node.op_type for node in model.graph)
    assert kinds["QuantizeToken"] == case.figures[0] and kinds["QLinear"] == 20
    # A bias goes in behind the scale, and so tells of it; where the scale of the step folded into v, v's bias is computed and stays behind.
    bare = [str(node.name) for node in model.graph if node.op_type == "QLinear" and "bias" not in node.overload]
    assert all("to_v" in layer for layer in bare) and len(bare) == (4 if case.static == "step" else 0)
    assert not kinds["QuantizeLinear"] + kinds["DequantizeLinear"]
    assert not kinds["ReduceSum"]
    assert max(map(relative_l2, run(model, tmp_path / "handed.onnx"), wanted)) <= limit, (max(map(relative_l2, fused, wanted)), limit)


def test_only_sylvesters_rotation_is_the_operators() -> None:
    found = factors(256)
    assert found is not None
    left, right = found

    def rotation(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> Rotation:
        return Rotation((ir.node("Reshape", []),), (len(a), len(b)), a, b)

    assert no_sylvester(rotation(left, right)) == ""
    for a, b in ((left[::-1], right), (left, right[::-1])):  # blocks of 256, rows in another order
        assert "Sylvester" in no_sylvester(rotation(a, b))


@pytest.mark.parametrize("compute", ["fp32", "fp16"])
def test_a_gated_residual_computes_the_same(tmp_path: Path, compute: str) -> None:
    """Of two norms and an output of the sum; in float16 the product was rounded before it was added."""
    rng = np.random.default_rng(0)
    feeds = {"x": rng.standard_normal((2, 5, 4)), "z": rng.standard_normal((2, 5, 4)), "timestep": rng.standard_normal((2, 1, 4))}
    found: list[list[npt.NDArray[np.float32]]] = []
    for passes in ((), ("fuse-quantize-token",), ("fuse-quantize-token", "lower-subbyte-linear")):
        model = ir.from_onnx_text((Path(__file__).parent / "fuse_quantize_token_gated.onnxtxt").read_text())
        weight = model.graph.initializers["w"]  # text has a code in each integer
        assert weight.const_value is not None
        weight.const_value = ir.tensor(weight.const_value.numpy(), dtype=ir.DataType.INT4, name="w")
        _, facts = passed(model, Spec.canonical(), f"convert-compute-type{{to={compute}}}", *passes)
        assert not passes or facts[1].figures["with a gated residual"] == 1
        path = tmp_path / f"{len(passes)}.onnx"
        save(model, path)
        session = ort.InferenceSession(str(path), session_options(1), providers=["CPUExecutionProvider"])
        found.append(session.run(None, {name: array.astype(F32) for name, array in feeds.items()}))
    limit = tolerance("rounding", compute, "int8")
    assert limit is not None
    for made in found[1:]:
        assert all(relative_l2(a, b) <= limit for a, b in zip(made, found[0], strict=True))
        if compute == "fp32":
            np.testing.assert_array_equal(made[2], found[0][2])  # the sum
