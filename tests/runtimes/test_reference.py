"""The reference runtime against hand-written numpy and against the full-precision model."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from vditc.calibration import Calibration, LayerCalibration
from vditc.conditioning import TEXT, Conditioning
from vditc.errors import InputError
from vditc.export.adapters.registry import adapter_for
from vditc.float_codes import from_nvfp4, nvfp4, to_codes
from vditc.model_dir import ModelDir
from vditc.numerics import Granularity, QType
from vditc.runtimes.reference import QuantizedLinear, ReferenceModel, layer_errors
from vditc.sampling import Feeds
from vditc.schedule import Schedule
from vditc.scheme import QTensor, QuantSpec, Scheme, quantize_weight

W8 = QuantSpec(qtype=QType.INT8, granularity=Granularity.PER_CHANNEL)
W4 = QuantSpec(qtype=QType.INT4, granularity=Granularity.PER_GROUP, group_size=64)
TOKEN = QuantSpec(qtype=QType.INT8, granularity=Granularity.PER_TOKEN, dynamic=True)
TOKEN6 = QuantSpec(qtype=QType.INT6, granularity=Granularity.PER_TOKEN, dynamic=True)
TENSOR = QuantSpec(qtype=QType.INT8, granularity=Granularity.PER_TENSOR)
STEPS = QuantSpec(qtype=QType.INT8, granularity=Granularity.PER_TENSOR, per_step=True)
F32 = np.float32


def linear(activation: QuantSpec | None, scale: Any, rng: np.random.Generator) -> tuple[QuantizedLinear, QTensor]:
    """A quantized linear 32 -> 8 with bias whose weight scales are powers of two, so every float32 sum below is exact."""
    codes = rng.integers(-127, 128, (8, 32)).astype(np.int8)
    weight = QTensor(codes, F32(2.0) ** rng.integers(-3, 1, 8).astype(F32), W8)
    layer = LayerCalibration(
        role="ffn.in",
        scheme=Scheme(weight=W8, activation=activation),
        weight=weight,
        activation_scale=None if scale is None else np.array(scale, F32),
    )
    return QuantizedLinear(layer, torch.nn.Parameter(torch.arange(8.0))), weight


@pytest.mark.parametrize(("spec", "high"), [(TOKEN, 127), (TOKEN6, 31)], ids=str)
def test_dynamic_per_token_is_bit_for_bit_the_numpy_formula(spec: QuantSpec, high: int, rng: np.random.Generator) -> None:
    module, weight = linear(spec, None, rng)
    x = rng.standard_normal((2, 5, 32), F32)
    x[1, 2] = 0  # an all-zero token
    s = np.maximum(np.abs(x).max(-1, keepdims=True) / F32(high), F32(1e-8))
    codes = np.clip(np.rint(x / s), -high - 1, high).astype(F32)
    assert np.abs(codes[0]).max() == high
    wanted = (codes @ weight.dequantize().T) * s + np.arange(8, dtype=F32)
    np.testing.assert_array_equal(module(torch.tensor(x)).detach().numpy(), wanted)
    np.testing.assert_array_equal(wanted[1, 2], np.arange(8))


def test_static_per_step_takes_the_row_of_its_step_and_clips(rng: np.random.Generator) -> None:
    module, weight = linear(STEPS, [0.01, 0.03], rng)
    x = rng.standard_normal((4, 32), F32)
    for step, s in enumerate([F32(0.01), F32(0.03)]):
        module.step = step
        codes = np.clip(np.rint(x / s), -128, 127).astype(F32)
        wanted = (codes @ weight.dequantize().T) * s + np.arange(8, dtype=F32)
        np.testing.assert_array_equal(module(torch.tensor(x)).detach().numpy(), wanted)
    assert np.abs(x / F32(0.01)).max() > 128


def test_static_without_steps_scales_before_the_product(rng: np.random.Generator) -> None:
    module, weight = linear(TENSOR, 0.03125, rng)
    x = rng.standard_normal((4, 32), F32)
    codes = np.clip(np.rint(x / F32(0.03125)), -128, 127).astype(F32)
    wanted = (codes * F32(0.03125)) @ weight.dequantize().T + np.arange(8, dtype=F32)
    np.testing.assert_array_equal(module(torch.tensor(x)).detach().numpy(), wanted)


def test_ties_go_to_even(rng: np.random.Generator) -> None:
    module, weight = linear(TENSOR, 1.0, rng)
    x = np.zeros((1, 32), F32)
    x[0, :4] = 0.5, 1.5, 2.5, -0.5
    codes = np.zeros(32, F32)
    codes[:3] = 0, 2, 2
    np.testing.assert_array_equal(module(torch.tensor(x)).detach().numpy()[0], weight.dequantize() @ codes + np.arange(8))


FP8 = QuantSpec(qtype=QType.FP8_E4M3, granularity=Granularity.PER_CHANNEL)
FP8_TOKEN = QuantSpec(qtype=QType.FP8_E4M3, granularity=Granularity.PER_TOKEN, dynamic=True)
FP8_STEPS = QuantSpec(qtype=QType.FP8_E4M3, granularity=Granularity.PER_TENSOR, per_step=True)
FP8_TENSOR = QuantSpec(qtype=QType.FP8_E4M3, granularity=Granularity.PER_TENSOR)
NVFP4 = QuantSpec(qtype=QType.FP4_E2M1, granularity=Granularity.PER_GROUP, group_size=16)
NVFP4_BLOCKS = dataclasses.replace(NVFP4, dynamic=True)


def float_linear(activation: QuantSpec, scale: Any, rng: np.random.Generator) -> tuple[QuantizedLinear, QTensor]:
    """A linear 32 -> 8 without bias; its weight is quantized from whole numbers."""
    spec = NVFP4 if activation.qtype is QType.FP4_E2M1 else FP8
    weight = quantize_weight(rng.integers(-6, 7, (8, 32)), spec)
    scheme = Scheme(weight=spec, activation=activation)
    layer = LayerCalibration(role="ffn.in", scheme=scheme, weight=weight, activation_scale=None if scale is None else np.array(scale, F32))
    return QuantizedLinear(layer, None), weight


@pytest.mark.parametrize("spec", [FP8_TOKEN, FP8_STEPS, FP8_TENSOR, NVFP4_BLOCKS], ids=str)
def test_floating_point_codes_are_those_of_numpy(spec: QuantSpec, rng: np.random.Generator) -> None:
    scales: dict[QuantSpec, Any] = {FP8_STEPS: [1.0, 2.0**-10], FP8_TENSOR: 2.0**-10, NVFP4_BLOCKS: 2.0**-13}
    module, weight = float_linear(spec, scales.get(spec), rng)
    module.step = 1
    x = rng.standard_normal((3, 5, 32), F32) * F32(10.0) ** rng.integers(-6, 1, (3, 5, 1)).astype(F32)
    x[0, :2, :16] = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, 6, -5, -2.5, -0.25, 0, 0, 0, 0, 6], F32) * F32(2.0**-10)  # ties
    x[1, 2] = 0
    static = np.array(scales.get(spec, 0), F32).reshape(-1)[-1]
    if spec is NVFP4_BLOCKS:
        wanted = from_nvfp4(*nvfp4(x, static), static) @ weight.dequantize().T
        assert (np.abs(x) > 6 * 448 * static).any()
    else:
        s = np.maximum(np.abs(x).max(-1, keepdims=True) / F32(448), F32(1e-8)) if spec.dynamic else static
        codes = to_codes(x / s, QType.FP8_E4M3).astype(F32)
        wanted = (codes * s) @ weight.dequantize().T if spec is FP8_TENSOR else (codes @ weight.dequantize().T) * s
        assert spec.dynamic or (np.abs(x) > 448 * s).any()
    found = module(torch.tensor(x)).numpy()
    # The codes are equal; sums of 32 products may be taken in another order.
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2.0**-20 * np.abs(x).max() * 6 * 32)
    exact = x @ weight.dequantize().T
    assert np.abs(found - exact).max() > 2.0**-12 * np.abs(exact).max()  # the codes did change something
    assert not found[1, 2].any()


def test_a_cast_alone_would_not_saturate() -> None:
    """torch's E4M3 rounds to nearest even, also subnormals, but gives NaN beyond 464: hence the clamp before it."""
    x = torch.cat([torch.arange(-470, 470, 0.37), torch.tensor([2.0**-10, 1.5 * 2.0**-9, 1e9, -1e9])])
    wanted = to_codes(x.numpy(), QType.FP8_E4M3).astype(F32)
    inside = x.abs() <= 448
    np.testing.assert_array_equal(x[inside].to(torch.float8_e4m3fn).float().numpy(), wanted[inside.numpy()])
    module, _ = float_linear(FP8_TENSOR, 1.0, np.random.default_rng(0))
    assert torch.isfinite(module(torch.full((1, 32), 1e9))).all()


