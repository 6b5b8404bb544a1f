"""One layer quantized at a time: against a model that is built so, and killed on the way."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import vditc
from tiny_model import tiny_sampled
from watcher import Watcher

from vditc.calibrate.stage import uncalibrated
from vditc.calibration import Calibration
from vditc.conditioning import Conditioning
from vditc.errors import InputError, VditcError
from vditc.export.adapters.registry import adapter_for
from vditc.model_dir import ModelDir
from vditc.pipeline.schedules import load_schedule
from vditc.pipeline.sensitivity import Errors, relative_squared_error, sensitivity, trajectory_feeds
from vditc.progress import SILENT
from vditc.recipe import Recipe
from vditc.runtimes.reference import ReferenceModel
from vditc.sampling import Feeds
from vditc.schedule import step_groups

STEPS = 3
AllFeeds = list[list[tuple[Feeds, int]]]


def calibration(source: ModelDir, recipe: str) -> Calibration:
    """Rounded to nearest, so that it needs no data."""
    own = dataclasses.replace(Recipe.load(recipe), method="rtn", settings={})
    return uncalibrated(source=source, adapter=adapter_for(source), recipe=own)()


@pytest.fixture(scope="module")
def feeds(tiny: ModelDir, tiny_conditioning: Conditioning) -> AllFeeds:
    """Two clips at the middle steps of two groups."""
    model = ReferenceModel(adapter_for(tiny), tiny, None)
    return trajectory_feeds(model, tiny_sampled(tiny, tiny_conditioning, steps=STEPS), step_groups(STEPS, 2), SILENT)


def analysed(tiny: ModelDir, feeds: AllFeeds, *recipes: str, **options: Any) -> Errors:
    candidates = {name: calibration(tiny, name) for name in recipes}
    return sensitivity(source=tiny, adapter=adapter_for(tiny), candidates=candidates, feeds=feeds, **{"progress": Watcher(), **options})


def test_groups_of_steps() -> None:
    assert step_groups(10, 4) == [range(0, 2), range(2, 5), range(5, 8), range(8, 10)]
    assert step_groups(3, 5) == [range(0, 1), range(1, 2), range(2, 3)]


def test_feeds_are_those_of_the_full_precision_trajectory(feeds: AllFeeds, tiny: ModelDir, tiny_conditioning: Conditioning) -> None:
    assert [[step for _, step in group] for group in feeds] == [[1, 1], [2, 2]]
    adapter, schedule = adapter_for(tiny), load_schedule(tiny.path, STEPS)
    clips = tiny_conditioning.clips([0], adapter.inputs(tiny))
    np.testing.assert_array_equal(feeds[0][0][0]["timestep"], np.full(2, schedule.timesteps[1]))
    first = ReferenceModel(adapter, tiny, None)(clips.feeds(schedule, 0, clips.start(schedule), guided=True), 0)
    guided = first[1:] + np.float32(2.0) * (first[:1] - first[1:])
    latents = schedule.step(guided, 0, clips.start(schedule))
    np.testing.assert_array_equal(feeds[0][0][0]["hidden_states"], np.concatenate([latents, latents]))


@pytest.mark.parametrize("streamed", [False, True])
def test_errors_are_those_of_a_model_with_one_quantized_layer(
    tiny: ModelDir, feeds: AllFeeds, monkeypatch: pytest.MonkeyPatch, streamed: bool
) -> None:
    """Blocks are skipped, or, where memory does not allow that, all run."""
    if streamed:
        monkeypatch.setattr("vditc.pipeline.sensitivity._SHARE", 0.0)
    found = analysed(tiny, feeds, "w4a8")["w4a8"]
    adapter, whole = adapter_for(tiny), calibration(tiny, "w4a8")
    assert found.keys() == whole.layers.keys()
    full = ReferenceModel(adapter, tiny, None)
    for layer in ("blocks.0.attn1.to_q", "blocks.0.ffn.net.2", "blocks.1.attn1.to_k", "blocks.1.ffn.net.0.proj"):
        alone = ReferenceModel(adapter, tiny, dataclasses.replace(whole, layers={layer: whole.layers[layer]}))
        wanted = [np.mean([relative_squared_error(full(f, s), alone(f, s)) for f, s in group]) for group in feeds]
        assert found[layer] == pytest.approx(wanted, rel=1e-12) and min(wanted) > 0


def test_candidates_are_compared(tiny: ModelDir, feeds: AllFeeds) -> None:
    found = analysed(tiny, feeds[:1], "w8a8", "w4a8")
    assert found["w8a8"].keys() == found["w4a8"].keys()
    assert all(found["w4a8"][layer] > errors for layer, errors in found["w8a8"].items())


def test_layers_together_and_another_metric(tiny: ModelDir, feeds: AllFeeds) -> None:
    seen: list[tuple[int, ...]] = []

    def metric(full: Any, quantized: Any) -> float:
        seen.append(full.shape)
        return float(np.abs(full - quantized).max())

    units: dict[str, Sequence[str]] = {"ffn": ("blocks.0.ffn.net.0.proj", "blocks.1.ffn.net.2"), "gone": ("blocks.7.ffn.net.2",)}
    found = analysed(tiny, feeds, "w4a8", units=units, metric=metric)["w4a8"]
    assert found.keys() == {"ffn"} and seen == [(2, 4, 2, 8, 8)] * 4
    whole = calibration(tiny, "w4a8")
    both = ReferenceModel(adapter_for(tiny), tiny, dataclasses.replace(whole, layers={n: whole.layers[n] for n in units["ffn"]}))
    full = ReferenceModel(adapter_for(tiny), tiny, None)
    assert found["ffn"] == [np.mean([float(np.abs(full(f, s) - both(f, s)).max()) for f, s in group]) for group in feeds]


@pytest.mark.parametrize("cut", [0, 5], ids=["whole lines", "a line cut short"])
def test_a_killed_analysis_goes_on(tiny: ModelDir, feeds: AllFeeds, tmp_path: Path, cut: int) -> None:
    wanted, work = analysed(tiny, feeds, "w4a8"), tmp_path / "work" / "notes"
    with pytest.raises(KeyboardInterrupt):
        analysed(tiny, feeds, "w4a8", work=work, progress=Watcher(33))
    if cut:
        work.write_bytes(work.read_bytes()[:-cut])
    calls = []

    def counted(full: Any, quantized: Any) -> float:
        calls.append(1)
        return relative_squared_error(full, quantized)

    again = Watcher()
    assert analysed(tiny, feeds, "w4a8", work=work, progress=again, metric=counted) == wanted
    done = 33 - bool(cut)
    assert len(calls) == 4 * 20 - done and f"holds {done} results" in again.notes[0]
    other = Watcher()
    analysed(tiny, feeds[:1], "w4a8", work=work, progress=other)
    assert "starts anew" in other.notes[0]


def test_errors_must_be_finite(tiny: ModelDir, feeds: AllFeeds) -> None:
    with pytest.raises(VditcError, match=r"by w4a8, step 1: found an error of nan"):
        analysed(tiny, feeds, "w4a8", metric=lambda *_: float("nan"))


def test_a_calibration_with_a_layer_that_the_model_has_not(tiny: ModelDir, feeds: AllFeeds) -> None:
    whole = calibration(tiny, "w4a8")
    layer = next(iter(whole.layers.values()))
    wrong = dataclasses.replace(whole, layers={**whole.layers, "blocks.9.attn1.to_q": layer})
    with pytest.raises(InputError, match=r"found 1 layers that the model has not: blocks\.9\.attn1\.to_q"):
        sensitivity(source=tiny, adapter=adapter_for(tiny), candidates={"x": wrong}, feeds=feeds, progress=SILENT)


def test_the_command_sorts_and_writes(tiny_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a 7 moving left\n")
    out, options = tmp_path / "s.json", ("--prompts", str(tmp_path / "prompts.txt"), "--clips", "1", "--step-groups", "2")
    done = vditc("sensitivity", str(tiny_dir), "--recipe", "w8a8-static", "-o", str(out), *options)
    assert done.code == 0, done.stderr
    data = json.loads(out.read_text())
    assert data["step_groups"] == [[0, 1], [2, 2]] and len(data["layers"]) == 20 and data["clips"] == 1
    errors = [row["error"] for row in data["layers"]]
    assert errors == sorted(errors, reverse=True) and all(len(row["errors"]) == 2 and row["own_error"] > 0 for row in data["layers"])
    assert data["layers"][0]["layer"] in done.stdout.splitlines()[1]
    assert not out.with_name("s.json.work").exists()
    again = vditc("sensitivity", str(tiny_dir), "--recipe", "w8a8-static", "-o", str(out), *options, "--force", "--json")
    assert json.loads(again.stdout) == data
