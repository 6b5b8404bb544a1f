"""The budget by hand, the metrics by hand, and a model whose important layers are known."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_model import tiny_sampled

from vditc.calibrate.bit_budget import Unit, raised
from vditc.calibrate.clip_metrics import clip_metrics
from vditc.calibrate.methods.viditq_mp import BOTH, MOTION, STATE, TEXT, VISUAL, ViDiTQMixed, _purpose, _sensitivities
from vditc.calibrate.stage import calibrate
from vditc.calibration import Calibration
from vditc.conditioning import Conditioning
from vditc.errors import InputError
from vditc.model_dir import ModelDir
from vditc.numerics import QType
from vditc.progress import SILENT
from vditc.recipe import Recipe
from vditc.schedule import Schedule


def unit(name: str, group: str, count: int, error: float, sensitivity: float) -> Unit:
    return Unit(name=name, group=group, count=count, error=error, sensitivity=sensitivity)


def test_groups_share_the_budget_by_error_and_rank_decides_within() -> None:
    """Errors 3 : 1 of equal layers and a budget of 4: three go to a, one to b, the most sensitive of each, whatever their error."""
    units = [unit(f"a{i}", "a", 10, 3.0, i) for i in range(4)] + [unit(f"b{i}", "b", 10, 1.0, -i) for i in range(4)]
    assert raised(units, 40) == {"a3", "a2", "a1", "b0"}
    assert raised(units, 0) == set()
    assert raised(units, 80) == {u.name for u in units}


def test_what_a_group_cannot_use_goes_to_the_others() -> None:
    units = [unit("a", "a", 10, 100.0, 1.0), *(unit(f"b{i}", "b", 10, 1.0, i) for i in range(4))]
    assert raised(units, 30) == {"a", "b3", "b2"}


def test_the_budget_is_never_exceeded_and_no_one_is_passed_over(rng: np.random.Generator) -> None:
    for _ in range(50):
        units = [unit(f"{i}", "abc"[i % 3], int(rng.integers(1, 30)), rng.random(), rng.random()) for i in range(20)]
        budget = int(rng.integers(0, 300))
        chosen = raised(units, budget)
        assert sum(u.count for u in units if u.name in chosen) <= budget
        for group in "abc":
            own = [u for u in units if u.group == group]
            inside = [u.sensitivity for u in own if u.name in chosen]
            outside = [u.sensitivity for u in own if u.name not in chosen]
            assert not inside or not outside or min(inside) >= max(outside)
        rest = [[u for u in units if u.group == group and u.name not in chosen] for group in "abc"]
        following = [max(own, key=lambda u: u.sensitivity) for own in rest if own]
        left = budget - sum(u.count for u in units if u.name in chosen)
        assert all(u.count > left for u in following)


def test_metrics_by_hand() -> None:
    """A flow at sigma 0.5: the clip is x - 0.5 v. Two frames of one number."""
    flow = Schedule.flow(np.array([1.0, 0.5, 0.0]))
    latents = np.array([1.0, 2.0], np.float32).reshape(1, 2, 1, 1)
    exact = np.full((2, 1, 2, 1, 1), 0.2, np.float32)
    exact[0] = 0.6  # guidance of 2 makes 1 of both: the clip is 0.5, 1.5
    changed = exact.copy()
    changed[0, 0, 1] += 0.25  # guided 0.5 more, the clip 0.25 less in the second frame
    found = clip_metrics(flow, 1, latents, exact, changed, 2.0)
    assert found["visual"] == pytest.approx((0 + 0.25 / 1.5) / 2)
    assert found["motion"] == pytest.approx(0.25 / 1.0)
    assert found["text"] == pytest.approx(0.25 / (0.4 * 2**0.5))
    assert found["output"] == pytest.approx(0.0625 / 0.8)
    assert "text" not in clip_metrics(flow, 1, latents, exact[:1], changed[:1], 1.0)
    assert not any(clip_metrics(flow, 1, latents, exact, exact, 2.0).values())


def test_a_layer_is_ranked_by_what_it_is_there_for() -> None:
    roles = ("cross_attn.q", "temporal_attn.qkv", "self_attn.q", "ffn.in")
    assert [_purpose(role, full=False) for role in roles] == [TEXT, MOTION, VISUAL, VISUAL]
    assert _purpose("self_attn.q", full=True) == BOTH and _purpose("ffn.out", full=True) == VISUAL
    rows = [{"output": 1.0, "visual": 0.2, "motion": 0.8, "text": 0.3}, {"output": 1.0, "visual": 0.4, "motion": 0.4, "text": 0.1}]
    calm = [{"output": 1.0, "visual": 0.4, "motion": 0.2, "text": 0.1}] * 2
    purpose = {"t": TEXT, "m": MOTION, "v": VISUAL, "b": BOTH}
    measured = {"t": rows, "m": rows, "v": rows, "b": rows, "other": calm}
    found = _sensitivities(measured, purpose | {"other": VISUAL}, guided=True)
    assert found["t"] == 0.3 and found["m"] == 0.8 and found["v"] == 0.4
    assert found["b"] == pytest.approx(0.8 / ((4 * 0.8 + 0.2) / 5))  # motion is worse: 0.4 / 0.4 of the picture is less
    assert _sensitivities(measured, purpose | {"other": VISUAL}, guided=False)["t"] == 0.4


@pytest.mark.parametrize("settings", [{"low": "int8"}, {"low": "int5"}, {"high": "fp8_e4m3"}, {"step_groups": 0}, {"examples": 0}], ids=str)
def test_wrong_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(InputError, match="viditq-mp"):
        ViDiTQMixed(**settings)  # type: ignore[arg-type]


def mixed(tiny: ModelDir, conditioning: Conditioning, out: Path, **settings: object) -> Calibration:
    recipe = Recipe.load("w4a8-mp")
    recipe = dataclasses.replace(recipe, settings={**recipe.settings, **settings}, digest=str(settings))
    found = calibrate(
        tiny_sampled(tiny, conditioning, steps=4),
        recipe=recipe,
        out=out,
        work=out.parent / "work",
        progress=SILENT,
    )
    assert found is not None
    return found


def bits(known: Calibration) -> float:
    layers = known.layers.values()
    return sum(layer.weight.count * layer.scheme.weight.qtype.bits for layer in layers) / sum(layer.weight.count for layer in layers)


def test_the_file_tells_what_was_measured_and_chosen(tiny: ModelDir, tiny_conditioning: Conditioning, tmp_path: Path) -> None:
    known = mixed(tiny, tiny_conditioning, tmp_path / "c", step_groups=2, examples=1)
    told = known.statistics["mixed_precision"]
    assert told["mean_bits"] == pytest.approx(bits(known), rel=1e-5) and 4.5 < bits(known) <= 5.0
    assert told["step_groups"] == [[0, 1], [2, 3]] and told["guided"]
    assert list(told["layers"]) == list(known.layers)
    ranks: dict[str, list[tuple[int, float, bool]]] = {}
    for layer, row in told["layers"].items():
        assert QType(row["bits"]) is known.layers[layer].scheme.weight.qtype
        assert len(row["by_step_group"]) == 2 and set(row["by_step_group"][0]) == {"output", "visual", "motion", "text"}
        assert row["group"] == {"self_attn": BOTH, "cross_attn": TEXT, "ffn": VISUAL}[known.layers[layer].role.split(".")[0]]
        ranks.setdefault(row["group"], []).append((row["rank"], row["sensitivity"], row["bits"] == "int8"))
    assert {row["unit"] for layer, row in told["layers"].items() if "blocks.0.attn1.to_q" in layer or "blocks.0.attn1.to_v" in layer} == {
        "blocks.0.attn1.to_q"
    }
    for rows in ranks.values():
        rows.sort()
        assert [s for _, s, _ in rows] == sorted((s for _, s, _ in rows), reverse=True)
        assert [up for *_, up in rows] == sorted((up for *_, up in rows), reverse=True)
    assert not (tmp_path / "work" / STATE).exists()


def test_a_layer_that_matters_gets_the_bits(tiny_dir: Path, tiny_conditioning: Conditioning, tmp_path: Path) -> None:
    """The feed-forward of one block is made to shout: its last layer is fifty times as large, and so is what both its layers do wrong."""
    folder = tmp_path / "loud"
    shutil.copytree(tiny_dir, folder)
    file = next((folder / "transformer").glob("*.safetensors"))
    weights = load_file(file)
    weights["blocks.1.ffn.net.2.weight"] = (weights["blocks.1.ffn.net.2.weight"].astype(np.float32) * 50).astype(np.float16)
    save_file(weights, file, {"format": "pt"})
    known = mixed(ModelDir.open(folder), tiny_conditioning, tmp_path / "c", step_groups=1, examples=1)
    rows = known.statistics["mixed_precision"]["layers"]
    names = ("net.2", "net.0.proj")
    assert {rows[f"blocks.1.ffn.{name}"]["rank"] for name in names} == {1, 2}
    assert {rows[f"blocks.1.ffn.{name}"]["bits"] for name in names} == {"int8"}
    assert {rows[f"blocks.0.ffn.{name}"]["bits"] for name in names} == {"int4"}


@pytest.mark.parametrize(("wanted", "message"), [(3.9, r"4.000 to 8.000"), (8.1, r"4.000 to 8.000")])
def test_a_budget_that_cannot_be_met_is_refused(
    tiny: ModelDir, tiny_conditioning: Conditioning, tmp_path: Path, wanted: float, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        mixed(tiny, tiny_conditioning, tmp_path / "c", mean_bits=wanted)
