"""Attention with quantized products against numbers worked out by hand, and what smoothing must and must not change."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from vditc.attention import AttentionScheme
from vditc.calibrate import quantized_attention as module
from vditc.calibrate.quantized_attention import quantized_attention, smoothed, token_codes
from vditc.errors import InputError
from vditc.numerics import QType

INT8, FP8 = QType.INT8, QType.FP8_E4M3
QK = AttentionScheme(qk=INT8)
SMOOTH = AttentionScheme(qk=INT8, smooth_k=True)
SCHEMES = [
    QK,
    SMOOTH,
    *(AttentionScheme(qk=INT8, smooth_k=True, pv=pv, smooth_v=v, block_size=8) for pv in (INT8, FP8) for v in (False, True)),
]


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def inputs(seed: int, tokens: int = 24, keys: int = 40, offset: float = 0.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, k, v of 2 clips and 3 heads; `offset`: a mean of k over the tokens, different in every channel."""
    g = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(2, 3, n, 16, generator=g) for n in (tokens, keys, keys))
    return q, k + offset * torch.randn(2, 3, 1, 16, generator=g), v


def test_codes_by_hand() -> None:
    x = torch.tensor([[127.0, 2.5, -3.5], [-254.0, 1.0, 3.0], [0.0, 0.0, 0.0], [1.0, -1.0, 0.5]])
    codes, scale = token_codes(x, INT8, 1)
    assert codes.tolist() == [[127, 2, -4], [-127, 0, 2], [0, 0, 0], [127, -127, 64]]  # 0.5, 1.5 and 63.5: ties to even
    np.testing.assert_array_equal(scale[:, 0], np.array([1, 2, 1e-8, np.float32(1) / np.float32(127)], np.float32))
    codes, scale = token_codes(x, INT8, 3)  # the last block holds one token
    assert codes.tolist() == [[64, 1, -2], [-127, 0, 2], [0, 0, 0], [127, -127, 64]]
    assert scale[:3, 0].tolist() == [2, 2, 2]


def test_attention_by_hand() -> None:
    q, k = torch.tensor([[[127.0, 0.0]]]), torch.tensor([[[127.0, 0.4], [127.0, 0.0], [0.0, 254.0]]])
    v = torch.tensor([[[1.0, 10.0], [2.0, -20.0], [4.0, 5.0]]])
    # Codes of k: (127, 0) * 1, (127, 0) * 1, (0, 127) * 2. Scores 127^2, 127^2, 0, times 2 / 127^2.
    found = quantized_attention(q, k, v, QK, scale=2 / 127**2)
    p = [1.0, 1.0, math.exp(-2)]
    wanted = [(p[0] + 2 * p[1] + 4 * p[2]) / sum(p), (10 * p[0] - 20 * p[1] + 5 * p[2]) / sum(p)]
    np.testing.assert_allclose(found[0, 0], wanted, rtol=1e-6)
    # P as codes 127, 127, rint(17.19) = 17; v as codes 32, 64, 127 of 4 / 127 and 64 (63.5, tie), -127, 32 of 20 / 127.
    found = quantized_attention(q, k, v, dataclasses.replace(QK, pv=INT8), scale=2 / 127**2)
    codes = [1.0, 1.0, 17 / 127]
    wanted = [
        (codes[0] * 32 + codes[1] * 64 + codes[2] * 127) * 4 / 127 / sum(p),
        (codes[0] * 64 - codes[1] * 127 + codes[2] * 32) * 20 / 127 / sum(p),
    ]
    np.testing.assert_allclose(found[0, 0], wanted, rtol=1e-6)
    # P as E4M3: 448, 448, 0.13534 * 448 = 60.63 -> 60; v as E4M3: 4 -> 448, 2 -> 224, 1 -> 112; 20 -> 448, 10 -> 224, 5 -> 112.
    found = quantized_attention(q, k, v, dataclasses.replace(QK, pv=FP8), scale=2 / 127**2)
    codes = [1.0, 1.0, 60 / 448]
    wanted = [(codes[0] + 2 * codes[1] + 4 * codes[2]) / sum(p), (10 * codes[0] - 20 * codes[1] + 5 * codes[2]) / sum(p)]
    np.testing.assert_allclose(found[0, 0], wanted, rtol=1e-6)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_close_to_float_attention(scheme: AttentionScheme) -> None:
    q, k, v = inputs(0)
    error = relative(quantized_attention(q, k, v, scheme), scaled_dot_product_attention(q, k, v))
    assert 0.001 < error < (0.05 if scheme.pv is FP8 else 0.025)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1000), st.floats(1, 100), st.sampled_from([1, 16]))
