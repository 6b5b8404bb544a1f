"""Round to nearest and the registry of methods."""

from __future__ import annotations

import numpy as np
import pytest

from vditc.calibrate.methods.base import InputStatistics
from vditc.calibrate.methods.registry import method_for, methods
from vditc.calibrate.methods.rtn import RoundToNearest, static_scale
from vditc.errors import InputError
from vditc.float_weight import ArrayTensor, FloatWeight
from vditc.numerics import EPS, Granularity, QType
from vditc.scheme import QuantSpec, Scheme

W8 = QuantSpec(qtype=QType.INT8, granularity=Granularity.PER_CHANNEL)
W4 = QuantSpec(qtype=QType.INT4, granularity=Granularity.PER_GROUP, group_size=16)
TOKEN = QuantSpec(qtype=QType.INT8, granularity=Granularity.PER_TOKEN, dynamic=True)
TENSOR = QuantSpec(qtype=QType.INT8, granularity=Granularity.PER_TENSOR)
STEPS = QuantSpec(qtype=QType.INT8, granularity=Granularity.PER_TENSOR, per_step=True)
RTN = RoundToNearest()


def test_static_scale_per_step_and_over_all_steps() -> None:
    absmax = np.array([12.7, 0.0, 254.0], np.float32)
    np.testing.assert_array_equal(static_scale(absmax, STEPS), np.array([np.float32(12.7) / np.float32(127), EPS, 2.0], np.float32))
    over_all = static_scale(absmax, TENSOR)
    assert over_all.shape == () and over_all == 2.0


def test_int6_divides_by_31() -> None:
    spec = QuantSpec(qtype=QType.INT6, granularity=Granularity.PER_TENSOR)
    assert static_scale(np.array([62.0], np.float32), spec) == 2.0


@pytest.mark.parametrize(
    ("scheme", "dtype", "needs"),
    [
        (Scheme(weight=W4), np.float16, False),
        (Scheme(weight=W8), np.float16, False),
        (Scheme(weight=W8, activation=TOKEN), np.float32, False),
        (Scheme(weight=W8, activation=STEPS), np.float32, True),
        (Scheme(weight=W8, activation=TENSOR), np.float32, True),
    ],
    ids=str,
)
def test_scale_types_and_need_of_data(scheme: Scheme, dtype: type, needs: bool, rng: np.random.Generator) -> None:
    seen = InputStatistics(np.ones(5, np.float32), np.ones(32, np.float32))
    weight = FloatWeight(ArrayTensor(rng.standard_normal((8, 32), np.float32)), "w")
    assert RTN.needs_statistics(scheme) == needs
    quantized = RTN.quantize(weight, seen if needs else None, scheme)
    assert quantized.weight.scale_dtype == dtype
    assert (quantized.activation_scale is not None) == needs


def test_rtn_refuses_floating_point_codes() -> None:
    fp8 = QuantSpec(qtype=QType.FP8_E4M3, granularity=Granularity.PER_CHANNEL)
    with pytest.raises(InputError, match=r"weight fp8_e4m3; wanted an integer type: method rtn cannot"):
        RTN.check(Scheme(weight=fp8))
    act = QuantSpec(qtype=QType.FP8_E4M3, granularity=Granularity.PER_TENSOR)
    with pytest.raises(InputError, match=r"activation fp8_e4m3"):
        RTN.check(Scheme(weight=W8, activation=act))


def test_rtn_refuses_dynamic_per_tensor() -> None:
    act = QuantSpec(qtype=QType.INT8, granularity=Granularity.PER_TENSOR, dynamic=True)
    with pytest.raises(InputError, match=r"wanted dynamic per_token, or static per_tensor"):
        RTN.check(Scheme(weight=W8, activation=act))


def test_registry_finds_the_files_and_names_them_to_who_errs() -> None:
    assert isinstance(methods()["rtn"], RoundToNearest)
    assert "base" not in methods()
    with pytest.raises(InputError, match=r"recipe r: found method 'rnt'; wanted one of .*rtn"):
        method_for("rnt", "recipe r")
