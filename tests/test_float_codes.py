"""FP8 and NVFP4 codes: every value, ties, the ends of the range, against tables written down by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vditc.float_codes import (
    BLOCK,
    E2M1,
    E4M3,
    LEAST_BLOCK_SCALE,
    block_scale,
    from_nvfp4,
    nvfp4,
    pack_fp4,
    tensor_scale,
    to_codes,
    unpack_fp4,
)
from vditc.numerics import EPS, QType

F32 = np.float32
FP8, FP4 = QType.FP8_E4M3, QType.FP4_E2M1
FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def fp8_value(code: int) -> float:
    """Value of a byte by the format's definition: 1 sign, 4 exponent bits with bias 7, 3 mantissa bits."""
    sign, exponent, mantissa = -1.0 if code >> 7 else 1.0, code >> 3 & 15, code & 7
    return sign * (mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7))


def test_all_finite_fp8_codes_have_their_value_and_come_back() -> None:
    finite = [c for c in range(256) if c & 127 != 127]
    assert len(finite) == 254
    codes = np.array(finite, np.uint8).view(E4M3)
    values = np.array([fp8_value(c) for c in finite], F32)
    np.testing.assert_array_equal(codes.astype(F32), values)
    np.testing.assert_array_equal(to_codes(values, FP8).view(np.uint8), codes.view(np.uint8))  # -0 too
    assert values.max() == 448 and np.isnan(np.array([127, 255], np.uint8).view(E4M3).astype(F32)).all()


def test_all_fp4_codes_have_their_value_and_come_back() -> None:
    codes = np.arange(16, dtype=np.uint8)
    values = np.array([*FP4_VALUES, *(-v for v in FP4_VALUES)], F32)
    np.testing.assert_array_equal(codes.view(E2M1).astype(F32), values)
    np.testing.assert_array_equal(to_codes(values, FP4).view(np.uint8), codes)
    assert unpack_fp4(pack_fp4(codes.view(E2M1)), (4, 4)).view(np.uint8).tolist() == codes.reshape(4, 4).tolist()
    assert pack_fp4(np.array([1, 6], np.uint8).view(E2M1)).tolist() == [0x61]  # the first in the low nibble


@pytest.mark.parametrize(
    ("x", "code"),
    [
        (0.25, 0), (0.75, 1), (1.25, 1), (1.75, 2), (2.5, 2), (3.5, 4), (5, 4),  # ties, to the even code
        (0.2500001, 0.5), (4.99, 4), (5.01, 6), (6.1, 6), (1e30, 6), (np.inf, 6), (1e-30, 0),
    ],
)  # fmt: skip
def test_fp4_rounds_to_nearest_even_and_saturates(x: float, code: float) -> None:
    assert to_codes(np.array([x, -x], F32), FP4).astype(F32).tolist() == [code, -code]


@pytest.mark.parametrize(
    ("x", "code"),
    [
        (17, 16), (19, 20), (18, 18), (432, 416 + 32), (464, 448), (465, 448), (1e9, 448), (np.inf, 448),
        (2.0**-9, 2.0**-9), (2.0**-10, 0), (1.5 * 2.0**-9, 2.0**-8), (2.5 * 2.0**-9, 2.0**-8), (7.5 * 2.0**-9, 2.0**-6),  # subnormal
    ],
)  # fmt: skip
def test_fp8_rounds_to_nearest_even_and_saturates(x: float, code: float) -> None:
    assert to_codes(np.array([x, -x], F32), FP8).astype(F32).tolist() == [code, -code]


def test_what_is_not_a_number_is_not_hidden() -> None:
    assert np.isnan(to_codes(np.array([np.nan], F32), FP8).astype(F32)).all()
    with np.errstate(invalid="ignore"):
        assert np.isnan(block_scale(np.array([np.nan], F32), np.array(1, F32)).astype(F32)).all()


def test_nvfp4_by_hand() -> None:
    x = np.zeros((1, 3 * BLOCK), F32)
    x[0, :4] = 2688, 448, -600, 100  # the greatest of all: t = 1, b = 448
    x[0, BLOCK : BLOCK + 3] = 7, -3, 0.2  # 7 / 6 = 1.1667, halfway between 1.125 and 1.25 is 1.1875: b = 1.125
    t = tensor_scale(np.abs(x).max())
    assert t == 1
    codes, level = nvfp4(x, t)
    assert level.astype(F32).tolist() == [[448, 1.125, LEAST_BLOCK_SCALE]]
    # 100 / 448 = 0.223 -> 0;  7 / 1.125 = 6.2 saturates;  3 / 1.125 = 2.67 -> 3;  0.2 / 1.125 = 0.18 -> 0
    assert codes.astype(F32)[0, :4].tolist() == [6, 1, -1.5, 0]
    assert codes.astype(F32)[0, BLOCK : BLOCK + 3].tolist() == [6, -3, 0]
    found = from_nvfp4(codes, level, t)
    assert found[0, :4].tolist() == [2688, 448, -672, 0] and found[0, BLOCK : BLOCK + 3].tolist() == [6.75, -3.375, 0]
    assert not found[0, 2 * BLOCK :].any()


