"""Quantized weights that are not in memory: rounded from a checkpoint, or read from a calibration file, whenever they are asked for.

Rows go through in panels on all cores; the memory that one weight takes is that of its codes and a panel for each core.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from vditc.errors import InputError
from vditc.float_codes import E4M3, code_dtype, tensor_scale, unpack_fp4
from vditc.float_weight import FloatWeight, Rows, open_rows
from vditc.numerics import Granularity, QType
from vditc.quantize import Sheet, absmax, nvfp4_rows, quantize_rows, row_grid, row_scale, unpack_rows
from vditc.safetensors_file import TensorEntry
from vditc.scheme import QTensor, QuantSpec, QWeight, Stored, positive, scale_shape, unpack_int4, weight_scale
from vditc.threads import for_each

Array = npt.NDArray[Any]
_PANEL = 128  # rows; even, and a transposed panel fills whole cache lines of the result even with four-bit codes


def _panels(count: int) -> list[tuple[int, int]]:
    return [(start, min(start + _PANEL, count)) for start in range(0, count, _PANEL)]


class _PanelWeight(QWeight):
    """A weight that is made panel by panel."""

    def read(self) -> QTensor:
        """The whole tensor, checked."""
        codes, scale, zero_point, whole = self.stored()
        if self.spec.qtype.bits <= 4:
            codes = (unpack_int4 if self.spec.qtype.integer else unpack_fp4)(codes, self.shape)
        return QTensor(codes, scale, self.spec, zero_point, whole)

    def _pack(self, sheet: Sheet, scale: Array, transposed: bool, zero_point: Array | None, whole: Array | None) -> Stored:
        codes, qtype = sheet.stored(), self.spec.qtype
        if qtype.bits == 8 and not qtype.integer:
            codes = codes.view(code_dtype(qtype))
        return Stored(codes, np.asarray(scale.T if transposed else scale, order="C"), zero_point, whole)


@dataclasses.dataclass(frozen=True)
class RoundedWeight(_PanelWeight):
    """A checkpoint's weight to the nearest code, as `vditc.scheme.quantize_weight` defines it.

    InputError when an element is not finite.
    """

    weight: FloatWeight
    spec: QuantSpec
    dtype: Any = np.float32  # of the scale

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.weight.shape

    @property
    def scale_dtype(self) -> np.dtype[Any]:
        """Type of the scale."""
        return E4M3 if self.spec.qtype is QType.FP4_E2M1 else np.dtype(self.dtype)  # type: ignore[no-any-return]

    def stored(self, *, transposed: bool = False) -> Stored:
        """See `QWeight.stored`."""
        with open_rows(self.weight.tensor) as rows:
            return self._stored(rows, transposed)

    def _stored(self, rows: Rows, transposed: bool) -> Stored:
        spec, sheet = self.spec, Sheet(self.shape, self.spec.qtype.bits, transposed=transposed)
        per_tensor = spec.granularity is Granularity.PER_TENSOR
        scale = np.empty(scale_shape(self.shape, spec), self.scale_dtype)
        zero_point = None if spec.symmetric else np.empty(self.shape[0], np.float32)
        whole = tensor_scale(self._absmax(rows)) if spec.qtype is QType.FP4_E2M1 else None
        if per_tensor:
            scale[...] = weight_scale(self._absmax(rows), spec, self.dtype)

        def one(panel: tuple[int, int]) -> None:
            start, stop = panel
            part = rows(start, stop)
            if whole is not None:
                codes, scale[start:stop] = nvfp4_rows(part, whole)
                sheet.put(codes, start)
                return
            finite, zero = True, None
            if zero_point is not None:
                scale[start:stop], zero_point[start:stop], finite = row_grid(part, spec, self.dtype)
                zero = zero_point[start:stop]
            elif not per_tensor:
                scale[start:stop], finite = row_scale(part, spec, self.dtype)
            if not finite:
                raise self.weight.not_finite()
            sheet.put(quantize_rows(part, scale if per_tensor else scale[start:stop], spec, zero), start)

        for_each(one, _panels(self.shape[0]))
        return self._pack(sheet, scale, transposed, zero_point, whole)

    def _absmax(self, rows: Rows) -> Array:
        """Greatest magnitude of all: the checkpoint is read once for it, and once more for the codes."""
        panels = _panels(self.shape[0])
        top = np.zeros(len(panels), np.float32)

        def one(index: int) -> None:
            top[index] = absmax(absmax(rows(*panels[index])))

        for_each(one, range(len(panels)))
        if not np.isfinite(top).all():
            raise self.weight.not_finite()
        return np.asarray(top.max(initial=0))


@dataclasses.dataclass(frozen=True)
class StoredWeight(_PanelWeight):
    """A weight of a calibration file. InputError when the file holds what its scheme does not allow."""

    layer: str
    codes: TensorEntry  # int8 [N, K], or uint8 [N * K / 2]
    scale: TensorEntry
    spec: QuantSpec
    size: tuple[int, int]
    zero_point: TensorEntry | None = None
    tensor_scale: TensorEntry | None = None

    def __post_init__(self) -> None:
        n, k = self.size
        packed = self.spec.qtype.bits <= 4
        wanted = (np.dtype(np.uint8), (n * k // 2,)) if packed else (code_dtype(self.spec.qtype), (n, k))
        if (self.codes.dtype, self.codes.shape) != wanted:
            raise self._bad(f"codes {self.codes.dtype}{list(self.codes.shape)}", f"{wanted[0]}{list(wanted[1])}")
        if self.scale.shape != (shape := scale_shape(self.size, self.spec)):
            raise self._bad(f"scale {list(self.scale.shape)}", f"{list(shape)}")
        found = None if self.zero_point is None else (self.zero_point.dtype, self.zero_point.shape)
        if found != (None if self.spec.symmetric else (np.dtype(np.float32), (n,))):
            raise self._bad(f"zero_point {found}", "none" if self.spec.symmetric else f"float32[{n}]")

        t, two_levels = self.tensor_scale, self.spec.qtype is QType.FP4_E2M1
        if (None if t is None else (t.dtype, t.shape)) != ((np.dtype(np.float32), ()) if two_levels else None):
            raise self._bad("no such tensor_scale" if t is None else f"tensor_scale {t.dtype}{list(t.shape)}", "float32[], exactly for FP4")
        if two_levels != (self.scale.dtype == E4M3):
            raise self._bad(f"scale {self.scale.dtype}", "float8_e4m3fn for FP4, else float16 or float32")

    def _bad(self, found: str, wanted: str) -> InputError:
        return InputError(found=found, wanted=wanted, where=f"{self.codes.path}, layer {self.layer}", fix="calibrate again")

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.size

    @property
    def scale_dtype(self) -> np.dtype[Any]:
        """Type of the scale."""
        return self.scale.dtype

    def stored(self, *, transposed: bool = False) -> Stored:
        """See `QWeight.stored`."""
        (n, k), qtype = self.size, self.spec.qtype
        scale = np.array(self.scale.read())
        whole = None if self.tensor_scale is None else np.array(self.tensor_scale.read())
        if not positive(scale) or (whole is not None and not positive(whole)):
            raise self._bad("a scale that is zero, negative or not finite", "positive scales")
        sheet = Sheet(self.size, qtype.bits, transposed=transposed)
        packed = qtype.bits <= 4
        # Rows that do not end with a byte are unpacked together.
        flat = unpack_int4(self.codes.read(), self.size) if packed and k % 2 else None
        low, high = int(qtype.low), int(qtype.high)

        with open_rows(dataclasses.replace(self.codes, shape=(n, k // 2)) if packed and flat is None else self.codes) as rows:

            def one(panel: tuple[int, int]) -> None:
                part: Array = flat[slice(*panel)] if flat is not None else rows(*panel)
                codes = unpack_rows(part, (len(part), k)) if packed and flat is None else part
                if not qtype.integer:
                    if not packed and not np.isfinite(codes.astype(np.float32)).all():
                        raise self._bad("codes that are not a number", "finite codes")
                elif codes.size and (codes.min() < low or codes.max() > high):
                    raise self._bad(f"codes in [{codes.min()}, {codes.max()}]", f"[{low}, {high}]")
                sheet.put(codes, panel[0])

            for_each(one, _panels(n))
        zero_point = None if self.zero_point is None else np.array(self.zero_point.read())
        return self._pack(sheet, scale, transposed, zero_point, whole)
