"""The registry, and what every method must hold: the product stays, and a hard layer gets easier."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from vditc.calibrate.methods.base import InputStatistics, Quantized, TrainedMethod, static_scale
from vditc.calibrate.methods.registry import method_for, methods
from vditc.calibrate.methods.rtn import RoundToNearest
from vditc.calibrate.methods.viditq import static_balance
from vditc.calibrate.row_sample import RowSample, row_keys
from vditc.errors import InputError
from vditc.float_weight import ArrayTensor, FloatWeight
from vditc.numerics import EPS, Granularity, QType
from vditc.scheme import QuantSpec, Scheme, quantize_weight

F32 = np.float32
W8 = QuantSpec(qtype=QType.INT8, granularity=Granularity.PER_CHANNEL)
W4 = QuantSpec(qtype=QType.INT4, granularity=Granularity.PER_GROUP, group_size=16)
W4_CHANNEL = QuantSpec(qtype=QType.INT4, granularity=Granularity.PER_CHANNEL)
TOKEN = QuantSpec(qtype=QType.INT8, granularity=Granularity.PER_TOKEN, dynamic=True)
TOKEN4 = QuantSpec(qtype=QType.INT4, granularity=Granularity.PER_TOKEN, dynamic=True)
TENSOR = QuantSpec(qtype=QType.INT8, granularity=Granularity.PER_TENSOR)
STEPS = QuantSpec(qtype=QType.INT8, granularity=Granularity.PER_TENSOR, per_step=True)
RTN = RoundToNearest()
ROTATING = ("quarot", "viditq", "viditq-mp", "qvdit", "qvgen")

RNG = np.random.default_rng(0)
K, SHAPES = 96, {"q": (64, 96), "k": (32, 96)}
# A few wide channels, as behind modulation, and correlated ones, as behind attention.
SPREAD = np.exp(RNG.standard_normal(K)).astype(F32) * np.where(RNG.random(K) < 0.06, F32(12), F32(1))
MIX = (np.eye(K) + 0.3 * RNG.standard_normal((K, K)) / K**0.5).astype(F32)
X = (RNG.standard_normal((600, K)).astype(F32) @ MIX * SPREAD).astype(F32)
WEIGHTS = {layer: (RNG.standard_normal(shape) * 0.05).astype(F32) for layer, shape in SHAPES.items()}


def seen(x: npt.NDArray[Any] = X) -> InputStatistics:
    """Of two steps, half of the rows each."""
    half = len(x) // 2
    sample = RowSample(512, K)
    sample.offer(row_keys((0,), len(x)), x)
    parts = (x[:half], x[half:])
    bounds = np.stack([np.stack([p.min(0) for p in parts]), np.stack([p.max(0) for p in parts])])
    return InputStatistics(np.stack([np.abs(p).max(0) for p in parts]), sample, bounds)


def weights() -> dict[str, FloatWeight]:
    return {layer: FloatWeight(ArrayTensor(array), layer) for layer, array in WEIGHTS.items()}


def error(scheme: Scheme, name: str = "rtn", **settings: Any) -> float:
    """Relative error of the product of q, quantized by a method."""
    done = method_for(name, settings, "here").quantize(weights(), seen(), dict.fromkeys(WEIGHTS, scheme))
    assert done.keys() == WEIGHTS.keys()
    want = X @ WEIGHTS["q"].T
    return float(np.linalg.norm(product(done["q"], scheme) - want) / np.linalg.norm(want))


def product(done: Quantized, scheme: Scheme, x: npt.NDArray[np.float32] = X) -> npt.NDArray[np.float32]:
    """x quantized dynamically, times the codes, plus the branch."""
    t, x = done.transform, done.transform.input(x)
    branch: Any = x @ t.down.astype(F32).T @ t.up.astype(F32).T if t.down is not None and t.up is not None else F32(0)
    branch = branch if done.correction.bias is None else branch + done.correction.bias
    if scheme.activation is not None:
        high = F32(scheme.activation.qtype.high)
        scale = np.maximum(np.abs(x).max(-1, keepdims=True) / high, F32(EPS))
        x = np.clip(np.rint(x / scale), -high - 1, high) * scale
    return np.asarray(x @ done.weight.read().dequantize().T + branch, F32)


def test_static_scale_per_step_and_over_all_steps() -> None:
    absmax = np.array([12.7, 0.0, 254.0], np.float32)
    np.testing.assert_array_equal(static_scale(absmax, STEPS), np.array([np.float32(12.7) / np.float32(127), EPS, 2.0], np.float32))
    over_all = static_scale(absmax, TENSOR)
    assert over_all.shape == () and over_all == 2.0


FP8 = QuantSpec(qtype=QType.FP8_E4M3, granularity=Granularity.PER_CHANNEL)
FP8_TENSOR = QuantSpec(qtype=QType.FP8_E4M3, granularity=Granularity.PER_TENSOR)
NVFP4 = QuantSpec(qtype=QType.FP4_E2M1, granularity=Granularity.PER_GROUP, group_size=16)
NVFP4_BOTH = Scheme(
    weight=NVFP4, activation=QuantSpec(qtype=QType.FP4_E2M1, granularity=Granularity.PER_GROUP, group_size=16, dynamic=True)
)


@pytest.mark.parametrize("name", methods())
@pytest.mark.parametrize("scheme", [Scheme(weight=FP8), Scheme(weight=FP8, activation=FP8_TENSOR), NVFP4_BOTH], ids=str)
def test_floating_point_codes_are_made_by_rtn_alone(name: str, scheme: Scheme) -> None:
    method = method_for(name, {}, "here")
    if name == "rtn":
        method.check(scheme)
        return
    with pytest.raises(InputError, match=rf"found weight fp.*method {name} cannot quantize to floating-point codes; .*or method = \"rtn\""):
        method.check(scheme)


def test_rtn_makes_the_codes_and_ranges_of_floating_point_types() -> None:
    for spec, scheme in ((FP8_TENSOR, Scheme(weight=FP8, activation=FP8_TENSOR)), (NVFP4_BOTH.activation, NVFP4_BOTH)):
        assert spec is not None and RTN.needs_statistics(scheme)
        done = RTN.quantize(weights(), seen(), dict.fromkeys(WEIGHTS, scheme))["q"]
        wanted = quantize_weight(WEIGHTS["q"], scheme.weight)
        assert [None if a is None else a.tobytes() for a in done.weight.stored()] == [
            None if a is None else a.tobytes() for a in wanted.stored()
        ]
        divisor = F32(448) if spec is FP8_TENSOR else F32(6 * 448)
        assert done.activation_scale is not None and done.activation_scale == np.abs(X).max() / divisor
    assert not RTN.needs_statistics(Scheme(weight=NVFP4))


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
def test_scale_types_and_need_of_data(scheme: Scheme, dtype: type, needs: bool) -> None:
    assert RTN.needs_statistics(scheme) == needs
    quantized = RTN.quantize(weights(), seen() if needs else None, dict.fromkeys(WEIGHTS, scheme))["q"]
    assert quantized.weight.scale_dtype == dtype and quantized.transform.identity
    assert (quantized.activation_scale is not None) == needs


@pytest.mark.parametrize("name", sorted(methods()))
@pytest.mark.parametrize(
    "scheme", [Scheme(weight=W4), Scheme(weight=W8, activation=TOKEN), Scheme(weight=W4_CHANNEL, activation=TOKEN)], ids=str
)
def test_every_method_keeps_the_product(name: str, scheme: Scheme) -> None:
    """Up to the rounding of the scheme, which is no worse than plain rounding by more than a little, and shared by the layers."""
    method = method_for(name, {}, "here")
    if isinstance(method, TrainedMethod) and scheme.activation is None:
        with pytest.raises(InputError, match="wanted dynamic activations"):
            method.check(scheme)
        return
    method.check(scheme)
    assert error(scheme, name) <= 1.15 * error(scheme)
    done = method.quantize(weights(), seen(), dict.fromkeys(WEIGHTS, scheme))
    assert len({d.transform.input_key() for d in done.values()}) == 1, "layers that read one tensor would quantize it twice"
    assert {layer: d.weight.shape for layer, d in done.items()} == SHAPES


@pytest.mark.parametrize(
    ("name", "scheme", "settings", "at_most"),
    [
        ("smoothquant", Scheme(weight=W8, activation=TOKEN4), {}, 0.6),
        ("quarot", Scheme(weight=W8, activation=TOKEN4), {}, 0.6),
        ("viditq", Scheme(weight=W8, activation=TOKEN4), {}, 0.5),
        ("viditq", Scheme(weight=W4_CHANNEL, activation=TOKEN4), {"rounding": "gptq"}, 0.6),
        ("awq", Scheme(weight=W4), {}, 0.9),
        ("gptq", Scheme(weight=W4_CHANNEL), {}, 0.95),
        ("svdquant", Scheme(weight=W4_CHANNEL, activation=TOKEN4), {"rank": 16}, 0.8),
    ],
)
def test_what_a_method_is_for(name: str, scheme: Scheme, settings: dict[str, Any], at_most: float) -> None:
    """Its error as a share of that of plain rounding."""
    assert error(scheme, name, **settings) <= at_most * error(scheme)


def test_settings_matter() -> None:
    scheme = Scheme(weight=W4_CHANNEL, activation=TOKEN4)
    assert error(scheme, "svdquant", rank=32) < error(scheme, "svdquant", rank=4)
    for name, settings in (
        ("smoothquant", {"alpha": 0.9}),
        ("viditq", {"alpha": 0.9}),
        ("viditq", {"rotation": False}),
        ("quarot", {"seed": 1}),
    ):
        assert error(scheme, name, **settings) != error(scheme, name)


def test_viditqs_balance_by_hand() -> None:
    """m = max|W|^alpha / max|X|^(1 - alpha), over its geometric mean."""
    weight = np.array([[1, -4, 0.25], [0.5, 2, -1]], F32)
    m = static_balance(np.array([4, 1, 16], F32), weight, 0.5)
    raw = np.array([1 / 2, 2 / 1, 1 / 4])
    np.testing.assert_allclose(m, raw / np.prod(raw) ** (1 / 3), rtol=1e-6)
    np.testing.assert_allclose(static_balance(np.array([4, 1, 16], F32), weight, 1.0), np.array([1, 4, 1]) / 4 ** (1 / 3), rtol=1e-6)


@pytest.mark.parametrize("dead", ["input", "weight", "both"])
def test_a_dead_channel_has_a_finite_balance(dead: str) -> None:
    channels, weight = np.ones(3, F32), np.ones((2, 3), F32)
    if dead != "weight":
        channels[1] = 0
    if dead != "input":
        weight[:, 1] = 0
    m = static_balance(channels, weight, 0.5)
    assert np.isfinite(m).all() and (m > 0).all()
    assert np.isfinite(static_balance(channels, 0 * weight, 0.5)).all()


@pytest.mark.parametrize("name", sorted(methods()))
@pytest.mark.parametrize("dead", ["input", "weight", "both", "every input"])
def test_a_dead_channel_costs_no_method_anything(name: str, dead: str) -> None:
    """A channel that is always 0, or that no weight reads: the others are as good as without it, and zeros give zeros."""
    scheme, x = Scheme(weight=W4_CHANNEL, activation=TOKEN), X.copy()
    given = {layer: array.copy() for layer, array in WEIGHTS.items()}
    if dead in ("input", "both"):
        x[:, 3] = 0
    if dead in ("weight", "both"):
        for array in given.values():
            array[:, 3] = 0
    if dead == "every input":
        x[:] = 0
    loaded = {layer: FloatWeight(ArrayTensor(array), layer) for layer, array in given.items()}
    done = method_for(name, {}, "here").quantize(loaded, seen(x), dict.fromkeys(WEIGHTS, scheme))["q"]
    assert done.transform.balance is None or (np.isfinite(done.transform.balance).all() and done.transform.balance.all())
    want, got = x @ given["q"].T, product(done, scheme, x)
    if dead == "every input":
        assert not got.any()
    else:
        assert np.linalg.norm(got - want) / np.linalg.norm(want) <= 1.2 * error(scheme, name)  # other weights round otherwise


def test_static_ranges_are_those_of_the_balanced_input() -> None:
    scheme = Scheme(weight=W8, activation=STEPS)
    done = method_for("smoothquant", {}, "here").quantize(weights(), seen(), dict.fromkeys(WEIGHTS, scheme))["k"]
    x = done.transform.input(X)
    want = [np.abs(x[:300]).max() / 127, np.abs(x[300:]).max() / 127]
    assert done.activation_scale is not None
    np.testing.assert_allclose(done.activation_scale, want, rtol=1e-6)


@pytest.mark.parametrize("name", ["quarot", "viditq"])
def test_no_static_range_is_known_behind_a_rotation(name: str) -> None:
    with pytest.raises(InputError, match=f"wanted dynamic activations: method {name} rotates"):
        method_for(name, {}, "here").check(Scheme(weight=W8, activation=TENSOR))


def test_dynamic_per_tensor_is_refused() -> None:
    act = QuantSpec(qtype=QType.INT8, granularity=Granularity.PER_TENSOR, dynamic=True)
    with pytest.raises(InputError, match=r"wanted dynamic per_token, or static per_tensor"):
        RTN.check(Scheme(weight=W8, activation=act))


def test_registry_finds_the_files_and_names_them_to_who_errs() -> None:
    assert methods()["rtn"] is RoundToNearest
    assert "base" not in methods()
    with pytest.raises(InputError, match=r"recipe r: found method 'rnt'; wanted one of .*rtn"):
        method_for("rnt", {}, "recipe r")


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("rtn", {"alpha": 0.5}, "recipe r, method rtn: found setting alpha; wanted none"),
        (
            "viditq",
            {"alhpa": 0.5},
            "found setting alhpa; wanted one of alpha, rotation, rotate_attention_output, rotation_block, seed, rounding",
        ),
        ("viditq", {"alpha": "much"}, "found alpha = 'much'; wanted a float"),
        ("viditq", {"rotation": 1}, "found rotation = 1; wanted a bool"),
        *(
            (m, {"rotate_attention_output": "all"}, f"method {m}: found rotate_attention_output = 'all'; wanted head or width")
            for m in ROTATING
        ),
        *(
            (m, {"rotation_block": block}, f"method {m}: found rotation_block = {block}; wanted 0, for the whole width, or a block")
            for m in ROTATING
            for block in (-2, 1, 92)
        ),
        ("viditq", {"alpha": 2}, r"found alpha = 2; wanted 0 to 1"),
        ("viditq", {"rounding": "up"}, r"found rounding = 'up'; wanted nearest or gptq"),
        ("svdquant", {"rank": 0}, "found rank = 0; wanted at least 1"),
    ],
)
def test_settings_that_a_method_does_not_take(name: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        method_for(name, settings, "recipe r")


@pytest.mark.parametrize("name", ["rtn", "quarot", "smoothquant", "viditq", "svdquant", "qvd"])
def test_zero_points_are_honoured(name: str) -> None:
    """Rows whose weights are all of one sign: half of a symmetric grid would be empty."""
    lopsided = {layer: FloatWeight(ArrayTensor(np.abs(array)), layer) for layer, array in WEIGHTS.items()}
    method = method_for(name, {"rank": 1} if name == "svdquant" else {}, "here")

    def of(symmetric: bool) -> float:
        spec = QuantSpec(qtype=QType.INT4, granularity=Granularity.PER_CHANNEL, symmetric=symmetric)
        scheme = Scheme(weight=spec, activation=TOKEN)
        method.check(scheme)
        done = method.quantize(lopsided, seen(), dict.fromkeys(WEIGHTS, scheme))["q"]
        tensor = done.weight.read()
        assert (tensor.zero_point is None) == symmetric
        want = X @ np.abs(WEIGHTS["q"]).T
        return float(np.linalg.norm(product(done, scheme) - want) / np.linalg.norm(want))

    # A rotation leaves nothing of one sign, and a branch takes what is common to all.
    assert of(False) < (0.7 if name in ("rtn", "smoothquant", "qvd") else 1.0) * of(True)


@pytest.mark.parametrize(("name", "settings"), [("gptq", {}), ("awq", {}), ("viditq", {"rounding": "gptq"})])
def test_zero_points_that_a_search_does_not_know_are_refused(name: str, settings: dict[str, Any]) -> None:
    spec = QuantSpec(qtype=QType.INT4, granularity=Granularity.PER_CHANNEL, symmetric=False)
    with pytest.raises(InputError, match="knows no zero points"):
        method_for(name, settings, "here").check(Scheme(weight=spec, activation=TOKEN))


@pytest.mark.parametrize("name", ["awq", "svdquant"])
def test_layers_of_other_bits_are_searched_apart(name: str) -> None:
    """Each as if it were alone; with one scheme they share."""
    schemes = {"q": Scheme(weight=W4_CHANNEL, activation=TOKEN), "k": Scheme(weight=W8, activation=TOKEN)}
    method = method_for(name, {}, "here")
    both = method.quantize(weights(), seen(), schemes)
    for layer, scheme in schemes.items():
        alone = method.quantize({layer: weights()[layer]}, seen(), {layer: scheme})[layer]
        np.testing.assert_array_equal(both[layer].weight.read().codes, alone.weight.read().codes)
        assert both[layer].transform.input_key() == alone.transform.input_key()


def test_gptq_rounds_weights_alone_too() -> None:
    schemes = dict.fromkeys(WEIGHTS, Scheme(weight=W4))
    method = method_for("viditq", {"rounding": "gptq"}, "here")
    assert method.needs_statistics(schemes["q"]) and not method_for("viditq", {}, "here").needs_statistics(schemes["q"])
    done = method.quantize(weights(), seen(), schemes)["q"]
    np.testing.assert_array_equal(
        done.weight.read().codes, method_for("gptq", {}, "here").quantize(weights(), seen(), schemes)["q"].weight.read().codes
    )
    assert done.transform.identity


@pytest.mark.parametrize("name", ROTATING)
def test_a_rotation_behind_attention_mixes_heads_unless_told(name: str) -> None:
    scheme = Scheme(weight=W4_CHANNEL, activation=TOKEN)
    method = method_for(name, {"rotation": True} if name == "qvgen" else {}, "here")
    blocks = [method.quantize(weights(), seen(), dict.fromkeys(WEIGHTS, scheme), head)["q"].transform.rotation for head in (None, 32, 6)]
    assert blocks == [96, 32, 2] and method.rotates_within_heads
    assert not method_for(name, {"rotate_attention_output": "width"}, "here").rotates_within_heads
    if name != "quarot":
        assert not method_for(name, {"rotation": False}, "here").rotates_within_heads


@pytest.mark.parametrize("name", ROTATING)
def test_a_rotation_mixes_blocks_where_they_divide_the_width(name: str) -> None:
    """96 inputs; behind attention still a head's channels."""
    scheme = Scheme(weight=W4_CHANNEL, activation=TOKEN)

    def rotated(block: int, head: int | None = None) -> int | None:
        settings = {"rotation_block": block} | ({"rotation": True} if name == "qvgen" else {})
        done = method_for(name, settings, "here").quantize(weights(), seen(), dict.fromkeys(WEIGHTS, scheme), head)["q"]
        return done.transform.rotation

    assert [rotated(block) for block in (0, 32, 256)] == [96, 32, 96]
    assert rotated(16, 32) == 32
