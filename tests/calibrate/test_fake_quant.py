"""Fake quantization has the values of the integer arithmetic and the slopes of LSQ+."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vditc.calibrate.fake_quant import quantized_rows, quantized_tokens
from vditc.numerics import Granularity, QType
from vditc.scheme import QuantSpec, quantize_weight

F32 = np.float32
TOKEN = QuantSpec(qtype=QType.INT4, granularity=Granularity.PER_TOKEN, dynamic=True)
ROWS = {symmetric: QuantSpec(qtype=QType.INT4, granularity=Granularity.PER_CHANNEL, symmetric=symmetric) for symmetric in (True, False)}


@pytest.mark.parametrize("symmetric", ROWS)
def test_a_weight_has_the_values_that_the_file_will_have(symmetric: bool, rng: np.random.Generator) -> None:
    weight, spec = rng.standard_normal((16, 32)).astype(F32), ROWS[symmetric]
    scale = rng.uniform(0.05, 0.4, 16).astype(F32)
    zero_point = None if symmetric else rng.uniform(-5, 5, 16).astype(F32)
    found = quantized_rows(
        torch.from_numpy(weight), torch.from_numpy(scale), None if zero_point is None else torch.from_numpy(zero_point), spec
    )
    wanted = quantize_weight(weight, spec, scale, zero_point=zero_point).dequantize()
    # (codes - zero_point) * scale against codes * scale - scale * zero_point: two roundings of numbers below 16 scales.
    np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=16 * 0.4 * 2**-23)


def test_a_token_by_hand() -> None:
    """Greatest 14, clipped to 7: the scale is 1, and 14 becomes 7; a token of zeros stays one."""
    x = torch.tensor([[14.0, -2.4, 0.6], [0, 0, 0]], requires_grad=True)
    found = quantized_tokens(x, TOKEN, torch.tensor([[0.5], [0.5]]))
    np.testing.assert_array_equal(found.detach().numpy(), [[7, -2, 1], [0, 0, 0]])
    torch.autograd.backward(found.sum())
    assert x.grad is not None
    np.testing.assert_array_equal(x.grad.numpy(), [[0, 1, 1], [1, 1, 1]])  # straight through, but for what is cut off


def test_slopes_of_scale_and_zero_point_by_hand() -> None:
    """Inside: rint(w/s) - w/s for the scale, 0 for the zero point. Outside: the end of the grid, and -s. Both damped by (K high)^-1/2."""
    weight = torch.tensor([[0.6, -3.3, 20.0, 1.0]])
    scale, zero = (torch.tensor([value], requires_grad=True) for value in (1.0, 0.0))
    torch.autograd.backward(quantized_rows(weight, scale, zero, ROWS[False]).sum())
    damping = (4 * 7) ** -0.5
    assert scale.grad is not None and zero.grad is not None
    np.testing.assert_allclose(scale.grad.numpy(), [damping * ((1 - 0.6) + (-3 + 3.3) + 7 + 0)], rtol=1e-5)
    np.testing.assert_allclose(zero.grad.numpy(), [-damping], rtol=1e-5)


def test_a_clip_learns_from_what_it_cuts_off() -> None:
    clip = torch.tensor([[0.5]], requires_grad=True)
    torch.autograd.backward(quantized_tokens(torch.tensor([[14.0, 1.0]]), TOKEN, clip).sum())
    assert clip.grad is not None
    # The scale 14 clip / 7 moves the cut-off value by 7 and the other by its rounding, 0.
    np.testing.assert_allclose(clip.grad.numpy(), [[14 / 7 * 7]], rtol=1e-6)
