"""Layers with low-rank branches, groups of inputs and packed codes compute in the plugin library's operators what they did before."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort
import pytest
from tiny_export import FEW_BITS, SCHEMES, SHAPES, calibration, export, feeds_at
from tolerances import relative_l2

from vditc.graph_passes.core import PassFacts, run_passes
from vditc.graph_passes.pipelines import parse_pass, pipeline
from vditc.graph_passes.spec import Spec
from vditc.graph_passes.stage import load, save
from vditc.graph_passes.subbyte_weights import Requantized
from vditc.graph_passes.tolerances import tolerance
from vditc.model_dir import ModelDir
from vditc.numerics import Granularity, QType
from vditc.plugins.catalogue import operator_of, plugin_nodes
from vditc.plugins.packing import unpack
from vditc.plugins.qlinear.op import QLinear
from vditc.plugins.quantize_token.op import QuantizeToken
from vditc.runtimes.onnxruntime import session_options
from vditc.scheme import QuantSpec, Scheme
from vditc.target import Target, builtin_targets
from vditc.transform import IDENTITY, Transform

W4 = QuantSpec(qtype=QType.INT4, granularity=Granularity.PER_CHANNEL)
W4G = QuantSpec(qtype=QType.INT4, granularity=Granularity.PER_GROUP, group_size=128)
A8, A4 = SCHEMES["w8a8"].activation, FEW_BITS["w8a4"].activation  # type: ignore[union-attr]
BEFORE = ("fold-constants", "share-quantization", "convert-compute-type", "fold-token-aware")


def low_rank(rank: int) -> Callable[[str, str, tuple[int, ...]], Transform]:
    """A branch of this rank on every layer, about as large as a layer's output."""

    def transform(name: str, role: str, shape: tuple[int, ...]) -> Transform:
        rng, (n, k) = np.random.default_rng(zlib.crc32(name.encode())), shape
        down = (rng.standard_normal((rank, k)) * k**-0.5).astype(np.float16)
        return Transform(down=down, up=(rng.standard_normal((n, rank)) * rank**-0.5).astype(np.float16))

    return transform


def lowered(tiny: ModelDir, folder: Path, scheme: Scheme, transform: Any, *passes: str) -> tuple[ir.Model, float, list[PassFacts], str]:
    """The graph, its distance from the one in front of `passes`, what they did, and how it is lowered."""
    path = export(tiny, calibration(tiny, scheme, transform=transform), folder / "model.onnx")
    model = load(path)
    spec, _ = run_passes(model, [parse_pass(p) for p in BEFORE], Spec.canonical())
    wanted = outputs(model, folder / "before.onnx")
    _, facts = run_passes(model, [parse_pass(p) for p in passes], spec)
    found = outputs(model, folder / "after.onnx")
    return model, relative_l2(found, wanted), list(facts), passes[-1]


def outputs(model: ir.Model, path: Path) -> npt.NDArray[Any]:
    save(model, path)
    session = ort.InferenceSession(str(path), session_options(1), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feeds_at(path, 1, 0, *SHAPES[0]))[0])


def layers(model: ir.Model) -> list[QLinear]:
    return [op for n in plugin_nodes(model) if isinstance(op := operator_of(n), QLinear)]


@pytest.mark.parametrize(("rank", "padded"), [(16, 16), (20, 32), (3, 16)])
def test_a_branch_goes_in(tiny: ModelDir, tmp_path: Path, rank: int, padded: int) -> None:
    scheme = Scheme(weight=W4, activation=A8)
    model, error, facts, _ = lowered(tiny, tmp_path, scheme, low_rank(rank), "fuse-quantize-token", "lower-subbyte-linear")
    assert not facts[-1].refusals and {op.low_rank for op in layers(model)} == {padded} and len(layers(model)) == 20
    assert not [n for n in model.graph if n.op_type == "Add" and "low_rank" in (n.name or "")]
    assert error <= (tolerance("rounding", "fp16", "int8") or 0)
    gated = {str(n.name).split(".", 2)[2] for n in plugin_nodes(model) if isinstance(op := operator_of(n), QLinear) and op.gated}
    assert gated == {"attn1.to_out.0/QLinear", "ffn.net.2/QLinear"}  # what stands behind the branch follows


