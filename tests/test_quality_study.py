"""The quality study: its rows fit the bundled models, a row's figures are what they say, and finished rows are not measured again."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "quality"))  # scripts, which import each other by plain name

import measure
import rows as study_rows
import run
import table
from rows import FULL_PRECISION, Row, load_rows

from vditc.calibrate.methods.registry import method_for
from vditc.calibrate.stage import uncalibrated
from vditc.calibration import Calibration
from vditc.errors import InputError
from vditc.export.adapters.registry import adapter_for
from vditc.model_dir import ModelDir
from vditc.numerics import Granularity, QType
from vditc.recipe import Recipe
from vditc.runtimes.reference import ReferenceModel
from vditc.scheme import QuantSpec, Scheme


def test_every_row_fits_its_model(tmp_path: Path) -> None:
    rows = load_rows()
    sources = {name: ModelDir.open(measure.ASSETS / name) for name in {row.model for row in rows}}
    roles = {name: adapter_for(source).layer_roles(source) for name, source in sources.items()}
    for row in rows:
        if row.name != FULL_PRECISION:
            recipe = Recipe.load(row.write_recipe(tmp_path))
            schemes = [rule.scheme for rule in recipe.assign(roles[row.model]).values() if rule.scheme]
            assert schemes and row.method in (None, recipe.method), row
            for scheme in schemes:
                method_for(recipe.method, recipe.settings, row.name).check(scheme)


def file(folder: Path, *lines: str) -> Path:
    path = folder / "rows.toml"
    path.write_text('models = ["a", "b"]\nrows = [\n' + ",\n".join(lines) + "\n]\n")
    return path


def test_rows_are_multiplied_out(tmp_path: Path) -> None:
    path = file(
        tmp_path,
        '{ method = ["rtn", "gptq"], bits = ["w4a8", "w3a6"] }',
        '{ recipe = "w8a8", models = ["b"] }',
        '{ name = "half", method = "viditq", bits = "w4a8", settings = { alpha = 0.5 }, symmetric = false, prompts = 9 }',
    )
    names = {model: [row.name for row in load_rows(path) if row.model == model] for model in "ab"}
    grid = ["rtn-w4a8", "gptq-w4a8", "rtn-w3a6", "gptq-w3a6"]
    assert names == {"a": [FULL_PRECISION, *grid, "half"], "b": [FULL_PRECISION, *grid, "w8a8", "half"]}
    half = Recipe.load(load_rows(path)[-1].write_recipe(tmp_path))
    assert (half.name, half.method, half.settings, half.calibration_prompts) == ("half", "viditq", {"alpha": 0.5}, 9)
    assert half.rules[1].scheme == Scheme(
        weight=QuantSpec(qtype=QType.INT4, granularity=Granularity.PER_CHANNEL, symmetric=False),
        activation=QuantSpec(qtype=QType.INT8, granularity=Granularity.PER_TOKEN, dynamic=True),
    )


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('{ method = "rtn" }', "wanted method and bits, or recipe"),
        ('{ method = "rtn", bits = "w4a8", recipe = "w8a8" }', "wanted method and bits, or recipe"),
        ('{ name = "x", method = ["rtn", "gptq"], bits = "w4a8" }', "name only for a single row"),
        ('{ method = ["rtn", "rtn"], bits = "w4a8" }', "rtn-w4a8 twice"),
        ('{ method = "rtn", bits = "w4a8", models = ["c"] }', "models c"),
        ('{ method = "rtn", bits = "w4a8", clips = 3 }', "unknown key clips"),
    ],
)
def test_bad_rows_are_refused(tmp_path: Path, line: str, found: str) -> None:
    with pytest.raises(InputError, match=found):
        load_rows(file(tmp_path, line))


def test_bits_that_nobody_knows_are_refused() -> None:
    with pytest.raises(InputError, match="w5a8"):
        study_rows.recipe_text(Row(model="a", name="x"), "rtn", "w5a8")


@pytest.fixture
def tiny_study(tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> measure.Study:
    """Two seeds of one clip of the tiny model, which is said to know digits."""
    model = shutil.copytree(tiny_dir, tmp_path / "tiny")
    sampling = json.loads((model / "sampling.json").read_text())
    (model / "sampling.json").write_text(json.dumps({**sampling, "semantics": "digits"}))
    monkeypatch.setattr(measure, "ASSETS", tmp_path)
    return measure.Study(model.name, 1, 2, tmp_path / "work")


def calibrated(study: measure.Study, recipe: str, tmp_path: Path) -> measure.Calibrated:
    path = tmp_path / "c.safetensors"
    uncalibrated(source=study.source, adapter=study.adapter, recipe=Recipe.load(recipe))().save(path)
    return measure.Calibrated(calibration=Calibration.load(path), seconds=1.0, cpu_seconds=1.0, peak_rss_bytes=1)


def test_outputs_are_those_along_the_trajectory(tiny_study: measure.Study) -> None:
    """A step with the outputs that were computed for it leads to the latents that were kept after it."""
    given, reference = tiny_study.reference(measure.FIRST_SEED)
    outputs = tiny_study._forced(tiny_study.exact, given, reference, 0)
    before = given.clips([0], tiny_study.specs).start(tiny_study.schedule)
    scale = np.float32(tiny_study.sampling.guidance_scale)
    for index, ((with_text, without), after) in enumerate(zip(outputs, reference.latents[0], strict=True)):
        before = tiny_study.schedule.step((without + scale * (with_text - without))[None], index, before)
        np.testing.assert_array_equal(before[0], after)


def test_output_mse_is_of_both_branches_and_all_steps(tiny_study: measure.Study, tmp_path: Path) -> None:
    known = calibrated(tiny_study, "w4a16", tmp_path)
    row = Row(model=tiny_study.model, name="w4a16", recipe="w4a16")
    found = tiny_study.measure(row, known)
    ours = ReferenceModel(tiny_study.adapter, tiny_study.source, known.calibration)
    wanted = []
    for seed in tiny_study.seeds:
        given, reference = tiny_study.reference(seed)
        exact, rounded = (tiny_study._forced(model, given, reference, 0) for model in (tiny_study.exact, ours))
        assert exact.shape[:2] == (tiny_study.sampling.steps, 2)
        wanted.append(float(np.mean((exact - rounded) ** 2)))
    assert found["per_seed"]["output_mse"] == pytest.approx(wanted, rel=1e-4)  # five digits are stored
    assert found["output_mse"] == pytest.approx(np.mean(wanted), rel=1e-4) and found["std"]["output_mse"] > 0
    assert 0 < found["final_latent_error"] < 1 and found["psnr"] > 0
    assert set(found) == {*measure.FIGURES, "std", "per_seed"}
    assert not (tmp_path / "work/clips" / row.model / row.name).exists()
    assert len(list((tmp_path / "work/clips" / row.model / "reference").iterdir())) == 2


def test_a_row_of_the_same_calibration_is_not_measured_again(
    tiny_study: measure.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = Row(model=tiny_study.model, name="w4a16", recipe="w4a16")
    monkeypatch.setattr(measure.Study, "calibrate", lambda *_, again: calibrated(tiny_study, "w4a16", tmp_path))
    measured = run.measure(row, tiny_study, None, again=False)
    assert run.measure(row, tiny_study, measured, again=False) is measured
    for other in ({"calibration_digest": "x"}, {"model_digest": "x"}, {"clips": 7}, {"seed": [1]}):
        assert run.measure(row, tiny_study, {**measured, **other}, again=False) == measured


@pytest.mark.slow
def test_calibrations_are_processes_of_their_own(tiny_study: measure.Study) -> None:
    row = Row(model=tiny_study.model, name="rtn-w4a8", method="rtn", bits="w4a8")
    first = tiny_study.calibrate(row, again=False)
    assert first.seconds > 0 and first.cpu_seconds > 0 and first.peak_rss_bytes > 2**26  # Python and PyTorch alone take more
    assert first.calibration.method == "rtn"
    note = tiny_study.work / "calibrations" / row.model / "rtn-w4a8.json"
    note.write_text(json.dumps({**json.loads(note.read_text()), "seconds": -1}))
    assert tiny_study.calibrate(row, again=False).seconds == -1
    assert tiny_study.calibrate(row, again=True).seconds > 0
    with pytest.raises(InputError, match="no-such-method"):
        tiny_study.calibrate(Row(model=row.model, name="x", method="no-such-method", bits="w4a8"), again=False)


def result(**changes: Any) -> dict[str, Any]:
    sampled = {"seed": [1, 2], "clips": 8, "sampled": "Euler, 4 steps", "hardware": "a machine"}
    return {"model": "a", "recipe": "rtn-w4a8", "method": "rtn", "bits": "w4a8", "mean_bits": 5.0, **sampled, **changes}


def test_tables_stand_between_the_markers() -> None:
    text = f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n"
    found = table.page(
        text,
        [
            result(digit_accuracy=0.995, std={"digit_accuracy": 0.005}, psnr=None),
            result(recipe="mixed", bits=None),
            {"model": "a", "method": "awq", "recipe": "awq-w4a8", "bits": "w4a8", "refused": "it does not fit"},
        ],
        "here",
    )
    assert found.startswith(f"before\n{table.BEGIN}\n") and found.endswith(f"{table.END}\nafter\n") and "old" not in found
    assert "| w4a8 | rtn | 5.00 | 99.5 ± 0.5 | – |" in found
    assert "| recipe | mixed | 5.00 |" in found
    assert "- awq-w4a8: it does not fit" in found and "2 x 8 clips; Euler, 4 steps; a machine." in found
    with pytest.raises(InputError, match="no markers"):
        table.page("nothing", [], "here")


def test_results_are_stored_in_the_order_of_the_rows(tmp_path: Path) -> None:
    order = [Row(model="a", name="x"), Row(model="a", name="y")]
    out, lock = tmp_path / "q.json", tmp_path / "work/lock"
    for name in ("gone", "y", "x"):
        run.store(out, {"model": "a", "recipe": name, "psnr": 1.0}, order, lock)
    run.store(out, {"model": "a", "recipe": "y", "psnr": 2.0}, order, lock)
    found = json.loads(out.read_text())
    assert [(r["recipe"], r["psnr"]) for r in found] == [("x", 1.0), ("y", 2.0), ("gone", 1.0)]