def calibration_of(source: ModelDir, scheme: Scheme, patterns: tuple[str, ...], scale: Any = None) -> Calibration:
    """Round to nearest of the layers whose role starts with one of `patterns`."""
    layers = {}
    for name, role in adapter_for(source).layer_roles(source).items():
        if role.startswith(patterns):
            weight = source.weights[f"{name}.weight"].read()
            tensor = quantize_weight(weight, scheme.weight, scale_dtype=np.float32 if scheme.activation else np.float16)
            layers[name] = LayerCalibration(role=role, scheme=scheme, weight=tensor, activation_scale=scale)
    return Calibration(
        model_class=source.model_class,
        model_digest=source.digest,
        recipe="test",
        recipe_digest="",
        method="rtn",
        schedule=Schedule.flow(np.array([1.0, 0.5, 0.0])),
        guidance_scale=1.0,
        layers=layers,
        kept={},
        statistics={},
    )


Feed = tuple[Feeds, int]


@pytest.fixture
def feed(tiny_conditioning: Conditioning) -> Feed:
    c = tiny_conditioning
    noise = np.concatenate([c.noise(0), c.noise(1)])
    return {"hidden_states": noise, "timestep": np.array([900, 900], F32), TEXT: c.inputs[TEXT]}, 0


def plain(source: ModelDir, feed: Feed, weights: dict[str, npt.NDArray[Any]] | None = None) -> npt.NDArray[Any]:
    """The diffusers model, with some weights replaced."""
    adapter = adapter_for(source)
    model = adapter.load(source)
    with torch.inference_mode():
        for name, weight in (weights or {}).items():
            model.get_submodule(name).weight.copy_(torch.from_numpy(weight))
        velocity = model(**{n: torch.tensor(a) for n, a in feed[0].items()})
    sample: npt.NDArray[Any] = velocity.sample.numpy()
    return sample


