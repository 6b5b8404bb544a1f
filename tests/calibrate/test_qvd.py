"""QVD's parts by hand, and the method on features that one scale cannot hold."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from vditc.calibrate.channel_range import centred, shifted_bias
from vditc.calibrate.methods.base import InputStatistics
from vditc.calibrate.methods.qvd import QVD
from vditc.calibrate.temporal_features import (
    Candidate,
    best,
    candidate,
    codes_for,
    discriminability,
    power,
    relative_error,
    two_ranges,
    uniform,
)
from vditc.errors import InputError
from vditc.float_weight import ArrayTensor, FloatWeight
from vditc.numerics import Granularity, QType
from vditc.scheme import QuantSpec, Scheme

F32 = np.float32
W8 = QuantSpec(qtype=QType.INT8, granularity=Granularity.PER_CHANNEL)
STATIC = Scheme(weight=W8, activation=QuantSpec(qtype=QType.INT8, granularity=Granularity.PER_TENSOR))
PER_STEP = Scheme(weight=W8, activation=QuantSpec(qtype=QType.INT8, granularity=Granularity.PER_TENSOR, per_step=True))
STEPS, K = 12, 48


def skewed(rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """[steps, K]: one wide channel that hardly moves, and many small ones that tell the steps apart."""
    table = 0.1 * np.sin(np.linspace(0, 3, STEPS)[:, None] + rng.uniform(0, 6, K))
    table[:, 0] = 60 + 0.01 * np.arange(STEPS)
    return np.asarray(table, F32)


def of_table(table: npt.NDArray[np.float32], *, temporal: bool = True) -> InputStatistics:
    return InputStatistics(np.abs(table), None, np.stack([table, table]), temporal)


def test_the_score_by_hand() -> None:
    table = np.array([[0, 0], [3, 4], [3, 5]], F32)  # 5, then 1 apart
    assert discriminability(table, table) == 1
    assert discriminability(table, np.array([[0, 0], [3, 4], [3, 4]], F32)) == 0.5  # 5 / 5, 0 / 1
    assert discriminability(table, np.array([[0, 0], [0, 4], [3, 8]], F32)) == pytest.approx((4 / 5 + 5) / 2)
    assert discriminability(np.array([[1.0], [1.0], [3.0]]), np.array([[0.0], [9.0], [10.0]])) == 0.5  # the first pair does not count
    assert discriminability(np.ones((3, 2)), np.zeros((3, 2))) == 1


def test_codes_by_hand() -> None:
    table = np.array([[0.26, -1.0], [0.5, 0.0]], F32)
    np.testing.assert_array_equal(uniform(table, 2), [[0.5, -1], [0.5, 0]])
    np.testing.assert_array_equal(uniform(table, 2, 0), [[0.25, -1], [0.5, 0]])
    np.testing.assert_array_equal(uniform(table, 2, 1), [[0.5, -1], [0.5, 0]])
    np.testing.assert_allclose(power(table, 0.5, 4), [[0.25, -1], [0.5625, 0]])  # sqrt: 0.51 -> 2/4, 0.707 -> 3/4
    np.testing.assert_array_equal(two_ranges(table, 0.5, 4), [[0.25, -1], [0.5, 0]])  # steps of 1/4 up to 0.5, of 1/2 beyond
    assert relative_error(np.array([[3.0, 4.0]]), np.array([[3.0, 3.0]])) == 0.2


def test_the_best_is_nearest_to_one_within_the_error() -> None:
    a, b, c = Candidate("a", 0.2, 0.1), Candidate("b", 1.3, 0.1), Candidate("c", 0.99, 0.2)
    assert best([a, b, c], 0.1) is b and best([a, b, c], 0.2) is c
    assert best([c], 0.1) is c  # some code there must be


def test_one_scale_merges_steps_that_other_codes_keep_apart(rng: np.random.Generator) -> None:
    found = {c.name.split()[0]: c for c in codes_for(skewed(rng))}
    assert found["uniform"].score < 0.1
    assert abs(found["per_channel"].score - 1) < 0.1
    # Powers and two ranges must hold the wide channel too, and help less: a fine range of 1/256 still has steps of 0.004.
    assert 0.5 < found["two_ranges"].score < 1.2 and found["power"].score > 0.3
    assert all(c.error <= found["uniform"].error for c in found.values())


def test_channels_get_one_centre_and_one_width_and_the_product_stays(rng: np.random.Generator) -> None:
    x = (rng.standard_normal((500, K)) * np.exp(rng.standard_normal(K)) + 5 * rng.standard_normal(K)).astype(F32)
    x[:, 3], x[:, 7] = 0, 3.7  # a dead and a constant channel
    bounds = np.stack([x.min(0), x.max(0)])[:, None]
    transform, weight = centred(bounds, 1.0), rng.standard_normal((16, K)).astype(F32)
    assert transform.shift is not None
    moved = transform.input(x)
    alive = [c for c in range(K) if c not in (3, 7)]
    np.testing.assert_allclose(moved.max(0)[alive], moved.max(), rtol=1e-5)
    np.testing.assert_allclose(moved.min(0)[alive], -moved.max(), rtol=1e-5)
    assert not moved[:, [3, 7]].any()
    bias = shifted_bias(weight, transform.shift)
    want = x.astype(np.float64) @ weight.T.astype(np.float64)
    assert relative_error(want, moved @ transform.weight(weight).T + bias) < 1e-6
    # What a constant channel gives is in the bias, exactly.
    only = np.zeros((1, K), F32)
    only[0, 7] = 3.7
    at = centred(np.stack([only, only]), 1.0)
    assert at.shift is not None and not at.input(only).any()
    np.testing.assert_array_equal(shifted_bias(weight, at.shift), (weight[:, 7].astype(np.float64) * np.float64(F32(3.7))).astype(F32))


def test_codes_cover_their_range(rng: np.random.Generator) -> None:
    """Of the 255 codes, how many lie between the least and the greatest of a channel: SCRI's aim."""
    x = (rng.standard_normal((500, K)) * np.exp(1.5 * rng.standard_normal(K)) + 5 * rng.standard_normal(K)).astype(F32)
    statistics = InputStatistics(np.abs(x).max(0)[None], None, np.stack([x.min(0), x.max(0)])[:, None])
    weights = {"q": FloatWeight(ArrayTensor(rng.standard_normal((16, K)).astype(F32)), "q")}

    def covered(strength: float) -> float:
        done = QVD(strength=strength).quantize(weights, statistics, {"q": STATIC})["q"]
        assert done.activation_scale is not None
        codes = np.rint(done.transform.input(x) / done.activation_scale)
        assert np.abs(codes).max() == 127
        return float((codes.max(0) - codes.min(0)).mean() / 254)

    plain = np.rint(x / (np.abs(x).max() / 127))
    assert (plain.max(0) - plain.min(0)).mean() / 254 < 0.3
    assert covered(1.0) > 0.98 > covered(0.5) > covered(0.0)


