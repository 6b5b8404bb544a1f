"""A calibrated layer as a torch module computes what the calibration means, part by part and all at once."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tolerances
import torch
from safetensors.torch import load_file, save_file

from vditc.calibration import LayerCalibration
from vditc.correction import Correction, FrameOrder
from vditc.errors import InputError
from vditc.hadamard import rotate
from vditc.numerics import Granularity, QType
from vditc.plugins.torch_linear import QuantizedLinear
from vditc.scheme import QuantSpec, Scheme, quantize_weight
from vditc.transform import Transform

Array = npt.NDArray[Any]
F32 = np.float32
N, K, STEP = 48, 256, 1
WEIGHT = QuantSpec(qtype=QType.INT4, granularity=Granularity.PER_CHANNEL)
TOKEN = QuantSpec(qtype=QType.INT8, granularity=Granularity.PER_TOKEN, dynamic=True)


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(F32)


def calibrated(weight: QuantSpec = WEIGHT, activation: QuantSpec = TOKEN, **parts: Any) -> LayerCalibration:
    return LayerCalibration(
        role="ffn.up", scheme=Scheme(weight=weight, activation=activation), weight=quantize_weight(random(N, K), weight), **parts
    )


def meaning(layer: LayerCalibration, x: Array, bias: Array) -> Array:
    """y of x [rows, K] in float64, from the definitions in `vditc.transform`, `vditc.correction` and `vditc.scheme`."""
    t, c, a, w = layer.transform, layer.correction, layer.scheme.activation, layer.weight.read()
    assert a is not None
    wide = x if t.shift is None else x - t.shift
    wide = wide if t.balance is None else wide * t.balance
    wide = wide if t.rotation is None else rotate(wide, t.rotation)
    clip = 1 if layer.activation_clip is None else layer.activation_clip[STEP]
    scale: Array = np.maximum(np.abs(wide).max(-1, keepdims=True) * F32(clip) / F32(a.qtype.high), 1e-8)
    if layer.activation_scale is not None:
        scale = layer.activation_scale.reshape(-1)[STEP if layer.activation_scale.ndim else 0]
    codes = np.clip(np.rint(wide / scale), a.qtype.low, a.qtype.high).astype(float)
    zero = 0 if w.zero_point is None else w.zero_point[:, None]
    xq, wq = codes * scale, (w.codes.astype(float) - zero) * w.scale.astype(float).reshape(-1, 1)
    y = xq @ wq.T + bias + (0 if c.bias is None else c.bias)
    if c.alpha is not None and c.beta is not None:
        frames: Any = 1 if c.frames is None else np.repeat(c.frames, len(x) // len(c.frames))[:, None]
        y = y + frames * (xq @ c.alpha)[:, None] * c.beta
    if t.down is not None and t.up is not None:
        y = y + (wide.astype(float) @ t.down.T.astype(float)) @ t.up.T.astype(float)
    return np.asarray(y)


ASYMMETRIC = dataclasses.replace(WEIGHT, symmetric=False)
STATIC = QuantSpec(qtype=QType.INT8, granularity=Granularity.PER_TENSOR)
PARTS: dict[str, LayerCalibration] = {
    "plain": calibrated(),
    "8 bits": calibrated(QuantSpec(qtype=QType.INT8, granularity=Granularity.PER_CHANNEL)),
    "6 bits": calibrated(QuantSpec(qtype=QType.INT6, granularity=Granularity.PER_TENSOR), dataclasses.replace(TOKEN, qtype=QType.INT6)),
    "3 bits": calibrated(dataclasses.replace(WEIGHT, qtype=QType.INT3)),
    "zero points": calibrated(ASYMMETRIC),
    "shift and balance": calibrated(transform=Transform(shift=random(K, seed=1), balance=np.abs(random(K, seed=2)) + F32(0.1))),
    "rotation in the kernel": calibrated(transform=Transform(rotation=256)),
    "rotation in front": calibrated(transform=Transform(rotation=64, balance=np.abs(random(K, seed=2)) + F32(0.1))),
    "one static scale": calibrated(activation=STATIC, activation_scale=np.asarray(0.03, F32)),
    "scales of steps": calibrated(activation=dataclasses.replace(STATIC, per_step=True), activation_scale=np.asarray([9, 0.02, 9], F32)),
    "clips of steps": calibrated(activation_clip=np.asarray([1, 0.6, 1], F32)),
    "bias correction": calibrated(correction=Correction(bias=random(N, seed=3))),
    "estimate": calibrated(
        correction=Correction(
            alpha=random(K, seed=4), beta=random(N, seed=5), frames=np.asarray([0.5, 2], F32), order=FrameOrder.FRAMES_FIRST
        )
    ),
    "low rank": calibrated(transform=Transform(down=random(10, K, seed=6).astype(np.float16), up=random(N, 10, seed=7).astype(np.float16))),
    "all": calibrated(
        ASYMMETRIC,
        transform=Transform(
            shift=random(K, seed=1),
            balance=np.abs(random(K, seed=2)) + F32(0.1),
            rotation=256,
            down=random(16, K, seed=6).astype(np.float16),
            up=random(N, 16, seed=7).astype(np.float16),
        ),
        activation_clip=np.asarray([1, 0.6, 1], F32),
        correction=Correction(bias=random(N, seed=3), alpha=random(K, seed=4), beta=random(N, seed=5)),
    ),
}


@pytest.mark.parametrize("part", PARTS)
def test_a_layer_is_what_the_calibration_means(part: str) -> None:
    layer, x, bias = PARTS[part], random(8, K, seed=9), random(N, seed=8)
    module = QuantizedLinear(layer, bias, dtype=torch.float32)
    found = module(torch.from_numpy(x), step=STEP).numpy()
    wanted = meaning(layer, x, bias)
    allowed = tolerances.TORCH_LAYER["fp16 branch" if layer.transform.down is not None else "fp32"]
    assert np.abs(found - wanted).max() <= allowed * np.abs(wanted).max()
    # The part is there: a layer without it gives something else.
    bare = LayerCalibration(role="", scheme=Scheme(weight=WEIGHT, activation=TOKEN), weight=PARTS["plain"].weight)
    assert part == "plain" or np.abs(meaning(bare, x, bias) - wanted).max() > 10 * allowed * np.abs(wanted).max()


def test_layers_share_codes() -> None:
    x = torch.from_numpy(random(2, 5, K, seed=9))
    q, k = (QuantizedLinear(PARTS[part], dtype=torch.float32) for part in ("zero points", "zero points"))
    tokens = q.quantize(x)
    assert torch.equal(q.multiply(tokens), q(x)) and torch.equal(k.multiply(tokens), k(x))


def test_a_gate_and_a_residual() -> None:
    layer = QuantizedLinear(PARTS["plain"], activation="gelu", dtype=torch.float32)
    x, gate, residual = torch.from_numpy(random(4, K)), torch.full((N,), 2.0), torch.ones(4, N)
    y = layer(x)
    assert torch.equal(layer(x, gate=gate, residual=residual), 1 + 2 * y)


def test_two_codes_a_byte() -> None:
    four = calibrated(activation=dataclasses.replace(TOKEN, qtype=QType.INT4))
    x = torch.from_numpy(random(4, K))
    assert torch.equal(QuantizedLinear(four, packed=True, tactic="int4")(x), QuantizedLinear(four)(x))


def test_it_is_a_module_like_any_other(tmp_path: Any) -> None:
    """Its tensors are a state dict, and torch.compile takes it whole."""
    layer, other = (QuantizedLinear(PARTS[part]) for part in ("zero points", "zero points"))
    save_file(layer.state_dict(), tmp_path / "layer.safetensors")
    other.load_state_dict(load_file(tmp_path / "layer.safetensors"))
    x = torch.from_numpy(random(4, K)).bfloat16()
    assert torch.equal(torch.compile(other, fullgraph=True, backend="aot_eager")(x), layer(x))
    assert "in_features=256, out_features=48, W4A8" in repr(layer)


def test_what_no_kernel_computes() -> None:
    def refused(said: str, layer: LayerCalibration, **options: Any) -> None:
        with pytest.raises(InputError, match=said):
            QuantizedLinear(layer, name="blocks.0.ffn", **options)

    fp8 = QuantSpec(qtype=QType.FP8_E4M3, granularity=Granularity.PER_CHANNEL)
    refused("blocks.0.ffn: found scheme .*fp8", calibrated(fp8, dataclasses.replace(TOKEN, qtype=QType.FP8_E4M3)))
    refused("a static one", calibrated(activation=dataclasses.replace(STATIC, dynamic=True)))
    wide = Transform(down=random(65, K).astype(np.float16), up=random(N, 65).astype(np.float16))
    refused("a branch of rank 65", calibrated(transform=wide))
    refused("packed codes of 8 bits", calibrated(), packed=True)
    with pytest.raises(InputError, match="found no step; wanted one of 3"):
        QuantizedLinear(PARTS["clips of steps"])(torch.zeros(1, K))
    with pytest.raises(InputError, match="3 rows of 1 clips"):
        QuantizedLinear(PARTS["estimate"])(torch.zeros(3, K))


def test_types_stay_when_a_model_is_cast() -> None:
    """`pipe.to("cuda", torch.bfloat16)` is the usual call; scales are the kernels' float32 all the same."""
    module = QuantizedLinear(PARTS["zero points"])
    x = torch.randn(3, K, generator=torch.Generator().manual_seed(0)).to(torch.float16)
    before, kept = module(x), {name: tensor.clone() for name, tensor in module.named_buffers()}
    cast = torch.nn.Sequential(module).to(torch.bfloat16)
    assert all(torch.equal(tensor, kept[name]) and tensor.dtype is kept[name].dtype for name, tensor in cast[0].named_buffers())
    assert torch.equal(cast(x), before)
