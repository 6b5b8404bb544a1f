"""Weights that are quantized when they are read: the same bits as the plain definition, however they are stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vditc import quantize, qweight
from vditc.errors import InputError
from vditc.float_weight import ArrayTensor, FloatWeight, Tensor
from vditc.numerics import Granularity, QType
from vditc.qweight import RoundedWeight, StoredWeight
from vditc.safetensors_file import read_header, write_tensors
from vditc.scheme import QuantSpec, pack_int4, quantize_weight

DTYPES = (ml_dtypes.bfloat16, np.float16, np.float32)
INT = (QType.INT8, QType.INT6, QType.INT4, QType.INT3)


@st.composite
def cases(draw: st.DrawFn) -> tuple[npt.NDArray[Any], QuantSpec, Any]:
    """A weight with rows of every magnitude, zeros and ties among them; a spec that fits it; the type of the scale."""
    n, groups, qtype = draw(st.integers(1, 300)), draw(st.integers(1, 5)), draw(st.sampled_from(INT))
    granularity = draw(st.sampled_from([Granularity.PER_TENSOR, Granularity.PER_CHANNEL, Granularity.PER_GROUP]))
    size = draw(st.integers(16, 40))
    group = size if granularity is Granularity.PER_GROUP else None
    k = size * groups if group else draw(st.integers(1, 200))
    if qtype.bits <= 4 and n * k % 2:
        n += 1
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    weight = rng.standard_normal((n, k), np.float32) * np.float32(10.0) ** rng.integers(-7, 3, (n, 1)).astype(np.float32)
    if draw(st.booleans()):  # ties: whole and half codes, with a scale of one
        weight = rng.integers(-2 * int(qtype.high), 2 * int(qtype.high) + 1, (n, k)).astype(np.float32) / 2
        weight[:, 0] = qtype.high
    weight[rng.integers(0, n)] = 0
    symmetric = granularity is not Granularity.PER_CHANNEL or draw(st.booleans())
    if not symmetric:
        weight += rng.choice([0, 0, -3, 3], (n, 1)).astype(np.float32) * np.abs(weight).max(-1, keepdims=True)  # ranges without a zero
    spec = QuantSpec(qtype=qtype, granularity=granularity, group_size=group, symmetric=symmetric)
    return weight.astype(draw(st.sampled_from(DTYPES))), spec, draw(st.sampled_from([np.float16, np.float32]))


def rounded(tensor: Tensor, spec: QuantSpec, dtype: Any) -> RoundedWeight:
    return RoundedWeight(FloatWeight(tensor, "file, layer x"), spec, dtype)


def check(weight: Any, wanted: Any) -> None:
    """Codes and scales in both layouts, bit for bit."""
    for transposed in (False, True):
        codes, scale, zero_point, _ = weight.stored(transposed=transposed)
        array = wanted.codes.T if transposed else wanted.codes
        packed = wanted.spec.qtype.bits <= 4
        np.testing.assert_array_equal(codes, pack_int4(np.ascontiguousarray(array)) if packed else array)
        assert codes.dtype == (np.uint8 if packed else np.int8) and codes.flags.c_contiguous and scale.flags.c_contiguous
        assert (zero_point is None) == (wanted.zero_point is None) == wanted.spec.symmetric
        assert zero_point is None or zero_point.tobytes() == wanted.zero_point.tobytes()
        assert scale.dtype == wanted.scale.dtype and scale.tobytes() == (wanted.scale.T if transposed else wanted.scale).tobytes()
    back = weight.read()
    np.testing.assert_array_equal(back.codes, wanted.codes)
    assert (weight.shape, weight.stored_bits) == (wanted.codes.shape, wanted.stored_bits)


@settings(deadline=None, max_examples=150)
@given(cases(), st.sampled_from([64, 1 << 16]))
def test_rounding_is_that_of_the_definition(case: tuple[npt.NDArray[Any], QuantSpec, Any], slab: int) -> None:
    weight, spec, dtype = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantize, "_SLAB", slab)
        check(rounded(ArrayTensor(weight), spec, dtype), quantize_weight(weight, spec, scale_dtype=dtype))


@settings(deadline=None, max_examples=50)
@given(case=cases())
def test_files_are_read_by_rows(case: tuple[npt.NDArray[Any], QuantSpec, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    weight, spec, dtype = case
    folder = tmp_path_factory.mktemp("q")
    write_tensors(folder / "w", {"before": np.zeros(3, np.uint8), "w": weight})
    lazy = rounded(read_header(folder / "w")[0]["w"], spec, dtype)
    wanted = quantize_weight(weight, spec, scale_dtype=dtype)
    check(lazy, wanted)
    parts = {name: array for name, array in lazy.stored()._asdict().items() if array is not None}
    write_tensors(folder / "c", parts)
    entries = read_header(folder / "c")[0]
    size = (weight.shape[0], weight.shape[1])
    check(StoredWeight("x", entries["codes"], entries["scale"], spec, size, entries.get("zero_point")), wanted)


@pytest.mark.parametrize("granularity", list(Granularity)[:3])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_is_refused(granularity: Granularity, dtype: Any, value: float) -> None:
    weight = np.ones((300, 32), dtype)
    weight[200, 17] = value
    spec = QuantSpec(qtype=QType.INT4, granularity=granularity, group_size=16 if granularity is Granularity.PER_GROUP else None)
    with pytest.raises(InputError, match=r"file, layer x: found weights that are not finite"):
        rounded(ArrayTensor(weight), spec, np.float32).stored()


def stored(folder: Path, codes: npt.NDArray[Any], scale: npt.NDArray[Any], qtype: QType = QType.INT3) -> StoredWeight:
    write_tensors(folder / "c", {"codes": codes, "scale": scale})
    entries = read_header(folder / "c")[0]
    return StoredWeight("x", entries["codes"], entries["scale"], QuantSpec(qtype=qtype, granularity=Granularity.PER_CHANNEL), (2, 4))


def test_a_damaged_calibration_is_refused_when_it_is_read(tmp_path: Path) -> None:
    codes, scale = np.array([[1, 2, 3, -4], [0, 0, 0, 0]], np.int8), np.ones(2, np.float32)
    assert stored(tmp_path, pack_int4(codes), scale).read().codes.tolist() == codes.tolist()
    with pytest.raises(InputError, match=r"c, layer x: found codes in \[-5, 3\]; wanted \[-4, 3\]"):
        stored(tmp_path, pack_int4(np.where(codes == -4, -5, codes).astype(np.int8)), scale).stored()
    with pytest.raises(InputError, match="a scale that is zero"):
        stored(tmp_path, pack_int4(codes), scale * 0).stored()
    with pytest.raises(InputError, match=r"found codes int8\[2, 4\]; wanted uint8\[4\]"):
        stored(tmp_path, codes, scale)
    with pytest.raises(InputError, match=r"found scale \[3\]; wanted \[2\]"):
        stored(tmp_path, codes, np.ones(3, np.float32), QType.INT8)


def test_a_file_that_shrinks_is_said(tmp_path: Path) -> None:
    write_tensors(tmp_path / "w", {"w": np.ones((300, 32), np.float32)})
    entry = read_header(tmp_path / "w")[0]["w"]
    with (tmp_path / "w").open("r+b") as f:
        f.truncate(5000)
    spec = QuantSpec(qtype=QType.INT8, granularity=Granularity.PER_CHANNEL)
    with pytest.raises(InputError, match="found the end of the file at byte 5000"):
        rounded(entry, spec, np.float32).stored()


def test_panels_are_even() -> None:
    assert qweight._PANEL % 2 == 0  # Sheet.put wants whole bytes