def test_a_branch_of_too_high_a_rank_stays(tiny: ModelDir, tmp_path: Path) -> None:
    scheme = Scheme(weight=W4, activation=A8)
    model, error, facts, _ = lowered(tiny, tmp_path, scheme, low_rank(65), "lower-subbyte-linear")
    assert len(facts[-1].refusals) == 20 and all("has rank 65; QLinear adds up to 64" in r.reason for r in facts[-1].refusals)
    assert {op.low_rank for op in layers(model)} == {0} and not any(op.gated for op in layers(model))
    assert error <= (tolerance("rounding", "fp16", "int8") or 0)


def test_groups_keep_their_scales(tiny: ModelDir, tmp_path: Path) -> None:
    scheme = Scheme(weight=W4G, activation=A8)
    model, error, facts, _ = lowered(tiny, tmp_path, scheme, lambda *_: IDENTITY, "fuse-quantize-token", "lower-subbyte-linear")
    assert not facts[-1].refusals and {(op.bits, op.group) for op in layers(model)} == {(4, 128)}
    assert {op.k // 128 for op in layers(model)} == {1, 2}
    assert error <= (tolerance("rounding", "fp16", "int8") or 0)


def test_groups_become_channels_of_eight_bits(tiny: ModelDir, tmp_path: Path) -> None:
    scheme = Scheme(weight=W4G, activation=A8)
    model, error, facts, last = lowered(tiny, tmp_path, scheme, lambda *_: IDENTITY, "lower-subbyte-linear{requantize=true}")
    assert {(op.bits, op.group) for op in layers(model)} == {(8, 0)}
    figures = facts[-1].figures
    # Half a step of 1/127 of an output's greatest weight, over the root of 3: of four-bit codes of one scale a few thousandths.
    assert figures["layers requantized"] == 20 and 1000 < figures["greatest relative error of their weights, millionths"] < 20_000
    kind = parse_pass(last).numerics()
    assert kind == "requantized" and parse_pass("lower-subbyte-linear").numerics() == "rounding"
    limit = tolerance(kind, "fp16", "int8")
    assert limit is not None and (tolerance("rounding", "fp16", "int8") or 0) / 4 < error <= limit, error


def test_requantized_weights_are_the_nearest_codes(tiny: ModelDir, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    codes, scales = rng.integers(-8, 8, (384, 5), dtype=np.int8), rng.random((3, 5)).astype(np.float32)
    wanted = codes * np.repeat(scales, 128, axis=0)
    anew = Requantized.of(ir.tensor(codes), scales)
    op = QLinear(n=5, k=384, bits=8)
    found = unpack(anew.packed(op).numpy(), 5, 384, 8).T
    np.testing.assert_array_equal(anew.scale, np.abs(wanted).max(axis=0) / np.float32(127))
    np.testing.assert_array_equal(found, np.rint(wanted / anew.scale))
    lost = np.linalg.norm(found * anew.scale - wanted) / np.linalg.norm(wanted)
    assert anew.error == pytest.approx(lost, rel=1e-5) and 1e-3 < lost < 2e-2


def test_two_codes_a_byte(tiny: ModelDir, tmp_path: Path) -> None:
    """Exactly the graph without: integers are the same, and what follows them."""
    scheme = Scheme(weight=W4, activation=A4)
    plain = ("fuse-quantize-token", "lower-subbyte-linear")
    _, one, _, _ = lowered(tiny, tmp_path, scheme, lambda *_: IDENTITY, *plain)
    model, error, facts, _ = lowered(tiny, tmp_path, scheme, lambda *_: IDENTITY, *plain, "lower-subbyte-linear{packed=true}")
    assert error == one <= (tolerance("rounding", "fp16", "int4") or 0)
    quantizers = [op for n in plugin_nodes(model) if isinstance(op := operator_of(n), QuantizeToken)]
    assert facts[-1].figures["quantizations packed"] == len(quantizers) == 13 and all(op.packed for op in quantizers)
    assert all(op.packed for op in layers(model)) and len(layers(model)) == 20


@pytest.mark.parametrize("name", builtin_targets())
def test_targets_pack_where_the_gpu_multiplies_four_bits(name: str) -> None:
    target = Target.load(name)
    (found,) = (str(p) for p in pipeline(target, plugins=True) if p.name == "lower-subbyte-linear")
    packs = name in ("a10", "a100", "l4", "l40s", "jetson-orin", "jetson-orin-jp6")
    assert found == f"lower-subbyte-linear{{eight=false,requantize=false,packed={str(packs).lower()}}}"
    mixed = dataclasses.replace(target, arch=("sm_89", "sm_120"))
    assert "packed=false" in "".join(map(str, pipeline(mixed, plugins=True)))
