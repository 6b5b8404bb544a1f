"""Graphs that ONNX Runtime does not run on a CPU, in operators that it has."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest

from vditc.errors import VditcError
from vditc.pipeline.runnable import runnable
from vditc.runtimes.graph_slices import run_slices
from vditc.runtimes.onnxruntime import ERRORS

SHORT = """<ir_version: 10, opset_import: ["" : 21]>
g (float16[m,k] a, float[k,n] b) => (float16[m,n] y)
{
  as = Cast<to=16>(a)
  bs = Cast<to=16>(b)
  p = MatMul(as, bs)
  w = Softmax<axis=-1>(p)
  y = Cast<to=10>(w)
}
"""
MASKED = """<ir_version: 11, opset_import: ["" : 23]>
g (float[b,h,q,d] q, float[b,h,k,d] k, float[b,h,k,d] v, float[b,1,1,k] mask) => (float[b,h,q,d] y)
{
  [attention] y = Attention<scale=0.5>(q, k, v, mask)
}
"""


def test_bfloat16_is_float32_that_is_rounded(tmp_path: Path) -> None:
    model, rng = onnx.parser.parse_model(SHORT), np.random.default_rng(0)
    a, b = rng.standard_normal((3, 5)).astype(np.float16), rng.standard_normal((5, 7)).astype(np.float32)
    ((found,),) = run_slices(runnable(model, "here"), tmp_path, [{"a": a, "b": b}])

    def short(x: np.ndarray) -> np.ndarray:
        return x.astype(ml_dtypes.bfloat16).astype(np.float32)

    product = short(short(a) @ short(b))
    weights = np.exp(product - product.max(-1, keepdims=True))
    assert np.array_equal(found, short(weights / weights.sum(-1, keepdims=True)).astype(np.float16))


def test_masks_hold_for_every_query(tmp_path: Path) -> None:
    model, rng = onnx.parser.parse_model(MASKED), np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, 3, n, 4)).astype(np.float32) for n in (5, 6, 6))
    feeds = {"q": q, "k": k, "v": v, "mask": rng.standard_normal((2, 1, 1, 6)).astype(np.float32)}
    with pytest.raises(ERRORS, match="attn_mask"):  # what is worked around
        run_slices(model, tmp_path, [feeds])
    ((found,),) = run_slices(runnable(model, "here"), tmp_path, [feeds])
    weights = np.exp(0.5 * q @ k.swapaxes(2, 3) + feeds["mask"])
    assert np.allclose(found, weights / weights.sum(-1, keepdims=True) @ v, atol=1e-5)


def test_other_graphs_stay() -> None:
    model = onnx.parser.parse_model(SHORT.replace("to=16", "to=10"))
    assert runnable(model, "here") is model
    with pytest.raises(VditcError, match=r"^here: found Softplus of bfloat16"):
        runnable(onnx.parser.parse_model(SHORT.replace("Softmax<axis=-1>", "Softplus")), "here")
