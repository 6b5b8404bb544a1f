"""The best share of every row's range."""

from __future__ import annotations

import numpy as np
import pytest

from vditc.calibrate.range_search import searched_grid
from vditc.numerics import Granularity, QType
from vditc.scheme import QuantSpec, quantize_weight

F32 = np.float32


@pytest.mark.parametrize("symmetric", [True, False])
def test_every_row_is_as_good_as_the_best_share_alone(symmetric: bool, rng: np.random.Generator) -> None:
    spec = QuantSpec(qtype=QType.INT3, granularity=Granularity.PER_CHANNEL, symmetric=symmetric)
    weight = (rng.standard_t(3, (12, 64)) + 0.5).astype(F32)

    def cost(tensor: object) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return (np.abs(tensor.dequantize() - weight).astype(np.float64) ** 2.4).sum(-1)  # type: ignore[attr-defined, no-any-return]

    found = cost(searched_grid(weight, spec, F32, steps=41, least=0.2, power=2.4))
    ends = [cost(searched_grid(weight, spec, F32, steps=1, least=1, power=2.4))]
    for share in np.linspace(1, 0.2, 41, dtype=F32):
        # One share for all rows, by scaling what the grid is taken from.
        grid = quantize_weight(weight * share, spec)
        zero = grid.zero_point
        ends.append(cost(quantize_weight(weight, spec, grid.scale, zero_point=zero)))
    np.testing.assert_allclose(found, np.min(ends, 0), rtol=1e-6)
    assert (found <= cost(quantize_weight(weight, spec)) * (1 + 1e-9)).all() and (found < 0.9 * ends[0]).any()


def test_a_row_of_zeros() -> None:
    spec = QuantSpec(qtype=QType.INT4, granularity=Granularity.PER_CHANNEL)
    assert not searched_grid(np.zeros((2, 8), F32), spec, F32, steps=5, least=0.5, power=2).dequantize().any()
