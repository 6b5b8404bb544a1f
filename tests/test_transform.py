from __future__ import annotations

import numpy as np
import pytest

from vditc.float_weight import ArrayTensor, FloatWeight
from vditc.transform import IDENTITY, Transform, transformed

F32 = np.float32
RNG = np.random.default_rng(0)
X, W = RNG.standard_normal((5, 24)).astype(F32), RNG.standard_normal((7, 24)).astype(F32)
BALANCE = np.exp(RNG.standard_normal(24)).astype(F32) * np.where(RNG.random(24) < 0.5, -1, 1).astype(F32)
DOWN, UP = RNG.standard_normal((3, 24)).astype(np.float16), RNG.standard_normal((7, 3)).astype(np.float16)
TRANSFORMS = {
    "nothing": Transform(),
    "balance": Transform(balance=BALANCE),
    "rotation": Transform(rotation=24),
    "blocks": Transform(rotation=12),
    "low rank": Transform(down=DOWN, up=UP),
    "all": Transform(balance=BALANCE, rotation=24, down=DOWN, up=UP),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_product_stays(name: str) -> None:
    t = TRANSFORMS[name]
    x, weight = t.input(X), t.weight(W)
    branch = 0 if t.down is None or t.up is None else x @ t.down.astype(F32).T @ t.up.astype(F32).T
    np.testing.assert_allclose(x @ weight.T + branch, X @ W.T, atol=1e-4)  # float32, balanced by factors of up to 10
    assert t.identity == (name == "nothing")
    assert (not np.array_equal(weight, W)) == (name != "nothing")


def test_a_transformed_weight_is_computed_when_it_is_read() -> None:
    array = W.copy()
    left = transformed(FloatWeight(ArrayTensor(array), "here"), TRANSFORMS["all"])
    array[0] = 0  # seen by the reader, for nothing was computed before
    np.testing.assert_array_equal(left.read(), TRANSFORMS["all"].weight(array))
    assert left.shape == W.shape and left.where == "here"
    plain = FloatWeight(ArrayTensor(W), "here")
    assert transformed(plain, IDENTITY) is plain


def test_layers_share_an_input_when_balance_and_rotation_are_equal() -> None:
    both = Transform(balance=BALANCE, rotation=24)
    assert both.input_key() == TRANSFORMS["all"].input_key()
    assert len({t.input_key() for t in (both, Transform(balance=-BALANCE, rotation=24), Transform(balance=BALANCE), Transform())}) == 4


@pytest.mark.parametrize(
    ("name", "words"), [("zero", "a balance that is zero"), ("nan", "not finite"), ("one", "low-rank"), ("ranks", "low-rank")]
)
def test_what_cannot_be_a_transform(name: str, words: str) -> None:
    bad = {
        "zero": {"balance": np.zeros(3, F32)},
        "nan": {"balance": np.full(3, np.nan, F32)},
        "one": {"down": DOWN},
        "ranks": {"down": DOWN, "up": UP[:, :2]},
    }
    with pytest.raises(ValueError, match=words):
        Transform(**bad[name])  # type: ignore[arg-type]


def test_words_for_people() -> None:
    assert str(TRANSFORMS["all"]) == "balanced, rotated in blocks of 24, less a branch of rank 3"
    assert str(IDENTITY) == "as it is"
