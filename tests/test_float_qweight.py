"""FP8 and NVFP4 weights and schemes: the same bits however they are made and stored, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vditc.errors import InputError
from vditc.float_codes import E2M1, E4M3, pack_fp4
from vditc.float_weight import ArrayTensor, FloatWeight
from vditc.numerics import EPS, Granularity, QType
from vditc.qweight import RoundedWeight, StoredWeight
from vditc.safetensors_file import TensorEntry, read_header, write_tensors
from vditc.scheme import QTensor, QuantSpec, QWeight, Scheme, quantize_weight

F32 = np.float32
PER_TENSOR, PER_CHANNEL, PER_GROUP, PER_TOKEN = Granularity
CHANNEL = QuantSpec(qtype=QType.FP8_E4M3, granularity=PER_CHANNEL)
TENSOR = QuantSpec(qtype=QType.FP8_E4M3, granularity=PER_TENSOR)
NVFP4 = QuantSpec(qtype=QType.FP4_E2M1, granularity=PER_GROUP, group_size=16)
BLOCKS = QuantSpec(qtype=QType.FP4_E2M1, granularity=PER_GROUP, group_size=16, dynamic=True)
TOKEN = QuantSpec(qtype=QType.FP8_E4M3, granularity=PER_TOKEN, dynamic=True)
INT8 = QuantSpec(qtype=QType.INT8, granularity=PER_CHANNEL)
INT8_TOKEN = QuantSpec(qtype=QType.INT8, granularity=PER_TOKEN, dynamic=True)


@st.composite
def weights(draw: st.DrawFn) -> tuple[npt.NDArray[Any], QuantSpec, Any]:
    """A weight with rows of every magnitude and a row of zeros; its spec; the type of the scale."""
    n, k = draw(st.integers(1, 300)), 16 * draw(st.integers(1, 8))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    weight = rng.standard_normal((n, k), F32) * F32(10.0) ** rng.integers(-6, 3, (n, 1)).astype(F32)
    weight[rng.integers(0, n)] = 0
    dtype = draw(st.sampled_from([ml_dtypes.bfloat16, np.float16, F32]))
    return weight.astype(dtype), draw(st.sampled_from([CHANNEL, TENSOR, NVFP4])), draw(st.sampled_from([np.float16, F32]))


def same(found: QWeight, wanted: QTensor) -> None:
    """Codes and scales in both layouts, bit for bit."""
    for transposed in (False, True):
        stored = found.stored(transposed=transposed)
        codes, scale = (np.asarray(a.T if transposed else a, order="C") for a in (wanted.codes, wanted.scale))
        expected = pack_fp4(codes) if wanted.spec is NVFP4 else codes
        assert (stored.codes.dtype, stored.codes.shape, stored.codes.tobytes()) == (expected.dtype, expected.shape, expected.tobytes())
        assert (stored.scale.dtype, stored.scale.shape, stored.scale.tobytes()) == (scale.dtype, scale.shape, scale.tobytes())
        assert stored.codes.flags.c_contiguous and stored.scale.flags.c_contiguous and stored.zero_point is None
        assert stored.tensor_scale == wanted.tensor_scale
    back = found.read()
    assert back.codes.tobytes() == wanted.codes.tobytes() and back.codes.dtype == wanted.codes.dtype
    np.testing.assert_array_equal(back.dequantize(), wanted.dequantize())
    assert (found.shape, found.stored_bits, found.value_dtype) == (wanted.shape, wanted.stored_bits, wanted.value_dtype)


def from_file(folder: Path, stored: Any, spec: QuantSpec, shape: tuple[int, int], **changes: Any) -> StoredWeight:
    arrays = {"codes": stored.codes, "scale": stored.scale, "tensor_scale": stored.tensor_scale, **changes}
    write_tensors(folder / "c", {name: array for name, array in arrays.items() if array is not None})
    entries: dict[str, TensorEntry] = read_header(folder / "c")[0]
    return StoredWeight("x", entries["codes"], entries["scale"], spec, shape, None, entries.get("tensor_scale"))


@settings(deadline=None, max_examples=80)
@given(case=weights())
def test_panels_and_files_give_the_bits_of_the_definition(
    case: tuple[npt.NDArray[Any], QuantSpec, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    weight, spec, dtype = case
    wanted = quantize_weight(weight, spec, scale_dtype=dtype)
    lazy = RoundedWeight(FloatWeight(ArrayTensor(weight), "file, layer x"), spec, dtype)
    same(lazy, wanted)
    same(wanted, wanted)
    same(from_file(tmp_path_factory.mktemp("q"), lazy.stored(), spec, lazy.shape), wanted)


def test_fp8_by_hand() -> None:
    weight = np.array([[448, 17, 19, 0.001], [-2, 1, 0.5, 0], [0, 0, 0, 0]], F32)
    tensor = quantize_weight(weight, CHANNEL)
    np.testing.assert_array_equal(tensor.scale, np.array([1, F32(2) / F32(448), EPS], F32))
    assert tensor.codes.astype(F32).tolist() == [[448, 16, 20, 2**-9 * 1], [-448, 224, 112, 0], [0, 0, 0, 0]]
    whole = quantize_weight(weight, TENSOR)
    assert whole.scale == 1 and whole.codes.astype(F32)[1].tolist() == [-2, 1, 0.5, 0]
    assert tensor.codes.dtype == E4M3


@settings(deadline=None, max_examples=60)
@given(weights())
def test_rounding_errors_are_those_of_three_mantissa_bits(case: tuple[npt.NDArray[Any], QuantSpec, Any]) -> None:
    weight, spec, dtype = case
    if spec is NVFP4:
        return  # tests/test_float_codes.py
    tensor = quantize_weight(weight, spec, scale_dtype=dtype)
    wide, scale = weight.astype(np.float64), np.broadcast_to(tensor.scale.astype(np.float64).reshape(-1, 1), weight.shape)
    # Half a unit of the last of 3 bits, or of the subnormals; a float16 scale may be too small by 2^-11, and the greatest saturates.
    allowed = np.maximum(np.abs(wide) * 2.0**-4, scale * 2.0**-10) * (1 + 1e-5)
    assert (np.abs(tensor.dequantize() - wide) <= allowed).all()


def test_bits_count_both_levels() -> None:
    weight = np.ones((4, 64), F32)
    assert quantize_weight(weight, NVFP4).stored_bits == 256 * 4 + 16 * 8 + 32  # 4.5 bits and the tensor scale
    assert quantize_weight(weight, CHANNEL).stored_bits == 256 * 8 + 4 * 32


@pytest.mark.parametrize("spec", [CHANNEL, TENSOR, NVFP4], ids=str)
@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_what_is_not_finite_is_refused(spec: QuantSpec, value: float) -> None:
    weight = np.ones((300, 32), F32)
    weight[200, 17] = value
    with pytest.raises(InputError, match=r"file, layer x: found weights that are not finite"):
        RoundedWeight(FloatWeight(ArrayTensor(weight), "file, layer x"), spec).stored()


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    weight = np.arange(64, dtype=F32).reshape(2, 32)
    fp8, fp4 = (quantize_weight(weight, spec).stored() for spec in (CHANNEL, NVFP4))
    nan = fp8.codes.copy()
    nan[1, 3] = np.nan
    with pytest.raises(InputError, match=r"c, layer x: found codes that are not a number"):
        from_file(tmp_path, fp8, CHANNEL, (2, 32), codes=nan).stored()
    with pytest.raises(InputError, match=r"found codes int8\[2, 32\]; wanted float8_e4m3fn\[2, 32\]"):
        from_file(tmp_path, fp8, CHANNEL, (2, 32), codes=fp8.codes.view(np.int8))
    with pytest.raises(InputError, match=r"found no such tensor_scale; wanted float32\[\]"):
        from_file(tmp_path, fp4, NVFP4, (2, 32), tensor_scale=None)
    with pytest.raises(InputError, match=r"found tensor_scale float32\[\]; wanted float32\[\], exactly for FP4"):
        from_file(tmp_path, fp8, CHANNEL, (2, 32), tensor_scale=np.ones((), F32))
    with pytest.raises(InputError, match=r"found scale float32; wanted float8_e4m3fn"):
        from_file(tmp_path, fp4, NVFP4, (2, 32), scale=fp4.scale.astype(F32))
    for wrong in ({"tensor_scale": np.zeros((), F32)}, {"scale": np.zeros((2, 2), E4M3)}):
        with pytest.raises(InputError, match="a scale that is zero"):
            from_file(tmp_path, fp4, NVFP4, (2, 32), **wrong).stored()


def test_a_wrong_tensor_cannot_be_made() -> None:
    codes, level, t = np.zeros((2, 32), E2M1), np.ones((2, 2), E4M3), np.ones((), F32)
    QTensor(codes, level, NVFP4, tensor_scale=t)
    for arguments, message in (
        ((codes, level, NVFP4), "no tensor_scale"),
        ((codes.astype(E4M3), level, NVFP4, None, t), r"codes float8_e4m3fn\[2, 32\]; wanted float4_e2m1fn"),
        ((codes, level, NVFP4, None, t * 0), "a scale that is zero"),
        ((codes.astype(E4M3), np.ones(2, F32), CHANNEL, None, t), "tensor_scale"),
        ((np.full((2, 32), np.nan, E4M3), np.ones(2, F32), CHANNEL), "codes that are not a number"),
    ):
        with pytest.raises(ValueError, match=message):
            QTensor(*arguments)
    with pytest.raises(ValueError, match="a scale for fp4_e2m1"):
        quantize_weight(np.ones((2, 32)), NVFP4, scale=np.ones((2, 2)))


@pytest.mark.parametrize("wrong", [{"granularity": PER_CHANNEL}, {"granularity": PER_GROUP, "group_size": 32}, {"granularity": PER_TENSOR}])
def test_nvfp4_has_blocks_of_sixteen(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="wanted per_group with group_size 16: the blocks of NVFP4"):
        QuantSpec(qtype=QType.FP4_E2M1, **wrong)


@pytest.mark.parametrize(
    ("weight", "activation", "message"),
    [
        (NVFP4, INT8_TOKEN, r"found weight fp4_e2m1 with activation int8; wanted integers with integers, or one floating-point type"),
        (NVFP4, TOKEN, "weight fp4_e2m1 with activation fp8_e4m3"),
        (INT8, TOKEN, "weight int8 with activation fp8_e4m3"),
        (CHANNEL, INT8_TOKEN, "weight fp8_e4m3 with activation int8"),
        (CHANNEL, BLOCKS, "weight fp8_e4m3 with activation fp4_e2m1"),
        (NVFP4, NVFP4, "wanted dynamic = true: no table can know the blocks"),
        (BLOCKS, BLOCKS, "wanted static per_tensor, per_channel or per_group weights"),
    ],
)
def test_pairs_that_no_product_takes(weight: QuantSpec, activation: QuantSpec, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Scheme(weight=weight, activation=activation)


def test_only_activations_with_a_static_part_want_a_range() -> None:
    assert BLOCKS.ranged and TENSOR.ranged and not TOKEN.ranged
    scheme = Scheme(weight=NVFP4, activation=BLOCKS)
    assert Scheme.from_json(scheme.to_json()) == scheme and str(scheme) == "W[fp4_e2m1 per_group(16)] A[fp4_e2m1 per_group(16) dynamic]"