def test_smoothing_makes_an_offset_of_k_harmless(seed: int, offset: float, block: int) -> None:
    scheme = AttentionScheme(qk=INT8, smooth_k=True, block_size=block)
    q, k, v = inputs(seed)
    moved = k + offset * torch.randn(2, 3, 1, 16, generator=torch.Generator().manual_seed(seed + 1))
    exact = scaled_dot_product_attention(q.double(), smoothed(moved.double()), v.double()).float()
    # In exact arithmetic the softmax does not see the mean; what is left is that of smoothed k, whose codes the offset hardly moves.
    assert relative(exact, scaled_dot_product_attention(q.double(), moved.double(), v.double()).float()) < 1e-6
    assert relative(quantized_attention(q, moved, v, scheme), exact) < 0.05


def test_smoothing_pays_where_k_has_a_mean_and_only_there() -> None:
    for offset, least, most in ((20.0, 5.0, np.inf), (0.0, 0.7, 1.5)):
        q, k, v = inputs(3, offset=offset)
        exact = scaled_dot_product_attention(q, k, v)
        without, with_it = (relative(quantized_attention(q, k, v, s), exact) for s in (QK, SMOOTH))
        assert least < without / with_it < most


def test_smoothing_of_v_pays_where_v_has_a_mean() -> None:
    q, k, v = inputs(4)
    v = v + 30
    exact = scaled_dot_product_attention(q, k, v)
    plain = AttentionScheme(pv=INT8)
    without, with_it = (relative(quantized_attention(q, k, v, s), exact) for s in (plain, dataclasses.replace(plain, smooth_v=True)))
    assert without > 5 * with_it > 0


def test_larger_blocks_are_coarser() -> None:
    q, k, v = inputs(5)
    q = q * torch.logspace(-1, 1, q.shape[-2])[:, None]  # queries of every size: one scale does not fit them all
    exact = scaled_dot_product_attention(q, k, v)
    fine, coarse = (relative(quantized_attention(q, k, v, dataclasses.replace(QK, block_size=n)), exact) for n in (1, 24))
    assert coarse > 2 * fine


@pytest.mark.parametrize("scheme", [SMOOTH, SCHEMES[-1]], ids=str)
def test_blocks_of_rows_change_nothing(scheme: AttentionScheme, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = inputs(6)
    whole = quantized_attention(q, k, v, scheme)
    monkeypatch.setattr(module, "SCORES", 40 * 5)  # five rows at a time
    # A product of fewer rows may be summed in another order.
    torch.testing.assert_close(quantized_attention(q, k, v, scheme), whole, rtol=1e-5, atol=1e-6)


def test_masks_and_shared_heads_are_those_of_torch() -> None:
    q, k, v = inputs(7)
    keep = torch.rand(2, 1, 24, 40, generator=torch.Generator().manual_seed(0)) < 0.5
    keep[0, 0, 3] = False  # a row that sees nothing
    added = torch.zeros(2, 1, 24, 40).masked_fill(~keep, -torch.inf)
    exact = scaled_dot_product_attention(q, k, v, attn_mask=keep)
    for mask in (keep, added):
        found = quantized_attention(q, k, v, SMOOTH, mask=mask)
        assert relative(found, exact) < 0.02 and not found[0, :, 3].any()
    shared = scaled_dot_product_attention(q, k[:, :1], v[:, :1], enable_gqa=True)
    assert relative(quantized_attention(q, k[:, :1], v[:, :1], SMOOTH), shared) < 0.02


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, "found neither qk nor pv; wanted at least one"),
        ({"qk": QType.INT4}, "found qk = 'int4'; wanted int8"),
        ({"pv": QType.FP4_E2M1}, "found pv = 'fp4_e2m1'; wanted int8 or fp8_e4m3"),
        ({"pv": INT8, "smooth_k": True}, "smooth_k or block_size without qk"),
        ({"pv": INT8, "block_size": 64}, "smooth_k or block_size without qk"),
        ({"qk": INT8, "smooth_v": True}, "smooth_v without pv"),
        ({"qk": INT8, "block_size": 0}, "found block_size = 0; wanted 1"),
    ],
)
def test_bad_schemes(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        AttentionScheme(**wrong)


@pytest.mark.parametrize("scheme", [*SCHEMES, AttentionScheme(pv=FP8)], ids=str)
def test_schemes_come_back_from_plain_data(scheme: AttentionScheme) -> None:
    assert AttentionScheme.from_json(scheme.to_json()) == scheme