def test_zeros_have_finite_scales() -> None:
    t = tensor_scale(np.zeros((), F32))
    codes, level = nvfp4(np.zeros((2, BLOCK), F32), t)
    assert t == F32(EPS) and (level.astype(F32) == LEAST_BLOCK_SCALE).all() and not codes.astype(F32).any()


def test_a_static_tensor_scale_that_is_too_small_saturates() -> None:
    x = np.full((1, BLOCK), 1e6, F32)
    t = np.array(1, F32)
    codes, level = nvfp4(x, t)
    assert level.astype(F32).tolist() == [[448]] and (from_nvfp4(codes, level, t) == 2688).all()


blocks = hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.just(4 * BLOCK)), elements=st.floats(-1000, 1000, width=32))


@settings(deadline=None)
@given(blocks)
def test_nvfp4_error_is_within_the_formats(x: npt.NDArray[np.float32]) -> None:
    t = tensor_scale(np.abs(x).max())
    codes, level = nvfp4(x, t)
    step = np.repeat(level.astype(F32) * t, BLOCK, -1)
    # Elements: half of the greatest step, 2 * b t, or a saturated one beyond 6 b t. b is off by 1/16, or by half a subnormal.
    blockmax = np.repeat(np.abs(x.reshape(len(x), -1, BLOCK)).max(-1), BLOCK, -1)
    assert (np.abs(from_nvfp4(codes, level, t) - x) <= np.maximum(step, blockmax - 6 * step) * (1 + 1e-6)).all()
    assert (blockmax - 6 * step <= blockmax / 16 + 3 * t * LEAST_BLOCK_SCALE * (1 + 1e-6)).all()


@settings(deadline=None)
@given(blocks)
def test_nvfp4_values_are_kept_by_the_same_scales(x: npt.NDArray[np.float32]) -> None:
    t = tensor_scale(np.abs(x).max())
    codes, level = nvfp4(x, t)
    spread = np.repeat(level.astype(F32) * t, BLOCK, -1)
    again = to_codes(from_nvfp4(codes, level, t) / spread, FP4)
    np.testing.assert_array_equal(again.view(np.uint8), codes.view(np.uint8))


@settings(deadline=None)
@given(hnp.arrays(np.float32, 64, elements=st.floats(-1e6, 1e6, width=32)))
def test_fp8_is_the_nearest_value_and_idempotent(x: npt.NDArray[np.float32]) -> None:
    values = np.unique(np.array([fp8_value(c) for c in range(256) if c & 127 != 127], F32)).astype(np.float64)
    code = to_codes(x, FP8).astype(F32)
    wide = x.astype(np.float64)[:, None]
    assert (np.abs(wide[:, 0] - code) == np.abs(wide - values).min(1)).all()
    np.testing.assert_array_equal(to_codes(code, FP8).astype(F32), code)


def modelopt_nvfp4(weight: npt.NDArray[np.float32]) -> tuple[Any, Any, Any]:
    """nvidia-modelopt's own packing, on a CPU."""
    import torch
    from modelopt.torch.quantization.qtensor.nvfp4_tensor import NVFP4QTensor

    found, level, scale = NVFP4QTensor.quantize(torch.from_numpy(weight.copy()), BLOCK)
    return found._quantized_data.numpy(), level.view(torch.uint8).numpy().view(E4M3), scale.numpy()


@pytest.mark.filterwarnings("ignore")
def test_codes_and_scales_are_those_of_modelopt(rng: np.random.Generator) -> None:
    weight = rng.standard_normal((64, 256), np.float32) * np.float32(10.0) ** rng.uniform(-2, 0, (64, 1)).astype(F32)
    packed, level, scale = modelopt_nvfp4(weight)
    t = tensor_scale(np.abs(weight).max())
    codes, ours = nvfp4(weight, t)
    assert scale == t
    np.testing.assert_array_equal(ours.view(np.uint8), level.view(np.uint8))
    np.testing.assert_array_equal(pack_fp4(codes), packed.reshape(-1))
