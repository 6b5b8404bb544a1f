"""QuantizeToken at real widths against torch: what is exact bit for bit, the rest by its tolerances."""

from __future__ import annotations

from typing import Any

import pytest
import tolerances
import torch
from torch import Tensor

from vditc.hadamard import sylvester
from vditc.plugins.library import KernelError, Library
from vditc.plugins.torch_ops import quantize_token

WIDTHS = (64, 200, 1536, 3072, 5120, 8960, 13824)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def rows(x: Tensor, given: dict[str, Any]) -> Tensor:
    """What is quantized; norms and rotations in float64, rounded once."""
    v = x.float()
    if (kind := given.get("activation")) is not None:
        v = torch.nn.functional.gelu(v.double(), approximate="tanh" if kind == "gelu_tanh" else "none").float()
    if (norm := given.get("norm")) is not None:
        wide = v.double()
        wide = wide - wide.mean(-1, keepdim=True) if norm == "layer" else wide
        v = (wide / ((wide**2).mean(-1, keepdim=True) + 1e-6).sqrt()).float()
    for name, apply in (
        ("weight", torch.mul),
        ("bias", torch.add),
        ("gain", torch.mul),
        ("shift", torch.add),
        ("center", torch.sub),
        ("balance", torch.mul),
    ):
        v = apply(v, given[name]) if name in given else v
    if given.get("rotation"):
        h = torch.from_numpy(sylvester(256)).to(v.device).double() / 16
        v = (torch.unflatten(v.double(), -1, (-1, 256)) @ h).flatten(-2).float()
    return v


def expected(x: Tensor, bits: int, given: dict[str, Any]) -> tuple[Tensor, Tensor]:
    high = (1 << bits - 1) - 1
    v = rows(x, given)
    top = v.abs().amax(-1, keepdim=True)
    top = top * given["clip"] if "clip" in given else top
    scale = (top / high).clamp(min=1e-8)
    return (v / scale).round().clamp(-high - 1, high).to(torch.int8), scale


@pytest.mark.parametrize("k", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bits", [8, 6, 4, 3])
def test_exact_variants(library: Library, k: int, dtype: torch.dtype, bits: int) -> None:
    x = torch.randn(2, 501, k, device="cuda").to(dtype)
    x[0, 3] = 0
    vectors = {name: torch.randn(k, device="cuda") for name in ("center", "balance")}
    per_sample = {name: torch.randn(2, 1, k, device="cuda") for name in ("gain", "shift")}
    given: dict[str, Any] = {**vectors, **per_sample, "clip": torch.tensor([0.8], device="cuda")}
    cases: tuple[dict[str, Any], ...] = ({}, given)
    for options in cases:
        codes, scale = expected(x, bits, options)
        found = quantize_token(x, bits=bits, total=True, **options)
        assert torch.equal(found.codes, codes) and torch.equal(found.scale, scale)
        assert found.total is not None and torch.equal(found.total, codes.sum(-1, keepdim=True).float() * scale)


@pytest.mark.parametrize("k", [256, 1536, 5120, 8960, 13824])
@pytest.mark.parametrize(
    "given",
    [
        {"norm": "layer"},
        {"norm": "rms"},
        {"activation": "gelu"},
        {"activation": "gelu_tanh"},
        {"rotation": 256},
        {"norm": "layer", "rotation": 256},
    ],
    ids=lambda g: " ".join(map(str, g.values())),
)
def test_sums_and_gelu(library: Library, k: int, given: dict[str, Any]) -> None:
    x = torch.randn(777, k, device="cuda").bfloat16()
    options: dict[str, Any] = {**given, "gain": torch.randn(k, device="cuda"), "shift": torch.randn(k, device="cuda")}
    codes, scale = expected(x, 8, options)
    found = quantize_token(x, **options)
    off = (found.codes.int() - codes.int()).abs()
    assert off.max() <= 1 and off.sum() <= tolerances.CODES_OFF * off.numel()
    assert ((found.scale - scale).abs() <= tolerances.SCALE_OFF * scale).all()


def test_a_gate_two_codes_a_byte_and_shares(library: Library) -> None:
    x, residual, gate = (torch.randn(300, 1536, device="cuda").half() for _ in range(3))
    alpha = torch.randn(3, 1536, device="cuda")
    found = quantize_token(x, bits=4, packed=True, gate=gate[:1], residual=residual, alpha=alpha)
    after = (residual.float() + gate[:1].float() * x.float()).half()
    assert found.sum is not None and torch.equal(found.sum, after)
    codes, scale = expected(after, 4, {})
    halves = torch.unflatten(codes, -1, (-1, 2, 16)).view(torch.uint8)
    assert torch.equal(found.codes.view(torch.uint8), ((halves[..., 0, :] & 15) | (halves[..., 1, :] << 4)).flatten(-2))
    for r in range(3):
        products = codes.double() * alpha[r].double()
        limit = tolerances.SCALE_OFF * scale.double() * products.abs().sum(-1, keepdim=True)
        assert ((found.shares[r] - scale.double() * products.sum(-1, keepdim=True)).abs() <= limit).all()


def test_numbers_that_are_not_finite_do_not_spread(library: Library) -> None:
    """A token with an infinity spoils itself and no other."""
    x = torch.randn(64, 1536, device="cuda").half()
    clean = quantize_token(x)
    x[7, 9] = float("inf")
    found = quantize_token(x)
    others = torch.arange(64, device="cuda") != 7
    assert torch.equal(found.codes[others], clean.codes[others]) and torch.equal(found.scale[others], clean.scale[others])


def test_bad_input(library: Library) -> None:
    x = torch.zeros(4, 64, device="cuda")
    changes: tuple[dict[str, Any], ...] = (
        {"bits": 5},
        {"balance": torch.ones(64)},
        {"rotation": 256},
        {"norm": "layer", "activation": "gelu"},
    )
    for change in changes:
        with pytest.raises(KernelError):
            quantize_token(x, **change)
    assert quantize_token(x).codes.abs().max() == 0