def test_the_time_path_keeps_its_steps_apart(rng: np.random.Generator) -> None:
    statistics = of_table(skewed(rng))
    weights = {"time_embed": FloatWeight(ArrayTensor(rng.standard_normal((24, K)).astype(F32)), "time_embed")}
    for scheme in (STATIC, PER_STEP):
        schemes = {"time_embed": scheme}
        plain = QVD(temporal="uniform").quantize(weights, statistics, schemes)["time_embed"]
        assert plain.transform.identity and plain.correction.bias is None
        done = QVD(temporal="discriminable").quantize(weights, statistics, schemes)["time_embed"]
        assert done.transform.shift is not None and done.correction.bias is not None
        report = QVD(temporal="discriminable").report({"time_embed": statistics}, weights, schemes)["temporal_features"]["time_embed"]
        assert report["float"] == 1 and report["uniform"]["score"] < 0.3, report
        assert abs(report["discriminable"]["score"] - 1) < 0.05 and report["discriminable"]["error"] < report["uniform"]["error"]


def test_features_that_one_scale_holds_are_left_as_they_are(rng: np.random.Generator) -> None:
    table = rng.standard_normal((STEPS, K)).astype(F32)
    weights = {"time_embed": FloatWeight(ArrayTensor(rng.standard_normal((24, K)).astype(F32)), "time_embed")}
    report = QVD().report({"time_embed": of_table(table), "q": of_table(table, temporal=False)}, weights, {})["temporal_features"]
    assert set(report) == {"time_embed"} and abs(report["time_embed"]["uniform"]["score"] - 1) < 0.02


def test_candidate_says_score_and_error() -> None:
    assert candidate("x", np.array([[0.0], [2.0]]), np.array([[0.0], [1.0]])) == Candidate("x", 0.5, 0.5)


@pytest.mark.parametrize("settings", [{"strength": 1.5}, {"temporal": "int8"}])
def test_wrong_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(InputError):
        QVD(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(("temporal", "role"), [("float", "modulation"), ("uniform", "ffn.in"), ("discriminable", "ffn.in")])
def test_the_setting_and_the_rules_must_agree_on_the_time_path(temporal: str, role: str) -> None:
    with pytest.raises(InputError, match="of the time path"):
        QVD(temporal=temporal).check_layers({"a": STATIC}, {"a": role, "b": "modulation"})
    QVD().check_layers({"a": STATIC}, {"a": "ffn.in", "b": "modulation"})
    QVD(temporal="uniform").check_layers({"b": STATIC}, {"a": "ffn.in", "b": "modulation"})
