from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from vditc.float_weight import ArrayTensor, FloatWeight
from vditc.transform import IDENTITY, OutputTransform, Transform, transformed, with_outputs

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


def test_a_layer_gives_out_what_the_one_behind_reads() -> None:
    """Of 7 outputs, 4 from the third on."""
    balance, bias = BALANCE[:4], RNG.standard_normal(7).astype(F32)
    output, wanted = OutputTransform(balance=balance, rotation=2, start=2), Transform(balance=balance, rotation=2)
    before, after = X @ W.T + bias, X @ output.weight(W).T + output.bias(bias)
    np.testing.assert_allclose(after[:, 2:6], wanted.input(before[:, 2:6]), atol=1e-5)
    np.testing.assert_array_equal(after[:, [0, 1, 6]], before[:, [0, 1, 6]])
    assert output.makes(wanted, 4, 6) and OutputTransform(balance=np.ones(4, F32), rotation=2).makes(Transform(rotation=2), 4, 4)
    assert not any(output.makes(t, 4, 6) for t in (Transform(balance=balance, rotation=4), Transform(balance=-balance, rotation=2)))
    assert not output.makes(wanted, 4, 7)  # v is last
    assert not OutputTransform(balance=np.ones(4, F32), rotation=2).makes(Transform(rotation=2), 8, 8)
    assert not dataclasses.replace(output, start=0).makes(wanted, 4, 6)
    plain = FloatWeight(ArrayTensor(W), "here")
    np.testing.assert_array_equal(with_outputs(plain, output).read(), output.weight(W))
    assert with_outputs(plain, None) is plain


def test_what_others_have_made_is_not_left_to_do() -> None:
    made = Transform(balance=BALANCE, rotation=12, down=DOWN, up=UP, made_by=("v",))
    assert (made.explicit.balance, made.explicit.rotation) == (None, None) and made.explicit.down is DOWN
    np.testing.assert_array_equal(made.weight(W), Transform(balance=BALANCE, rotation=12, down=DOWN, up=UP).weight(W))
    assert TRANSFORMS["all"].explicit is TRANSFORMS["all"]
    assert str(made) == "balanced, rotated in blocks of 12 beforehand, less a branch of rank 3"


def test_what_cannot_be_an_output_transform() -> None:
    for rotation in (3, 0, -2):
        with pytest.raises(ValueError, match=f"blocks of {rotation} of 4 channels"):
            OutputTransform(balance=np.ones(4, F32), rotation=rotation)
    with pytest.raises(ValueError, match="outputs from -4 on"):
        OutputTransform(balance=np.ones(4, F32), rotation=4, start=-4)
    with pytest.raises(ValueError, match="outputs 4 to 8 of 7"):
        OutputTransform(balance=np.ones(4, F32), rotation=4, start=4).weight(np.ones((7, 2), F32))
    with pytest.raises(ValueError, match="zero or not finite"):
        OutputTransform(balance=np.zeros(4, F32), rotation=4)
    with pytest.raises(ValueError, match="shifted or not rotated"):
        Transform(balance=BALANCE, made_by=("v",))
