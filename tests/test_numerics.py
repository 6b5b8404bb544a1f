from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from vditc.numerics import EPS, QType


@pytest.mark.parametrize("qtype", [q for q in QType if q.integer])
def test_integer_ranges_are_twos_complement(qtype: QType) -> None:
    assert (qtype.low, qtype.high) == (-(2 ** (qtype.bits - 1)), 2 ** (qtype.bits - 1) - 1)
    assert qtype.value == f"int{qtype.bits}"


@pytest.mark.parametrize(("qtype", "dtype"), [(QType.FP8_E4M3, ml_dtypes.float8_e4m3fn), (QType.FP4_E2M1, ml_dtypes.float4_e2m1fn)])
def test_float_ranges_are_those_of_the_format(qtype: QType, dtype: type) -> None:
    info = ml_dtypes.finfo(dtype)
    assert not qtype.integer
    assert (qtype.low, qtype.high, qtype.bits) == (float(info.min), float(info.max), info.bits)


def test_least_scale_is_a_normal_float32() -> None:
    assert np.finfo(np.float32).tiny < EPS < 1e-6
