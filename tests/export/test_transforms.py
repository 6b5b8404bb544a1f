"""Balanced, rotated and split layers: the graph says what the reference computes, and what layers share it computes once."""

from __future__ import annotations

import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from tiny_export import FEW_BITS, SCHEMES, SHAPES, calibration, export, feeds
from tolerances import relative_l2

from vditc.calibration import Calibration
from vditc.export.adapters.wan import Wan
from vditc.export.check import check_codes
from vditc.graph_passes.spec import Spec
from vditc.graph_passes.stage import lower
from vditc.model_dir import ModelDir
from vditc.progress import SILENT
from vditc.runtimes.onnxruntime import OnnxRuntimeModel, session_options
from vditc.runtimes.reference import ReferenceModel
from vditc.target import Target
from vditc.transform import Transform

ALL = {**SCHEMES, **FEW_BITS}
# A code that flips at a tie moves an element by one step of its token; see tests/export/test_stage.py.
FLIPS = {None: 1e-5, 8: 1.5e-3, 4: 3e-2}


def changed(balance: bool = False, rotation: bool = False, low_rank: bool = False) -> object:
    """Transforms that q, k and v of an attention share."""

    def transform(name: str, role: str, shape: tuple[int, ...]) -> Transform:
        shared = name.rsplit(".", 1)[0] if role.rpartition(".")[2] in "qkv" and role.startswith("self") else name
        random, own = (np.random.default_rng(zlib.crc32(text.encode())) for text in (shared, name))
        n, k = shape
        factors = (own.standard_normal(size).astype(np.float16) * np.float16(0.05) for size in ((4, k), (n, 4)))
        down, up = factors if low_rank else (None, None)
        spread = np.exp(0.3 * random.standard_normal(k)).astype(np.float32) * random.choice(np.array([-1, 1], np.float32), k)
        return Transform(balance=spread if balance else None, rotation=k if rotation else None, down=down, up=up)

    return transform


KINDS = {
    "balance": changed(balance=True),
    "rotation": changed(rotation=True),
    "low rank": changed(low_rank=True),
    "all": changed(balance=True, rotation=True, low_rank=True),
}


def of(tiny: ModelDir, scheme: str, kind: str) -> Calibration:
    return calibration(tiny, ALL[scheme], transform=KINDS[kind])  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheme", ["w8a8", "w4a16", "w8a4", "w8a8-static"])
def test_the_graph_is_the_reference(tiny: ModelDir, tmp_path: Path, scheme: str, kind: str) -> None:
    known = of(tiny, scheme, kind)
    path = export(tiny, known, tmp_path / "model.onnx")
    onnx.checker.check_model(path, full_check=True)
    Spec.canonical().verify(ir.load(path), where="here")
    check_codes(path, known)
    activation = next(iter(known.layers.values())).scheme.activation
    for seed, shape in enumerate(SHAPES):
        inputs = feeds(seed, *shape)
        want = ReferenceModel(Wan(), tiny, known)(inputs, 1)
        assert relative_l2(OnnxRuntimeModel(path, threads=1)(inputs, 1), want) <= FLIPS[activation.qtype.bits if activation else None]
    plain = ReferenceModel(Wan(), tiny, calibration(tiny, ALL[scheme]))(inputs, 1)
    assert relative_l2(plain, want) > 1e-3  # a transform that were left out would be seen


def test_a_transform_alone_changes_nothing(tiny: ModelDir) -> None:
    """With INT8 weights alone, what is left is the rounding of the weights."""
    inputs = feeds(0, *SHAPES[0])
    exact = ReferenceModel(Wan(), tiny, None)(inputs, 0)
    for kind in KINDS:
        # A balance by random factors is a bad one for the rounding of activations.
        limit = 0.02 if kind in ("rotation", "low rank") else 0.1
        assert relative_l2(ReferenceModel(Wan(), tiny, of(tiny, "w8a8", kind))(inputs, 0), exact) < limit


def test_q_k_and_v_share_one_balance_one_rotation_and_one_quantization(tiny: ModelDir, tmp_path: Path) -> None:
    path = export(tiny, of(tiny, "w8a8", "all"), tmp_path / "model.onnx")
    kinds = Counter(str(node.name).rsplit("/", 1)[1] for node in ir.load(path).graph if "/" in str(node.name))
    # In each of 2 blocks: self-attention's q, k and v together, its output, cross-attention's q, k, v and output, two of the feed-forward.
    assert kinds["Mul_balance"] == kinds["MatMul_rotation_left"] == kinds["MatMul_rotation_right"] == kinds["QuantizeLinear"] == 2 * 8
    assert kinds["Add_low_rank"] == 20


def test_the_lowered_graph_computes_the_same(tiny: ModelDir, tmp_path: Path) -> None:
    path = export(tiny, of(tiny, "w8a8", "all"), tmp_path / "model.onnx")
    facts = lower(model=path, target=Target.load("rtx-ada"), out=tmp_path / "lowered.onnx", progress=SILENT, keep_time_path=True)
    left = [r.node for f in facts.passes for r in f.refusals if f.name.startswith("fold-channel-balance")]
    assert sorted(n.split(".", 2)[2] for n in left) == sorted(2 * [f"{n}/Mul_balance" for n in ("attn2.to_k", "attn2.to_v", "ffn.net.2")])
    inputs = feeds(0, *SHAPES[0])
    found = [
        ort.InferenceSession(str(p), session_options(), providers=["CPUExecutionProvider"]).run(None, inputs)[0]
        for p in (path, tmp_path / "lowered.onnx")
    ]
    assert relative_l2(found[1], found[0]) < 0.02  # float16


def test_it_survives_the_file(tiny: ModelDir, tmp_path: Path) -> None:
    known = of(tiny, "w4a16", "all")
    known.save(tmp_path / "c")
    back = Calibration.load(tmp_path / "c")
    inputs = feeds(0, *SHAPES[0])
    np.testing.assert_array_equal(ReferenceModel(Wan(), tiny, back)(inputs, 0), ReferenceModel(Wan(), tiny, known)(inputs, 0))
    assert back.mean_bits == known.mean_bits > calibration(tiny, SCHEMES["w4a16"]).mean_bits
    layer = "blocks.1.ffn.net.2"
    assert back.layers[layer].transform.input_key() == known.layers[layer].transform.input_key()