def test_without_calibration_it_is_the_full_precision_model(tiny: ModelDir, feed: Feed) -> None:
    np.testing.assert_array_equal(ReferenceModel(adapter_for(tiny), tiny, None)(*feed), plain(tiny, feed))


def test_weight_only_is_the_model_with_dequantized_weights(tiny: ModelDir, feed: Feed) -> None:
    calibration = calibration_of(tiny, Scheme(weight=W4), ("self_attn", "cross_attn", "ffn"))
    assert len(calibration.layers) == 20
    # DequantizeLinear with a float16 scale gives float16, which the graph then casts.
    weights = {n: layer.weight.read().dequantize().astype(np.float16).astype(F32) for n, layer in calibration.layers.items()}
    velocity = ReferenceModel(adapter_for(tiny), tiny, calibration)(*feed)
    np.testing.assert_array_equal(velocity, plain(tiny, feed, weights))
    assert np.abs(velocity - plain(tiny, feed)).max() > 1e-3  # the weights did change


@pytest.mark.parametrize("role", ["time_embed", "modulation", "text_embed", "head", "cross_attn"])
def test_every_linear_can_be_quantized(tiny: ModelDir, feed: Feed, role: str) -> None:
    calibration = calibration_of(tiny, Scheme(weight=W8, activation=TOKEN), (role,))
    velocity, exact = ReferenceModel(adapter_for(tiny), tiny, calibration)(*feed), plain(tiny, feed)
    assert 0 < np.linalg.norm(velocity - exact) < 0.05 * np.linalg.norm(exact)


