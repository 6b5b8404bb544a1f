"""Quantized tensors: rounding, groups, packing."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vditc.errors import InputError
from vditc.numerics import EPS, Granularity, QType
from vditc.scheme import QTensor, QuantSpec, Scheme, pack_int4, quantize_weight, scale_shape, unpack_int4

INTEGERS = [QType.INT8, QType.INT6, QType.INT4, QType.INT3]
PER_CHANNEL, PER_GROUP, PER_TENSOR = Granularity.PER_CHANNEL, Granularity.PER_GROUP, Granularity.PER_TENSOR

# Half a step, and what the division and the product may round off: 2**-24 each of a weight of up to 128 steps.
HALF_STEP = 0.5 + 128 * 2**-23

weights = hnp.arrays(np.float32, st.tuples(st.integers(1, 5), st.just(32)), elements=st.floats(-1000, 1000, width=32))
specs = st.builds(
    lambda qtype, kind: QuantSpec(qtype=qtype, granularity=kind, group_size=16 if kind is PER_GROUP else None),
    st.sampled_from(INTEGERS),
    st.sampled_from([PER_CHANNEL, PER_GROUP, PER_TENSOR]),
)


def spread(tensor: QTensor) -> npt.NDArray[np.float32]:
    """The scale of every element."""
    scale = tensor.scale.astype(np.float32)
    per = tensor.codes.shape[1] // scale.shape[1] if scale.ndim == 2 else 1
    return np.broadcast_to(np.repeat(scale, per, 1) if scale.ndim == 2 else scale.reshape(-1, 1), tensor.codes.shape)


@settings(deadline=None)
@given(weights, specs)
def test_float32_scales_round_to_within_half_a_step(weight: npt.NDArray[np.float32], spec: QuantSpec) -> None:
    tensor = quantize_weight(weight, spec)
    assert tensor.codes.dtype == np.int8 and tensor.scale.shape == scale_shape(weight.shape, spec)
    assert spec.qtype.low <= tensor.codes.min() and tensor.codes.max() <= spec.qtype.high
    assert (np.abs(weight - tensor.dequantize()) <= spread(tensor) * HALF_STEP).all()
    if np.abs(weight).max() > EPS * spec.qtype.high:
        assert np.abs(tensor.codes).max() == spec.qtype.high  # the whole range is used


@settings(deadline=None)
@given(weights, specs)
def test_float16_scales_round_to_within_half_a_step_where_they_reach(weight: npt.NDArray[np.float32], spec: QuantSpec) -> None:
    tensor = quantize_weight(weight, spec, scale_dtype=np.float16)
    steps = spread(tensor)
    reached = np.abs(weight) <= steps * np.float32(spec.qtype.high)  # a scale rounded down may clip its greatest weight
    assert (np.abs(weight - tensor.dequantize())[reached] <= steps[reached] * HALF_STEP).all()


@settings(deadline=None)
@given(weights, st.sampled_from(INTEGERS))
def test_one_group_of_all_channels_is_per_channel(weight: npt.NDArray[np.float32], qtype: QType) -> None:
    grouped = quantize_weight(weight, QuantSpec(qtype=qtype, granularity=PER_GROUP, group_size=weight.shape[1]))
    channel = quantize_weight(weight, QuantSpec(qtype=qtype, granularity=PER_CHANNEL))
    np.testing.assert_array_equal(grouped.codes, channel.codes)
    np.testing.assert_array_equal(grouped.scale[:, 0], channel.scale)


@settings(deadline=None)
@given(hnp.arrays(np.int8, st.tuples(st.integers(1, 6), st.integers(1, 6).map(lambda k: 2 * k)), elements=st.integers(-8, 7)))
def test_unpack_is_the_inverse_of_pack(codes: npt.NDArray[np.int8]) -> None:
    packed = pack_int4(codes)
    assert packed.dtype == np.uint8 and packed.size * 2 == codes.size
    np.testing.assert_array_equal(unpack_int4(packed, codes.shape), codes)


def test_first_code_is_the_low_nibble() -> None:
    np.testing.assert_array_equal(pack_int4(np.array([[1, -8], [-1, 7]], np.int8)), [0x81, 0x7F])


def test_rounding_takes_ties_to_even_and_zeros_stay() -> None:
    weight = np.array([[127, 0.5, 1.5, -2.5], [0, 0, 0, 0]], np.float32)
    tensor = quantize_weight(weight, QuantSpec(qtype=QType.INT8, granularity=PER_CHANNEL))
    np.testing.assert_array_equal(tensor.codes, [[127, 0, 2, -2], [0, 0, 0, 0]])
    np.testing.assert_array_equal(tensor.scale, np.array([1, EPS], np.float32))


def test_a_given_scale_clips_what_it_does_not_reach() -> None:
    weight = np.array([[-9.0, 9.0, 2.0, 0.0]], np.float32)
    spec = QuantSpec(qtype=QType.INT3, granularity=PER_CHANNEL)
    np.testing.assert_array_equal(quantize_weight(weight, spec, np.array([1.0])).codes, [[-4, 3, 2, 0]])


@pytest.mark.parametrize(
    ("codes", "scale", "message"),
    [
        (np.zeros((2, 4), np.int16), np.ones(2), r"codes int16\[2, 4\]; wanted int8"),
        (np.zeros((2, 4), np.int8), np.ones(4), r"scale \[4\]; wanted \[2\]"),
        (np.zeros((2, 4), np.int8), np.array([1, 0]), r"a scale that is zero, negative or not finite"),
        (np.zeros((2, 4), np.int8), np.array([1, np.nan]), r"a scale that is zero, negative or not finite"),
        (np.full((2, 4), 8, np.int8), np.ones(2), r"codes in \[8, 8\]; wanted \[-8, 7\]"),
    ],
)
def test_a_wrong_tensor_cannot_be_made(codes: Any, scale: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QTensor(codes, scale, QuantSpec(qtype=QType.INT4, granularity=PER_CHANNEL))


def test_stored_bits_count_scales() -> None:
    spec = QuantSpec(qtype=QType.INT3, granularity=PER_GROUP, group_size=16)
    assert quantize_weight(np.ones((4, 32)), spec, scale_dtype=np.float16).stored_bits == 128 * 3 + 8 * 16


INT8_CHANNEL = QuantSpec(qtype=QType.INT8, granularity=PER_CHANNEL)
INT8_TOKEN = QuantSpec(qtype=QType.INT8, granularity=Granularity.PER_TOKEN, dynamic=True)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"granularity": PER_GROUP}, r"group_size exactly with per_group"),
        ({"granularity": PER_CHANNEL, "group_size": 16}, r"group_size exactly with per_group"),
        ({"granularity": PER_GROUP, "group_size": 8}, r"16 or more"),
        ({"granularity": Granularity.PER_TOKEN}, r"static per_token"),
        ({"granularity": PER_TENSOR, "dynamic": True, "per_step": True}, r"found dynamic and per_step"),
        ({"granularity": PER_TENSOR, "symmetric": False}, r"symmetric = false with int8 per_tensor"),
    ],
)
def test_specs_that_mean_nothing(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        QuantSpec(qtype=QType.INT8, **spec)


def test_schemes_that_mean_nothing() -> None:
    grouped = QuantSpec(qtype=QType.INT4, granularity=PER_GROUP, group_size=16)
    with pytest.raises(InputError, match=r"wanted static per_tensor, per_channel or per_group weights"):
        Scheme(weight=INT8_TOKEN)
    with pytest.raises(InputError, match=r"wanted per_tensor or per_token activations"):
        Scheme(weight=INT8_CHANNEL, activation=INT8_CHANNEL)
    of_plugins = dataclasses.replace(grouped, group_size=128)
    assert Scheme(weight=of_plugins, activation=INT8_TOKEN).weight.group_size == 128
    for spec in (grouped, dataclasses.replace(of_plugins, qtype=QType.FP8_E4M3)):
        with pytest.raises(InputError, match=r"wanted per_channel weights, or integers in groups of 128, where activations are"):
            Scheme(weight=spec, activation=INT8_TOKEN)


@pytest.mark.parametrize("scheme", [Scheme(weight=INT8_CHANNEL), Scheme(weight=INT8_CHANNEL, activation=INT8_TOKEN)], ids=str)
def test_scheme_goes_through_json(scheme: Scheme) -> None:
    assert Scheme.from_json(scheme.to_json()) == scheme


def test_asymmetric_codes_by_hand() -> None:
    """A row from -1 to 2 on 16 codes: scale 0.2, zero point -8 + 5 = -3; one that starts at 1 is widened to hold 0."""
    spec = QuantSpec(qtype=QType.INT4, granularity=PER_CHANNEL, symmetric=False)
    tensor = quantize_weight(np.array([[-1, 0, 0.31, 2], [1, 2, 2.4, 3], [0, 0, 0, 0]], np.float32), spec)
    np.testing.assert_allclose(tensor.scale, [0.2, 0.2, 1e-8], rtol=1e-6)
    np.testing.assert_array_equal(tensor.zero_point, [-3, -8, -8])
    np.testing.assert_array_equal(tensor.codes, [[-8, -3, -1, 7], [-3, 2, 4, 7], [-8, -8, -8, -8]])
    np.testing.assert_allclose(tensor.dequantize()[:2], [[-1, 0, 0.4, 2], [1, 2, 2.4, 3]], atol=1e-6)
    assert not tensor.dequantize()[2].any() and tensor.stored_bits == 12 * 4 + 3 * 64


@given(hnp.arrays(np.float32, (3, 16), elements=st.floats(-(2.0**60), 2.0**60, width=32)))
def test_an_asymmetric_grid_holds_zero_and_both_ends(weight: npt.NDArray[np.float32]) -> None:
    spec = QuantSpec(qtype=QType.INT8, granularity=PER_CHANNEL, symmetric=False)
    tensor = quantize_weight(weight, spec)
    step = tensor.scale.astype(np.float64)[:, None]
    # Half a step of rounding, half a step of the zero point that is a whole number.
    assert (np.abs(weight - tensor.dequantize()) <= step * 1.01).all()
    assert (tensor.dequantize()[weight == 0] == 0).all()