def test_step_chooses_the_row_and_must_have_one(tiny: ModelDir, feed: Feed) -> None:
    scheme = Scheme(weight=W8, activation=STEPS)
    model = ReferenceModel(adapter_for(tiny), tiny, calibration_of(tiny, scheme, ("ffn.in",), np.array([0.03, 3.0], F32)))
    exact = plain(tiny, feed)
    fine, coarse = (np.linalg.norm(model(feed[0], step) - exact) for step in (0, 1))
    assert coarse > 10 * fine > 0
    for step in (2, -1):
        with pytest.raises(InputError, match=rf"found step {step}; wanted 0 to 1"):
            model(feed[0], step)


def test_calibration_of_another_model_is_refused(tiny: ModelDir, feed: Feed) -> None:
    other = dataclasses.replace(calibration_of(tiny, Scheme(weight=W8), ("head",)), model_digest="0" * 64)
    with pytest.raises(InputError, match=r"found a calibration of model 000000000000; wanted one of model"):
        ReferenceModel(adapter_for(tiny), tiny, other)
    with pytest.raises(InputError, match=r"found a calibration of model 0"):
        layer_errors(adapter_for(tiny), tiny, other, [feed])


def test_unknown_device(tiny: ModelDir) -> None:
    with pytest.raises(InputError, match=r"--device: found device 'cuda:99'"):
        ReferenceModel(adapter_for(tiny), tiny, None, "cuda:99")


def test_layer_errors_are_the_relative_error_of_the_products(tiny: ModelDir, feed: Feed) -> None:
    name, adapter = "blocks.1.attn1.to_out.0", adapter_for(tiny)
    calibration = calibration_of(tiny, Scheme(weight=W8, activation=STEPS), ("self_attn.out",), np.array([0.01, 0.02], F32))
    feeds: list[Feed] = [feed, ({n: a if n == TEXT else a / 2 for n, a in feed[0].items()}, 1)]
    inputs: list[npt.NDArray[Any]] = []
    model = adapter.load(tiny)
    model.get_submodule(name).register_forward_pre_hook(lambda _m, args: inputs.append(args[0].numpy()))
    for given, _ in feeds:
        with torch.inference_mode():
            model(**{n: torch.tensor(a) for n, a in given.items()})
    weight = model.get_submodule(name).weight.numpy().astype(np.float64)
    quantized = calibration.layers[name].weight.read().dequantize().astype(np.float64)
    error = norm = 0.0
    for x, s in zip(inputs, (F32(0.01), F32(0.02)), strict=True):
        codes = np.clip(np.rint(x / s), -128, 127).astype(np.float64)
        exact = x.astype(np.float64) @ weight.T
        error += float(np.square(exact - codes @ quantized.T * s).sum())
        norm += float(np.square(exact).sum())
    found = layer_errors(adapter, tiny, calibration, feeds)
    assert sorted(found) == sorted(calibration.layers)
    assert found[name] == pytest.approx(np.sqrt(error / norm), rel=1e-4)  # float32 products against float64 ones


def test_fewer_bits_have_a_greater_error_in_every_layer(tiny: ModelDir, feed: Feed) -> None:
    roles = ("self_attn", "cross_attn", "ffn")
    int8, int4 = (layer_errors(adapter_for(tiny), tiny, calibration_of(tiny, Scheme(weight=w), roles), [feed]) for w in (W8, W4))
    assert len(int8) == 20 and all(int4[n] > 5 * int8[n] > 0 for n in int8)
